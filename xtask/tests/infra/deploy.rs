//! deploy.sh with programs in place of docker and curl that only note how they were called. `cargo xtask image` runs it for real.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::files::{path, text};

/// Everything is there, and everything is healthy.
const DOCKER: &str = r#"#!/bin/sh
echo "docker $*" >> "$NOTES"
case "$*" in
  inspect*) echo "running healthy" ;;
  *"ps --all --quiet"* | *"ps --quiet"*) echo 0123 ;;
esac
"#;
const CURL: &str = r#"#!/bin/sh
echo "curl $*" >> "$NOTES"
case "$*" in
  */readyz) printf 200 ;;
  */v1/me) printf 401 ;;
esac
"#;
const SLEEP: &str = "#!/bin/sh\n";
const PASSWORDS: &str = "POSTGRES_PASSWORD=0123456789abcdef01234567\nREDIS_PASSWORD='abcdef0123456789abcdef01'\nEDGE_HTTPS_PORT=8443\n";

struct Machine {
    dir: TempDir,
}

impl Machine {
    fn new(settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).unwrap();
        for (name, script) in [("docker", DOCKER), ("curl", CURL), ("sleep", SLEEP)] {
            fs::write(bin.join(name), script).unwrap();
            fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let edge = dir.path().join("edge");
        fs::create_dir_all(edge.join("tls")).unwrap();
        for file in ["tls/fullchain.pem", "tls/privkey.pem"] {
            fs::write(edge.join(file), "").unwrap();
        }
        for file in ["http.conf", "server.conf", "replicas.conf"] {
            fs::copy(path("deploy/nginx/site").join(file), edge.join(file)).unwrap();
        }
        fs::write(dir.path().join("env"), settings).unwrap();
        Self { dir }
    }

    #[expect(clippy::disallowed_methods, reason = "where the real tools are is not configuration")]
    fn deploy(&self, more: &[(&str, &str)]) -> Output {
        let at = |name: &str| self.dir.path().join(name);
        let mut command = Command::new("bash");
        command.arg(path("deploy.sh")).env_clear().envs([("VERSION", "1.0"), ("BUILD", "false")]);
        command.env("PATH", format!("{}:{}", at("bin").display(), std::env::var("PATH").unwrap()));
        command.env("ENV_FILE", at("env")).env("EDGE_DIR", at("edge")).env("NOTES", at("notes"));
        command.envs(more.iter().copied()).output().unwrap()
    }

    fn notes(&self) -> String {
        fs::read_to_string(self.dir.path().join("notes")).unwrap_or_default()
    }

    fn read(&self, name: impl AsRef<Path>) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn the_first_deploy_tries_the_edge_by_its_own_name_on_this_machine() {
    let machine = Machine::new(PASSWORDS);
    let output = machine.deploy(&[]);
    assert!(output.status.success(), "{}", said(&output));
    let name = "api.example.com";
    assert!(text("deploy/nginx/site/server.conf").contains(&format!("server_name {name};")));
    for route in ["/readyz", "/v1/me"] {
        let asked = format!("--connect-to {name}:443:127.0.0.1:8443 https://{name}{route}");
        assert!(machine.notes().contains(&asked), "{asked}:\n{}", machine.notes());
    }
    let state = machine.read("edge/state");
    assert!(state.contains("colour=blue") && state.contains("image=ballast:1.0"), "{state}");
    assert!(machine.read("edge/replicas.conf").contains("server api-blue:8080"));

    // Where somebody says so it is tried there, and the other colour is next.
    let output = machine.deploy(&[("VERSION", "1.1"), ("EDGE_URL", "https://elsewhere.example.com")]);
    assert!(output.status.success(), "{}", said(&output));
    let last = machine.notes();
    let last = last.lines().rfind(|line| line.starts_with("curl")).unwrap();
    assert!(
        last.ends_with(" https://elsewhere.example.com/v1/me") && !last.contains("--connect-to"),
        "{last}"
    );
    let state = machine.read("edge/state");
    assert!(state.contains("colour=green") && state.contains("previous=ballast:1.0"), "{state}");
}

#[test]
fn a_password_that_is_missing_or_weak_stops_it_before_anything_is_built_and_says_how_to_make_one() {
    let observed = ("COMPOSE_PROFILES", "edge,observability");
    let long = "0123456789abcdef01234567";
    for (settings, more, wanted) in [
        ("", ("BUILD", "true"), &["POSTGRES_PASSWORD is missing", "REDIS_PASSWORD is missing"][..]),
        (
            "POSTGRES_PASSWORD=short\nREDIS_PASSWORD=a23456789012345678901234\n",
            ("BUILD", "true"),
            &["POSTGRES_PASSWORD is too weak"],
        ),
        (
            "POSTGRES_PASSWORD=0123456789/bcdef01234567\n",
            ("REDIS_PASSWORD", long),
            &["POSTGRES_PASSWORD has characters"],
        ),
        (PASSWORDS, observed, &["GRAFANA_PASSWORD is missing"]),
    ] {
        let machine = Machine::new(settings);
        let output = machine.deploy(&[more]);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        for words in wanted.iter().chain(&["openssl rand -hex 24", "nothing was changed"]) {
            assert!(said.contains(words), "{words}: {said}");
        }
        assert_eq!(said.matches("  - ").count(), wanted.len(), "{said}");
        let notes = machine.notes();
        assert!(!notes.contains("docker build") && !notes.contains(" up "), "{notes}");
        assert!(!said.contains("short") && !said.contains("789/b"), "a password is shown: {said}");
    }
    let machine = Machine::new(&format!("{PASSWORDS}GRAFANA_PASSWORD={long}\n"));
    let output = machine.deploy(&[observed]);
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn what_a_registry_needs_is_asked_for_with_exit_code_2() {
    for (more, missing) in [
        (&[("USE_REGISTRY", "true"), ("VERSION", "1.4.0")][..], "REGISTRY"),
        (&[("USE_REGISTRY", "true"), ("VERSION", ""), ("REGISTRY", "ghcr.io/you")], "VERSION"),
    ] {
        let machine = Machine::new(PASSWORDS);
        let output = machine.deploy(more);
        assert_eq!(output.status.code(), Some(2), "{missing}: {}", said(&output));
        assert!(said(&output).contains("REGISTRY and VERSION"), "{}", said(&output));
    }
    let machine = Machine::new(PASSWORDS);
    let registry = [("USE_REGISTRY", "true"), ("REGISTRY", "ghcr.io/you"), ("VERSION", "1.4.0")];
    assert!(machine.deploy(&registry).status.success());
    assert!(machine.notes().contains("docker pull ghcr.io/you/ballast:1.4.0"), "{}", machine.notes());
    // Nothing pushes: the help says whose work that is.
    assert!(!machine.notes().contains("docker push"));
    let help = Command::new("bash").arg(path("deploy.sh")).arg("--help").output().unwrap();
    assert!(said(&help).contains("docker push"), "{}", said(&help));
}
