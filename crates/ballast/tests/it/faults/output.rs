//! Case D7: nobody reads what the process says.

use std::process::{Child, Stdio};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::S;
use crate::support::{Deployment, Process, eventually, free_port, ready};

/// Killed at the end, whatever that was.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_whose_standard_output_and_error_are_closed_serves_on_and_ends_well() {
    let deployment = Deployment::new().await;
    for format in ["json", "pretty"] {
        let port = free_port();
        let port_text = port.to_string();
        let vars = [
            ("PORT", port_text.as_str()),
            ("HOST", "127.0.0.1"),
            ("DATABASE_URL", deployment.database.url()),
            ("REDIS_URL", &deployment.redis.url),
            ("REDIS_KEY_PREFIX", &deployment.redis.prefix),
            ("ENGINE_URL", "http://127.0.0.1:1/v1"),
            ("LOG_FORMAT", format),
            ("SHUTDOWN_BUDGET", "6s"),
        ];
        let mut command = Process::command(&["api"], &vars);
        let mut api = Killed(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        // The other ends of both pipes: whoever writes gets EPIPE.
        drop((api.0.stdout.take(), api.0.stderr.take()));
        ready(port).await;
        let client = reqwest::Client::new();
        for _ in 0..50 {
            let answer = client.get(format!("http://127.0.0.1:{port}/v1/me")).send().await.unwrap();
            assert_eq!(answer.status(), 401, "{format}");
        }
        assert!(api.0.try_wait().unwrap().is_none(), "{format}: it ended");
        kill(Pid::from_raw(api.0.id().cast_signed()), Signal::SIGTERM).unwrap();
        let mut status = None;
        eventually("it ends", S(15), async || {
            status = api.0.try_wait().unwrap();
            status.is_some()
        })
        .await;
        assert!(status.is_some_and(|status| status.success()), "{format}: {status:?}");
    }
}
