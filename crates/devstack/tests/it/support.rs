//! A directory that the servers' account can reach, and specs for it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use devstack::{Install, Lifetime, Services, Spec, System};
use nix::unistd::{Uid, User};
use tempfile::TempDir;

/// A temporary directory that every user may enter, as those of a machine's people usually are.
pub(crate) fn open_dir() -> TempDir {
    tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir().unwrap()
}

pub(crate) fn spec(dir: &Path) -> Spec<'static> {
    Spec {
        dir: dir.to_owned(),
        id: "devstack-test".to_owned(),
        lifetime: Lifetime::Keep,
        install: Install::Never,
        system: System { terminal: false, ..System::current() },
        database_url: None,
        redis_url: None,
        say: &|_| {},
        cancelled: &|| false,
    }
}

pub(crate) fn start(dir: &Path) -> Services {
    Services::start(&spec(dir)).unwrap()
}

/// The account that servers run as when root starts them.
pub(crate) fn server_user() -> User {
    if !Uid::effective().is_root() {
        return User::from_uid(Uid::effective()).unwrap().unwrap();
    }
    ["postgres", "nobody"].into_iter().find_map(|name| User::from_name(name).unwrap()).unwrap()
}

/// An executable shell script.
pub(crate) fn script(path: &Path, body: &str) -> PathBuf {
    fs::write(path, format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_owned()
}
