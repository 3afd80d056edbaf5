//! TLS to both stores and to an engine: certificates are verified, and a wrong one is refused.

use std::{os::unix::fs::PermissionsExt as _, path::Path, sync::Arc, time::Duration};

use sqlx::{AssertSqlSafe, Connection as _};
use test_support::OwnServices;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};

use crate::ai::{chat, open, read, whole};
use crate::support::{
    Certificates, Deployment, Process, TestApp, certificates, eventually, free_port, ready,
};

const CHAT: &str = "/v1/chat/completions";

/// Switches TLS on in a running Postgres. The server itself writes the files, so that they are its own and private.
async fn postgres_with_tls(url: &str, certificates: &Certificates) {
    let mut c = sqlx::PgConnection::connect(url).await.unwrap();
    let data: String = sqlx::query_scalar("show data_directory").fetch_one(&mut c).await.unwrap();
    for (file, pem) in [("server.crt", &certificates.certificate), ("server.key", &certificates.key)] {
        let lines: Vec<String> = pem.lines().map(|line| format!("('{line}')")).collect();
        let copy = format!(
            "copy (select * from (values {}) t(line)) to program 'umask 077; cat > \"{data}/{file}\"'",
            lines.join(",")
        );
        sqlx::raw_sql(AssertSqlSafe(copy)).execute(&mut c).await.unwrap();
    }
    sqlx::query("alter system set ssl = on").execute(&mut c).await.unwrap();
    sqlx::query("select pg_reload_conf()").execute(&mut c).await.unwrap();
    eventually("postgres speaks TLS", Duration::from_secs(5), async || {
        let url = format!("{url}?sslmode=require");
        sqlx::PgConnection::connect(&url).await.is_ok()
    })
    .await;
}

/// Opens a TLS port in a running Redis, and closes the plain one's meaning by not using it.
async fn redis_with_tls(url: &str, dir: &Path, certificates: &Certificates) -> String {
    let files = [
        ("tls-cert-file", &certificates.certificate),
        ("tls-key-file", &certificates.key),
        ("tls-ca-cert-file", &certificates.ca),
    ];
    let client = db::redis_client::Client::open(url).unwrap();
    let mut c = client.get_multiplexed_async_connection().await.unwrap();
    let port = free_port();
    let mut command = db::redis_client::cmd("CONFIG");
    command.arg("SET").arg("tls-auth-clients").arg("no");
    for (name, pem) in files {
        let path = dir.join(name);
        std::fs::write(&path, pem).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        command.arg(name).arg(path.to_str().unwrap());
    }
    command.arg("tls-port").arg(port);
    command.query_async::<()>(&mut c).await.unwrap();
    let plain: url::Url = url.parse().unwrap();
    let mut tls = plain.clone();
    tls.set_port(Some(port)).unwrap();
    tls.as_str().replacen("redis://", "rediss://", 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn both_stores_are_reached_over_verified_tls_and_an_unknown_issuer_is_refused() {
    runtime::install_crypto_provider();
    let services = OwnServices::start().await;
    // Where any server's user may read it.
    let dir = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir()
        .unwrap();
    let genuine = certificates("localhost");
    postgres_with_tls(&services.database_url, &genuine).await;
    let redis =
        redis_with_tls(&services.redis_url, dir.path(), &genuine).await.replace("127.0.0.1", "localhost");
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, &genuine.ca).unwrap();
    let other_ca = dir.path().join("other.pem");
    std::fs::write(&other_ca, certificates("localhost").ca).unwrap();

    let doctor = |ca: &Path, host: &str| {
        let database = services.database_url.replace("127.0.0.1", host);
        let database = format!("{database}?sslmode=verify-full&sslrootcert={}", ca.display());
        let redis = redis.replace("localhost", host);
        // REDIS: the operating system's trust store, which this variable replaces.
        let vars = [
            ("DATABASE_URL", database.as_str()),
            ("REDIS_URL", redis.as_str()),
            ("ENGINE_URL", "http://127.0.0.1:1/v1"),
            ("SSL_CERT_FILE", ca.to_str().unwrap()),
            ("DATABASE_POOL_SIZE", "2"),
        ];
        let output = Process::command(&["doctor", "--role", "worker"], &vars).output().unwrap();
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
    };
    let good = doctor(&ca, "localhost");
    assert!(good.contains("ok    postgres") && good.contains("ok    redis"), "{good}");
    let stranger = doctor(&other_ca, "localhost");
    assert!(stranger.contains("FAIL  postgres") && stranger.contains("FAIL  redis"), "{stranger}");
    assert!(stranger.contains("TLS"), "{stranger}");
    let wrong_name = doctor(&ca, "127.0.0.1");
    assert!(wrong_name.contains("FAIL  postgres") && wrong_name.contains("FAIL  redis"), "{wrong_name}");
}

/// Ends TLS on a port of its own, and passes everything on to `port`.
async fn tls_in_front_of(port: u16, certificates: &Certificates) -> u16 {
    let chain = vec![CertificateDer::from_pem_slice(certificates.certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(certificates.key.as_bytes()).unwrap();
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tls_port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut behind = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    let _ = tokio::io::copy_bidirectional(&mut stream, &mut behind).await;
                }
            });
        }
    });
    tls_port
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_is_reached_over_verified_tls_and_an_unknown_issuer_is_refused() {
    runtime::install_crypto_provider();
    let dir = tempfile::tempdir().unwrap();
    let genuine = certificates("localhost");
    let (ca, other_ca) = (dir.path().join("ca.pem"), dir.path().join("other.pem"));
    std::fs::write(&ca, &genuine.ca).unwrap();
    std::fs::write(&other_ca, certificates("localhost").ca).unwrap();
    let app = TestApp::start().await;
    let port = tls_in_front_of(app.engine.url().parse::<url::Url>().unwrap().port().unwrap(), &genuine).await;
    let url = |host: &str| format!("https://{host}:{port}/v1");
    let doctor = async |ca: &Path, host: &str| {
        let url = url(host);
        let ca = ca.to_str().unwrap().to_owned();
        let output = tokio::task::spawn_blocking(move || {
            let vars = [
                ("DATABASE_URL", "postgres://nobody@127.0.0.1:1/none"),
                ("REDIS_URL", "redis://127.0.0.1:1"),
                ("ENGINE_URL", url.as_str()),
                ("SSL_CERT_FILE", ca.as_str()),
            ];
            Process::command(&["doctor", "--role", "api"], &vars).output().unwrap()
        })
        .await
        .unwrap();
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
    };
    let good = doctor(&ca, "localhost").await;
    assert!(good.contains("ok    engine"), "{good}");
    for (ca, host) in [(&other_ca, "localhost"), (&ca, "127.0.0.1")] {
        let bad = doctor(ca, host).await;
        assert!(bad.contains("FAIL  engine") && bad.contains("TLS failed"), "{host}: {bad}");
    }
}

/// Streams and answers in one piece, one after the other on one connection, and a client that leaves.
#[tokio::test(flavor = "multi_thread")]
async fn streams_of_an_engine_pass_over_tls_and_its_connection_is_used_again() {
    runtime::install_crypto_provider();
    let dir = tempfile::tempdir().unwrap();
    let genuine = certificates("localhost");
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, &genuine.ca).unwrap();
    let stack = Deployment::new().await;
    let behind = stack.engine.url().parse::<url::Url>().unwrap().port().unwrap();
    let engine = format!("https://localhost:{}/v1", tls_in_front_of(behind, &genuine).await);
    let port = free_port();
    let _api = stack.start("api", port, &[("ENGINE_URL", &engine), ("SSL_CERT_FILE", ca.to_str().unwrap())]);
    ready(port).await;
    let user = stack.user_at(port).await;

    // One connection for the questions, and perhaps one for the health check.
    let long = chat("[[sim tokens=400 chunk-bytes=4096]] 漢字😀");
    let first = read(&user, CHAT, long.clone()).await;
    assert!(first.len() > 1_000_000 && first.ends_with("data: [DONE]\n\n"), "{}", first.len());
    let before = stack.engine.stats();
    for _ in 0..10 {
        assert!(read(&user, CHAT, long.clone()).await == first, "byte for byte");
        user.post(CHAT, whole(CHAT, "[[sim tokens=3]]")).await.expect(200);
        let slow = read(&user, CHAT, chat("[[sim tokens=5 token-interval-ms=20]]")).await;
        assert!(slow.ends_with("data: [DONE]\n\n"), "{slow}");
    }
    let after = stack.engine.stats();
    assert_eq!(after.completed - before.completed, 30);
    assert!(after.connections_total <= before.connections_total + 2, "{before:?} {after:?}");

    let mut left = open(&user, CHAT, chat("[[sim fault=stall:3]]")).await;
    left.chunk().await.unwrap().unwrap();
    drop(left);
    stack.engine.wait_for(Duration::from_secs(5), |stats| stats.cancelled == after.cancelled + 1).await;
}
