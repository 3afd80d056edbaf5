//! The checkout and the directory for everything that belongs to it but is not source.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::unistd::Uid;

use crate::Unavailable;
use crate::files::{check_writable, ensure_dir, fnv1a};
use crate::system::{can_enter, server_account};

/// The checkout that a command works on.
#[derive(Debug, Clone)]
pub struct Project {
    root: PathBuf,
}

impl Project {
    /// The project around the current directory: the next parent with a `Cargo.lock`.
    pub fn find() -> Result<Self> {
        let here = std::env::current_dir().context("the current directory is gone")?;
        Self::containing(&here)
    }

    /// The project around `dir`.
    pub fn containing(dir: &Path) -> Result<Self> {
        let root = dir.ancestors().find(|dir| dir.join("Cargo.lock").is_file());
        let root = root
            .with_context(|| format!("{} is not inside the project (no Cargo.lock above)", dir.display()))?;
        Ok(Self { root: root.to_owned() })
    }

    /// The top directory of the checkout.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A short name that differs between checkouts.
    pub fn id(&self) -> String {
        let root = self.root.canonicalize().unwrap_or_else(|_| self.root.clone());
        format!("{:08x}", fnv1a(&[root.as_os_str().as_encoded_bytes()]) >> 32)
    }

    /// The directory for data, logs and state, created when it is not there: `DEVSTACK_DIR` when set, otherwise `.data`
    /// in the checkout. As root the servers run as another user; where that user cannot reach the checkout (`/root` is
    /// closed), it is a directory under `/var/tmp` named after the checkout.
    pub fn data_dir(&self) -> Result<PathBuf> {
        if let Some(dir) = std::env::var_os("DEVSTACK_DIR").filter(|dir| !dir.is_empty()) {
            let dir = self.root.join(dir);
            ensure_dir(&dir, 0o755, None)?;
            check_writable(&dir)?;
            return Ok(dir);
        }
        let dir = match server_account()? {
            Some(account) if !can_enter(&self.root, &account) => {
                Path::new("/var/tmp").join(format!("ballast-{}", self.id()))
            }
            _ => self.root.join(".data"),
        };
        ensure_dir(&dir, 0o755, None)?;
        // Everybody can create names in /var/tmp: a directory that someone else prepared is not ours to trust.
        let meta = fs::symlink_metadata(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
        if !meta.is_dir() || (Uid::effective().is_root() && dir.starts_with("/var/tmp") && meta.uid() != 0) {
            let text = format!(
                "{} exists but belongs to someone else\n  - remove it, or\n  - name another directory: DEVSTACK_DIR=/some/directory",
                dir.display()
            );
            return Err(Unavailable(text).into());
        }
        check_writable(&dir)?;
        Ok(dir)
    }

    /// A fingerprint of all files in a directory of this project, names and contents: changes with any of them.
    pub fn fingerprint(&self, dir: &str) -> Result<String> {
        fingerprint(&self.root.join(dir))
    }
}

/// See [`Project::fingerprint`].
pub fn fingerprint(dir: &Path) -> Result<String> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    let mut hash = 0_u64;
    for file in files {
        let content = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.file_name().unwrap_or_default().as_encoded_bytes();
        hash = fnv1a(&[&hash.to_le_bytes(), name, &content]);
    }
    Ok(format!("{hash:016x}"))
}
