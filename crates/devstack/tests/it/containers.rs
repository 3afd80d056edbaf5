//! Servers in containers, for a machine that has Docker and nothing else. Where the images are not there already the test
//! has nothing to say: a test must not fetch hundreds of megabytes.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use devstack::{Lifetime, Services, Spec, System, delete_data};

use crate::support::{open_dir, spec};

/// The Docker client, if its daemon has the images.
fn docker() -> Option<PathBuf> {
    let program = System::current().path.iter().map(|dir| dir.join("docker")).find(|path| path.exists())?;
    let mut look = Command::new(&program);
    let found = look
        .args(["image", "inspect", "postgres:17", "redis:8"])
        .output()
        .is_ok_and(|out| out.status.success());
    if !found {
        eprintln!("not tried: no Docker daemon that has postgres:17 and redis:8");
    }
    found.then_some(program)
}

#[test]
fn containers_serve_keep_their_data_and_leave_nothing_behind() {
    let Some(docker) = docker() else { return };
    let (dir, bin) = (open_dir(), open_dir());
    symlink(&docker, bin.path().join("docker")).unwrap();
    let id = format!("test-{}", std::process::id());
    let start = |lifetime| {
        let system = System { path: vec![bin.path().to_owned()], server_dirs: Vec::new(), terminal: false };
        Services::start(&Spec { system, lifetime, id: id.clone(), ..spec(dir.path()) }).unwrap()
    };
    let psql = |sql: &str| {
        let out = Command::new(&docker)
            .args([
                "exec",
                &format!("ballast-{id}-postgres"),
                "psql",
                "-U",
                "ballast",
                "-d",
                "ballast",
                "-tAc",
                sql,
            ])
            .output()
            .unwrap();
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    };
    let containers = || {
        let out = Command::new(&docker)
            .args(["ps", "-aq", "--filter", &format!("name=ballast-{id}")])
            .output()
            .unwrap();
        String::from_utf8_lossy(&out.stdout).lines().count()
    };

    let mut services = start(Lifetime::Keep);
    assert_eq!(containers(), 2);
    psql("CREATE TABLE kept AS SELECT 7 AS n");
    services.stop();
    assert_eq!(containers(), 0);

    // A lost password file must not lock us out of the volume.
    std::fs::remove_file(dir.path().join("docker-postgres-password")).unwrap();
    let services = start(Lifetime::Keep);
    assert_eq!(psql("SELECT n FROM kept"), "7");

    // As after kill -9 of the command that started them.
    let records = [services.postgres.record().unwrap(), services.redis.record().unwrap()];
    services.postgres.release();
    services.redis.release();
    for record in records {
        let record: devstack::Record = record.to_string().parse().unwrap();
        assert!(record.container.is_some());
        record.clean_up(Duration::from_secs(10));
        assert!(!record.id.is_alive());
    }
    assert_eq!(containers(), 0);
    delete_data(dir.path(), &id).unwrap();
    let volumes = Command::new(&docker).args(["volume", "ls", "-q"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&volumes.stdout).contains(&id));
}
