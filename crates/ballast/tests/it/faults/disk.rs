//! Case D7: the disk of Postgres is full. That of Redis is among the answers in [`super::redis`].

use std::{path::Path, process::Command};

use sqlx::{Connection as _, PgConnection};

use super::{STORED, Stand, sqlstate};

const JOB: &str = r#"{ "kind": "echo", "args": { "message": "x" } }"#;

async fn enqueue(stand: &Stand) -> (u16, String) {
    let request = stand.client.post(format!("{}/v1/jobs", stand.url)).bearer_auth(&stand.token);
    let answer = request.header("content-type", "application/json").body(JOB).send().await.unwrap();
    let status = answer.status().as_u16();
    if status == 503 {
        assert!(answer.headers().contains_key("retry-after"), "{:?}", answer.headers());
    }
    (status, answer.text().await.unwrap())
}

async fn expect_only_writes_to_fail(stand: &mut Stand) {
    let (status, body) = enqueue(stand).await;
    assert!(status == 503 && body.contains("database_unavailable"), "{status} {body}");
    assert!(!body.contains("53100") && !body.contains("space"), "{body}");
    for path in ["/livez", "/readyz", STORED] {
        assert_eq!(stand.status(path).await, 200, "{path}");
    }
    assert!(stand.api.is_running(), "{}", stand.api.output());
}

/// The error of a full disk, wherever this runs.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_full_disk_refuses_is_a_503_and_what_only_reads_goes_on() {
    let mut stand = Stand::start(&[]).await;
    assert_eq!(enqueue(&stand).await.0, 202);
    let mut admin = PgConnection::connect(&stand.services().database_url).await.unwrap();
    let full = "create function full_disk() returns trigger language plpgsql as $$
        begin raise exception 'could not extend file: No space left on device' using errcode = '53100'; end $$;
        create trigger full_disk before insert on job execute function full_disk()";
    sqlx::raw_sql(full).execute(&mut admin).await.unwrap();
    expect_only_writes_to_fail(&mut stand).await;
    sqlx::raw_sql("drop trigger full_disk on job").execute(&mut admin).await.unwrap();
    assert_eq!(enqueue(&stand).await.0, 202);
}

/// A file system of a few megabytes that only root can make; unmounted at the end.
struct TinyDisk(tempfile::TempDir);

impl TinyDisk {
    fn mount() -> Option<Self> {
        let dir = tempfile::TempDir::new().unwrap();
        let mount = |dir: &Path| {
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m,mode=0777", "tmpfs"]).arg(dir).output()
        };
        match mount(dir.path()) {
            Ok(output) if output.status.success() => Some(Self(dir)),
            _ => {
                eprintln!("skipped: no tmpfs can be mounted here (only root can)");
                None
            }
        }
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).output();
    }
}

/// A disk that is full.
#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_whose_disk_is_full_goes_on_reading_and_takes_writes_again_when_there_is_room() {
    let Some(disk) = TinyDisk::mount() else { return };
    let mut stand = Stand::start(&[]).await;
    assert_eq!(enqueue(&stand).await.0, 202);
    let mut admin = PgConnection::connect(&stand.services().database_url).await.unwrap();
    // A directory of Postgres's own, whoever it runs as.
    let place = disk.0.path().join("space");
    std::fs::create_dir(&place).unwrap();
    let owner = std::fs::metadata(
        sqlx::query_scalar::<_, String>("show data_directory").fetch_one(&mut admin).await.unwrap(),
    )
    .unwrap();
    let (uid, gid) =
        (std::os::unix::fs::MetadataExt::uid(&owner), std::os::unix::fs::MetadataExt::gid(&owner));
    std::os::unix::fs::chown(&place, Some(uid), Some(gid)).unwrap();
    let create = format!("create tablespace tiny location '{}'", place.display());
    sqlx::raw_sql(sqlx::AssertSqlSafe(create)).execute(&mut admin).await.unwrap();
    let fill = "create table filler (x text) tablespace tiny;
        alter table filler alter x set storage external;
        alter table job set tablespace tiny;
        create index job_args on job ((args::text)) tablespace tiny";
    sqlx::raw_sql(fill).execute(&mut admin).await.unwrap();
    let full = loop {
        let more = "insert into filler select repeat('x', 2000) from generate_series(1, 4)";
        if let Err(error) = sqlx::raw_sql(more).execute(&mut admin).await {
            break error;
        }
    };
    assert_eq!(sqlstate(&full).as_deref(), Some("53100"), "{full}");
    // What room is left in pages that are there already is used up before a file has to grow.
    let mut taken = 0;
    while enqueue(&stand).await.0 == 202 {
        taken += 1;
        assert!(taken < 2_000, "the disk is not full");
    }
    expect_only_writes_to_fail(&mut stand).await;
    sqlx::raw_sql("drop table filler").execute(&mut admin).await.unwrap();
    let room = async || enqueue(&stand).await.0 == 202;
    crate::support::eventually("there is room again", super::S(10), room).await;
}
