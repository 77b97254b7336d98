//! Files on the disk: `<id>` is a content, `<id>.json` what is known of it. The metadata is written under another name
//! and renamed, after the content is complete; it is removed before the content is.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock},
};

use serde::{Deserialize, Serialize};

use super::{FileId, FileInfo, temporary::Temporary};

const METADATA: &str = "json";
const UNFINISHED: &str = "json.new";

/// Where files are. The directory is made when the first file is.
pub(super) struct Place {
    directory: OnceLock<Directory>,
    /// Held by who makes it.
    making: Mutex<()>,
    kept: Option<PathBuf>,
    sync: bool,
}

enum Directory {
    Kept(PathBuf),
    Temporary(Temporary),
}

/// The stored form of what is known.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    project: String,
    name: String,
    size: u64,
    created_at: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    environment: Option<String>,
}

impl Place {
    /// `kept` in this directory, or in a temporary one. `sync`: what is written is on the disk before it counts.
    pub(super) fn new(kept: Option<PathBuf>, sync: bool) -> Self {
        Self { directory: OnceLock::new(), making: Mutex::default(), kept, sync }
    }

    pub(super) fn syncs(&self) -> bool {
        self.sync
    }

    /// Every file that is whole. The rest of what only a killed process can have left is removed.
    pub(super) fn load(&self) -> io::Result<Vec<FileInfo>> {
        let Some(directory) = self.kept.as_ref().filter(|directory| directory.is_dir()) else { return Ok(Vec::new()) };
        let mut left = HashMap::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if let Some((id, part)) = entry.file_name().to_str().and_then(part_of) {
                left.entry(id).or_insert_with(HashSet::new).insert(part);
            }
        }
        let (mut files, mut incomplete) = (Vec::new(), 0);
        for (id, parts) in left {
            let whole = parts.contains(&Part::Metadata).then(|| read_whole(directory, &id)).transpose()?.flatten();
            let keeps = |part: &Part| whole.is_some() && *part != Part::Unfinished;
            for part in parts.iter().filter(|part| !keeps(part)) {
                remove_if_there(&part.path(directory, &id))?;
            }
            incomplete += usize::from(whole.is_none());
            files.extend(whole);
        }
        if incomplete > 0 {
            tracing::info!(files = incomplete, "uploads that a killed process left half done are removed");
        }
        Ok(files)
    }

    /// A new, empty content.
    pub(super) fn create(&self, id: &FileId) -> io::Result<File> {
        private().open(Part::Content.path(self.made()?, id))
    }

    pub(super) fn read(&self, id: &FileId) -> io::Result<File> {
        File::open(Part::Content.path(self.directory().ok_or(io::ErrorKind::NotFound)?, id))
    }

    /// Writes what is known of a file, over what was. It is there after a loss of power once [`Place::sync`] is done.
    pub(super) fn write(&self, info: &FileInfo) -> io::Result<()> {
        let directory = self.made()?;
        let metadata = Metadata {
            project: info.project.to_string(),
            name: info.name.clone(),
            size: info.size,
            created_at: info.created_at,
            environment: info.environment.clone(),
        };
        let unfinished = Part::Unfinished.path(directory, &info.id);
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        file.write_all(&serde_json::to_vec(&metadata)?)?;
        if self.sync {
            file.sync_all()?;
        }
        fs::rename(&unfinished, Part::Metadata.path(directory, &info.id))
    }

    /// Names that were given and taken are on the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        match self.directory() {
            Some(directory) if self.sync => File::open(directory)?.sync_all(),
            _ => Ok(()),
        }
    }

    /// Removes a file, or what there is of one.
    pub(super) fn remove(&self, id: &FileId) -> io::Result<()> {
        let Some(directory) = self.directory() else { return Ok(()) };
        // After a loss of power a content without metadata is no file; metadata without content would be a lie.
        for part in [Part::Unfinished, Part::Metadata, Part::Content] {
            remove_if_there(&part.path(directory, id))?;
        }
        Ok(())
    }

    fn directory(&self) -> Option<&Path> {
        match self.directory.get() {
            Some(Directory::Kept(path)) => Some(path),
            Some(Directory::Temporary(temporary)) => Some(temporary.path()),
            None => self.kept.as_deref(),
        }
    }

    fn made(&self) -> io::Result<&Path> {
        if self.directory.get().is_none() {
            let _making = self.making.lock().expect("no holder panics");
            if self.directory.get().is_none() {
                let _ = self.directory.set(self.make()?);
            }
        }
        self.directory().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn make(&self) -> io::Result<Directory> {
        let Some(kept) = &self.kept else { return Temporary::new().map(Directory::Temporary) };
        DirBuilder::new().recursive(true).mode(0o700).create(kept)?;
        if let Some(parent) = kept.parent().filter(|_| self.sync) {
            File::open(parent)?.sync_all()?;
        }
        Ok(Directory::Kept(kept.clone()))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Part {
    Content,
    Metadata,
    Unfinished,
}

impl Part {
    fn path(self, directory: &Path, id: &FileId) -> PathBuf {
        let path = directory.join(id.as_str());
        match self {
            Self::Content => path,
            Self::Metadata => path.with_extension(METADATA),
            Self::Unfinished => path.with_extension(UNFINISHED),
        }
    }
}

/// Which part of which file a name is; `None` for what was not made here.
fn part_of(name: &str) -> Option<(FileId, Part)> {
    let (id, part) = match name.split_once('.') {
        None => (name, Part::Content),
        Some((id, METADATA)) => (id, Part::Metadata),
        Some((id, UNFINISHED)) => (id, Part::Unfinished),
        Some(_) => return None,
    };
    Some((id.parse().ok()?, part))
}

/// A file with metadata that can be read and all of its content.
fn read_whole(directory: &Path, id: &FileId) -> io::Result<Option<FileInfo>> {
    let Ok(metadata) = serde_json::from_slice::<Metadata>(&fs::read(Part::Metadata.path(directory, id))?) else {
        return Ok(None);
    };
    let content = fs::metadata(Part::Content.path(directory, id));
    Ok(content.is_ok_and(|content| content.len() == metadata.size).then(|| FileInfo {
        id: id.clone(),
        project: metadata.project.into(),
        name: metadata.name,
        size: metadata.size,
        created_at: metadata.created_at,
        environment: metadata.environment,
    }))
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    options
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
