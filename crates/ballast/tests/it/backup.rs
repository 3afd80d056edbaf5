//! deploy/backup/backup.sh against a real Postgres, a bucket that speaks S3's language, and the real binary: a dump is taken while
//! people go on writing, damaged ones are told, and the drill restores one and logs in.

use std::{
    collections::BTreeMap,
    path::Path,
    process::Output,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Bytes,
    http::{HeaderMap, Method, StatusCode, Uri},
};
use sqlx::AssertSqlSafe;
use tokio::net::TcpListener;

use crate::support::{PASSWORD, TestApp};

const KEY_ID: &str = "backup-key";
const SECRET: &str = "canary-bucket-secret";

type Objects = Arc<Mutex<BTreeMap<String, Bytes>>>;

/// A bucket: what was put can be got and listed by whoever signs as `KEY_ID` (the signature itself is S3's to check).
struct Bucket {
    endpoint: String,
    objects: Objects,
}

fn signed(headers: &HeaderMap) -> bool {
    let authorization =
        headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
    authorization.starts_with(&format!("AWS4-HMAC-SHA256 Credential={KEY_ID}/"))
        && authorization.contains("/eu-test-1/s3/")
}

/// `PUT /backups/KEY`, `GET /backups/KEY` and `GET /backups/?list-type=2&prefix=...`.
fn serve(
    objects: &Objects,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<Bytes, StatusCode> {
    let key = uri.path().strip_prefix("/backups/").ok_or(StatusCode::NOT_FOUND)?;
    if !signed(headers) {
        return Err(StatusCode::FORBIDDEN);
    }
    let mut objects = objects.lock().unwrap();
    if method == Method::PUT {
        objects.insert(key.to_owned(), body);
        return Ok(Bytes::new());
    }
    if !key.is_empty() {
        return objects.get(key).cloned().ok_or(StatusCode::NOT_FOUND);
    }
    let prefix = uri
        .query()
        .and_then(|query| query.strip_prefix("list-type=2&prefix="))
        .ok_or(StatusCode::BAD_REQUEST)?;
    let prefix = prefix.replace("%2F", "/");
    let mut list = "<?xml version=\"1.0\"?><ListBucketResult>".to_owned();
    for key in objects.keys().filter(|key| key.starts_with(&prefix)) {
        list.push_str(&["<Contents><Key>", key, "</Key></Contents>"].concat());
    }
    Ok((list + "</ListBucketResult>").into())
}

impl Bucket {
    async fn start() -> Self {
        let objects = Objects::default();
        let shared = objects.clone();
        let router =
            Router::new().fallback(async move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| {
                serve(&shared, &method, &uri, &headers, body)
            });
        let router = router.layer(axum::extract::DefaultBodyLimit::disable());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { endpoint, objects }
    }

    fn keys(&self) -> Vec<String> {
        self.objects.lock().unwrap().keys().cloned().collect()
    }
}

/// Runs the script as its image does: Postgres's programs and ballast on PATH.
async fn backup(
    bucket: &Bucket,
    app: &TestApp,
    arguments: &[&str],
    more: &[(&str, &str)],
) -> (Output, String) {
    let programs: String = sqlx::query_scalar("select setting from pg_config() where name = 'BINDIR'")
        .fetch_one(app.database.pool())
        .await
        .unwrap();
    let own = Path::new(env!("CARGO_BIN_EXE_ballast")).parent().unwrap().to_str().unwrap();
    let mut command = std::process::Command::new("bash");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/backup/backup.sh")).args(arguments);
    command
        .env_clear()
        .env("PATH", format!("{programs}:{own}:{}", std::env::var("PATH").unwrap()))
        .env("LC_ALL", "C.UTF-8");
    command
        .env("DATABASE_URL", app.database.url())
        .env("S3_ENDPOINT", &bucket.endpoint)
        .env("S3_BUCKET", "backups");
    command.env("S3_ACCESS_KEY_ID", KEY_ID).env("S3_SECRET_ACCESS_KEY", SECRET).env("S3_REGION", "eu-test-1");
    command.envs(more.iter().copied());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!said.contains(SECRET), "{said}");
    (output, said)
}

/// Case D6.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_taken_verified_restored_and_logged_in_on() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let bucket = Bucket::start().await;
    let drill = [("DRILL_EMAIL", user.email.as_str()), ("DRILL_PASSWORD", PASSWORD)];

    let (output, said) = backup(&bucket, &app, &["drill"], &drill).await;
    assert!(!output.status.success() && said.contains("there is no backup"), "{said}");

    let (output, said) = backup(&bucket, &app, &["dump"], &[]).await;
    assert!(output.status.success(), "{said}");
    let keys = bucket.keys();
    assert_eq!(keys.len(), 2, "{keys:?}");
    let name = keys[0].strip_prefix("ballast/").unwrap().strip_suffix(".dump").unwrap().to_owned();

    let (output, said) = backup(&bucket, &app, &["list"], &[]).await;
    assert!(output.status.success() && said.trim() == name, "{said}");
    let (output, said) = backup(&bucket, &app, &["verify"], &[]).await;
    assert!(output.status.success() && said.contains("is whole"), "{said}");

    let (output, said) = backup(&bucket, &app, &["drill", &name], &drill).await;
    assert!(output.status.success(), "{said}");
    for part in ["rows, as in the manifest", "logged in on the restored data", "RTO ", "RPO "] {
        assert!(said.contains(part), "{said}");
    }
    assert!(!said.contains(PASSWORD), "{said}");
    let rto = said.split_once("RTO ").unwrap().1.split_once(" s").unwrap().0;
    assert!(rto.parse::<u64>().unwrap() < 300, "{said}");

    // A wrong password is no proof.
    let wrong = [("DRILL_EMAIL", user.email.as_str()), ("DRILL_PASSWORD", "not the password")];
    let (output, said) = backup(&bucket, &app, &["drill"], &wrong).await;
    assert!(!output.status.success() && said.contains("answered with 401"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_backup_is_told_and_a_database_with_tables_is_not_restored_into() {
    let app = TestApp::start().await;
    let bucket = Bucket::start().await;
    let (output, said) = backup(&bucket, &app, &["dump"], &[]).await;
    assert!(output.status.success(), "{said}");

    let target = [("RESTORE_DATABASE_URL", app.database.url())];
    let (output, said) = backup(&bucket, &app, &["restore"], &target).await;
    assert!(!output.status.success() && said.contains("must be empty"), "{said}");

    // Into an empty one, with the same rows.
    let empty = test_support::TestDatabase::empty().await;
    let (output, said) = backup(&bucket, &app, &["restore"], &[("RESTORE_DATABASE_URL", empty.url())]).await;
    assert!(output.status.success(), "{said}");
    let tables = "select count(*) from pg_tables where schemaname = 'public'";
    let count =
        async |pool| sqlx::query_scalar::<_, i64>(AssertSqlSafe(tables)).fetch_one(pool).await.unwrap();
    assert_eq!(count(empty.pool()).await, count(app.database.pool()).await);

    // One byte is enough.
    {
        let mut objects = bucket.objects.lock().unwrap();
        // The dump is first: its manifest has the same name, and `.manifest` behind it.
        let dump = objects.values_mut().next().unwrap();
        let mut bytes = dump.to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        *dump = bytes.into();
    }
    let (output, said) = backup(&bucket, &app, &["verify"], &[]).await;
    assert!(!output.status.success() && said.contains("checksum is wrong"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_backup_lacks_is_named_and_nothing_is_stored() {
    let app = TestApp::start().await;
    let bucket = Bucket::start().await;
    let (output, said) = backup(&bucket, &app, &["dump"], &[("S3_BUCKET", "")]).await;
    assert!(output.status.code() == Some(2) && said.contains("not set: S3_BUCKET"), "{said}");
    let (output, said) = backup(&bucket, &app, &["drill"], &[]).await;
    assert!(!output.status.success(), "{said}");
    let (output, said) =
        backup(&bucket, &app, &["dump"], &[("DATABASE_URL", "postgres://nobody@127.0.0.1:1/none")]).await;
    assert!(!output.status.success(), "{said}");
    let (output, said) = backup(&bucket, &app, &["dump"], &[("S3_ACCESS_KEY_ID", "somebody")]).await;
    assert!(!output.status.success() && said.contains("403"), "{said}");
    assert!(bucket.keys().is_empty());
}
