//! Noticing changes of the sources by looking at modification times once a second: works on every file system, in
//! containers and on network shares, and a few hundred files cost a millisecond.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_secs(1);
const WATCHED: [&str; 4] = ["crates", "migrations", "Cargo.toml", "Cargo.lock"];

/// Remembers how the sources looked.
#[derive(Debug)]
pub(crate) struct Watch {
    root: PathBuf,
    seen: u64,
    looked: Instant,
}

impl Watch {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), seen: fingerprint(root), looked: Instant::now() }
    }

    /// True once after each change, when the files have been quiet for a moment: editors and `git checkout` write many.
    pub(crate) fn changed(&mut self) -> bool {
        if self.looked.elapsed() < PERIOD {
            return false;
        }
        self.looked = Instant::now();
        let mut now = fingerprint(&self.root);
        if now == self.seen {
            return false;
        }
        loop {
            std::thread::sleep(Duration::from_millis(200));
            let next = fingerprint(&self.root);
            if next == now {
                break;
            }
            now = next;
        }
        self.seen = now;
        true
    }
}

fn fingerprint(root: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    for name in WATCHED {
        add(&root.join(name), &mut hasher);
    }
    hasher.finish()
}

fn add(path: &Path, hasher: &mut DefaultHasher) {
    let Ok(meta) = fs::metadata(path) else { return };
    if meta.is_dir() {
        let Ok(entries) = fs::read_dir(path) else { return };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            // Editors' swap files and the like are no sources.
            if !path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
                add(&path, hasher);
            }
        }
    } else {
        path.hash(hasher);
        meta.len().hash(hasher);
        meta.modified().ok().hash(hasher);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_noticed_once_and_hidden_files_are_not() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("crates/a/src")).unwrap();
        let mut watch = Watch::new(dir.path());
        let mut changed = || {
            watch.looked -= PERIOD;
            watch.changed()
        };
        assert!(!changed());
        fs::write(dir.path().join("crates/a/src/lib.rs"), "fn a() {}").unwrap();
        assert!(changed());
        assert!(!changed());
        fs::write(dir.path().join("crates/a/src/.lib.rs.swp"), "x").unwrap();
        assert!(!changed());
        fs::remove_file(dir.path().join("crates/a/src/lib.rs")).unwrap();
        assert!(changed());
    }
}
