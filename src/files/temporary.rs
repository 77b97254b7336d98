//! A directory that goes with the process: removed at its end, and after a sudden end by the next process that makes
//! one. A lock says which ones are in use.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use crate::ids;

const PREFIX: &str = "onlooker-files-";
/// Another process may take a directory for abandoned between its making and its locking.
const TRIES: usize = 8;

pub(super) struct Temporary {
    path: PathBuf,
    _lock: File,
}

impl Temporary {
    pub(super) fn new() -> io::Result<Self> {
        let base = std::env::temp_dir();
        remove_abandoned(&base);
        for _ in 0..TRIES {
            let path = base.join(format!("{PREFIX}{}", ids::random_id()));
            DirBuilder::new().mode(0o700).create(&path)?;
            if let Some(lock) = locked(&path)
                && path.is_dir()
            {
                return Ok(Self { path, _lock: lock });
            }
        }
        Err(io::Error::other("no temporary directory could be kept"))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // What stays is found abandoned.
        let _: io::Result<()> = fs::remove_dir_all(&self.path);
    }
}

fn locked(path: &Path) -> Option<File> {
    let directory = File::open(path).ok()?;
    directory.try_lock().is_ok().then_some(directory)
}

fn remove_abandoned(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else { return };
    for entry in entries.flatten() {
        let named = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        // Not a link to a directory: what it points at is not ours.
        if named
            && entry.file_type().is_ok_and(|kind| kind.is_dir())
            && let Some(_lock) = locked(&entry.path())
        {
            let _: io::Result<()> = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn abandoned_directories_go_and_others_stay() {
        let abandoned = std::env::temp_dir().join(format!("{PREFIX}{}", ids::random_id()));
        fs::create_dir(&abandoned).unwrap();
        fs::write(abandoned.join("content"), "x").unwrap();
        let first = Temporary::new().unwrap();
        assert!(!abandoned.exists());
        let second = Temporary::new().unwrap();
        assert!(first.path().is_dir() && second.path().is_dir());
        let path = first.path().to_owned();
        drop(first);
        assert!(!path.exists());
    }
}
