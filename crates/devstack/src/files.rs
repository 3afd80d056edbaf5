//! Directories, private files and the lock: everything that has to say clearly why it cannot be written.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use crate::Unavailable;
use crate::system::Account;

/// Creates a directory (and what leads to it) that `owner` owns; `None`: the current user.
pub(crate) fn ensure_dir(path: &Path, mode: u32, owner: Option<&Account>) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|error| not_writable(parent, &error))?;
    }
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(error) => return Err(not_writable(path, &error)),
    }
    give_to(path, owner)
}

/// Fails with the ways out when nothing can be written into `dir`.
pub(crate) fn check_writable(dir: &Path) -> Result<()> {
    // Several threads of a process may try at once, and none may remove another's file.
    static PROBES: AtomicU32 = AtomicU32::new(0);
    let number = PROBES.fetch_add(1, Ordering::Relaxed);
    let probe = dir.join(format!(".probe-{}-{number}", std::process::id()));
    fs::write(&probe, b"").map_err(|error| not_writable(dir, &error))?;
    fs::remove_file(&probe).with_context(|| format!("cannot remove {}", probe.display()))
}

fn not_writable(path: &Path, error: &std::io::Error) -> anyhow::Error {
    let mut text = format!("cannot write to {}: {error}\n", path.display());
    text.push_str("  - make the directory writable for this user, or free some space on its disk, or\n");
    text.push_str("  - name another one: DEVSTACK_DIR=/some/writable/directory");
    Unavailable(text).into()
}

fn give_to(path: &Path, owner: Option<&Account>) -> Result<()> {
    let Some(account) = owner else { return Ok(()) };
    let meta = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    if meta.uid() == account.uid.as_raw() {
        return Ok(());
    }
    nix::unistd::chown(path, Some(account.uid), Some(account.gid))
        .with_context(|| format!("cannot give {} to {}", path.display(), account.name))
}

/// Writes a file that only `owner` can read. Created with that mode, never tightened afterwards.
pub(crate) fn write_private(path: &Path, content: &str, owner: Option<&Account>) -> Result<()> {
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| not_writable(path, &error))?;
    file.write_all(content.as_bytes()).map_err(|error| not_writable(path, &error))?;
    give_to(path, owner)
}

/// Replaces a file, readable for its owner only, in one step: a reader sees the old or the new content, never half.
pub fn write_atomic(path: &Path, content: &str) -> Result<()> {
    let next = path.with_extension(format!("next-{}", std::process::id()));
    write_private(&next, content, None)?;
    fs::rename(&next, path).map_err(|error| not_writable(path, &error))
}

/// 48 hexadecimal digits from the kernel.
pub(crate) fn random_password() -> Result<String> {
    use std::fmt::Write as _;
    let mut bytes = [0_u8; 24];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .context("cannot read /dev/urandom")?;
    let mut text = String::new();
    for byte in bytes {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
    }
    Ok(text)
}

/// The password kept in `path`, made on first use.
pub(crate) fn password(path: &Path, owner: Option<&Account>) -> Result<String> {
    match fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
        _ => {
            let fresh = random_password()?;
            write_private(path, &fresh, owner)?;
            Ok(fresh)
        }
    }
}

/// The last `count` lines of a log, from byte `offset` on.
pub(crate) fn tail(path: &Path, offset: u64, count: usize) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
    let text = String::from_utf8_lossy(&bytes[start..]);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// An exclusive lock on a file, held until dropped; the kernel releases it when the process dies in whatever way.
#[derive(Debug)]
pub struct Lock {
    _file: File,
    path: PathBuf,
}

impl Lock {
    /// The lock, or `None` when another process holds it.
    pub fn try_acquire(path: &Path) -> Result<Option<Self>> {
        let file = Self::open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file, path: path.to_owned() })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock {}", path.display()))
            }
        }
    }

    /// Waits for the lock.
    pub fn acquire(path: &Path) -> Result<Self> {
        let file = Self::open(path)?;
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(Self { _file: file, path: path.to_owned() })
    }

    fn open(path: &Path) -> Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(|error| not_writable(path, &error))
    }

    /// The locked file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// FNV-1a, 64 bits: short stable names out of paths and file contents. Not for security.
pub(crate) fn fnv1a(parts: &[&[u8]]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        // The length keeps ("ab", "c") apart from ("a", "bc").
        for byte in part.iter().copied().chain(part.len().to_le_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_threads_may_try_one_directory_at_once() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| (0..200).try_for_each(|_| check_writable(dir.path()))))
                .collect();
            for thread in threads {
                thread.join().unwrap().unwrap();
            }
        });
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left there");
    }
}
