//! Files that clients upload for their tasks: a bounded store on the disk, in the data directory or, when nothing is
//! kept, in a directory that goes with the process.
//!
//! Promises:
//! * A file is there from the moment its metadata is on the disk, which is written last and by renaming. What a killed
//!   process left besides is removed at the next start.
//! * A file belongs to a project. Without an environment it is an orphan, and goes when its time is over; with one it
//!   stays until it is deleted.
//! * What is counted against the bounds is counted before it is written, also while several uploads run.
//! * Names and contents are never logged.

mod name;
mod place;
mod temporary;

use std::{
    collections::{BTreeSet, HashMap},
    io,
    path::PathBuf,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use time::OffsetDateTime;
use tokio::{io::AsyncWriteExt as _, sync::Notify};
use tokio_util::sync::CancellationToken;

use crate::{
    clock,
    config::{Config, Durability},
    ids::{self, Project},
};
use place::Place;

/// Files in all: each has its place in memory.
const FILES: usize = 100_000;
/// What a file costs beside its content: its metadata, and what the disk rounds up to.
const FILE_OVERHEAD: u64 = 8 * 1024;
/// After a removal that failed, the next one.
const RETRY: Duration = Duration::from_secs(60);

/// A file's id: 20 characters `[a-z0-9]`, so that it is a name on the disk as it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(Box<str>);

impl FileId {
    fn random() -> Self {
        Self(ids::random_id().into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for FileId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let is_one = text.len() == 20 && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        is_one.then(|| Self(text.into())).ok_or(())
    }
}

/// What is known of a file.
#[derive(Clone)]
pub struct FileInfo {
    pub id: FileId,
    pub project: Project,
    /// As the client called it, without what could do harm; at most 255 bytes.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Milliseconds of wall time since 1970.
    pub created_at: u64,
    /// None: an orphan.
    pub environment: Option<String>,
}

/// Why a file is not taken.
#[derive(Debug, thiserror::Error)]
pub enum NotStored {
    #[error("a file may have at most {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("there is no room for more files")]
    Full,
    #[error("the disk did not take the file")]
    Disk(#[from] io::Error),
}

/// Why files are not promoted.
#[derive(Debug, thiserror::Error)]
pub enum NotPromoted {
    /// The first that is not there, or no longer.
    #[error("a file does not exist")]
    Missing(String),
    #[error("the disk did not take it")]
    Disk(#[from] io::Error),
}

/// Where files are kept and how much of them.
#[derive(Clone, Debug)]
pub struct FilesOptions {
    /// None: in a temporary directory, for as long as the process lives.
    pub directory: Option<PathBuf>,
    pub durability: Durability,
    /// Of one file.
    pub file_bytes: u64,
    /// Of all together.
    pub total_bytes: u64,
    /// How long an orphan is kept.
    pub orphan: Duration,
}

impl From<&Config> for FilesOptions {
    fn from(config: &Config) -> Self {
        Self {
            directory: config.data.directory().map(|data| data.join("files")),
            durability: config.data.durability,
            file_bytes: config.webrun.file_bytes as u64,
            total_bytes: config.webrun.files_bytes_total as u64,
            orphan: config.webrun.orphan_file,
        }
    }
}

/// The store. Cheap to clone.
#[derive(Clone)]
pub struct Files(Arc<Store>);

struct Store {
    place: Place,
    file_bytes: u64,
    total_bytes: u64,
    /// Milliseconds.
    orphan: u64,
    state: Mutex<State>,
    /// Held by who changes metadata on the disk, on a thread that may block: a promotion cannot bring back what a
    /// deletion has just removed.
    writing: Mutex<()>,
    /// The oldest orphan may be another one.
    orphans_changed: Notify,
}

#[derive(Default)]
struct State {
    files: HashMap<FileId, FileInfo>,
    /// By age.
    orphans: BTreeSet<(u64, FileId)>,
    /// Of files and of what is being uploaded.
    taken: Taken,
}

#[derive(Clone, Copy, Default)]
struct Taken {
    files: usize,
    bytes: u64,
}

impl State {
    fn insert(&mut self, info: FileInfo) {
        if info.environment.is_none() {
            self.orphans.insert((info.created_at, info.id.clone()));
        }
        self.files.insert(info.id.clone(), info);
    }

    fn remove(&mut self, id: &FileId) {
        let Some(info) = self.files.remove(id) else { return };
        self.orphans.remove(&(info.created_at, info.id));
        self.taken.files -= 1;
        self.taken.bytes -= info.size + FILE_OVERHEAD;
    }
}

impl Files {
    /// Reads what is there, and removes what a killed process left half done.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub async fn open(options: FilesOptions) -> io::Result<Self> {
        blocking(move || Self::open_now(options)).await
    }

    fn open_now(options: FilesOptions) -> io::Result<Self> {
        let sync = options.directory.is_some() && options.durability == Durability::Fsync;
        let place = Place::new(options.directory, sync);
        let mut state = State::default();
        for mut info in place.load()? {
            // A clock that was wrong keeps no orphan for longer than its time.
            info.created_at = info.created_at.min(now());
            state.taken.files += 1;
            state.taken.bytes += info.size + FILE_OVERHEAD;
            state.insert(info);
        }
        Ok(Self(Arc::new(Store {
            place,
            file_bytes: options.file_bytes,
            total_bytes: options.total_bytes,
            orphan: u64::try_from(options.orphan.as_millis()).unwrap_or(u64::MAX),
            state: Mutex::new(state),
            writing: Mutex::default(),
            orphans_changed: Notify::new(),
        })))
    }

    /// Removes orphans when their time is over, until `stop`.
    pub async fn expire(self, stop: CancellationToken) {
        loop {
            let wait = self.0.next_expiry().map_or(Duration::MAX, |at| Duration::from_millis(at.saturating_sub(now())));
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.0.orphans_changed.notified() => continue,
                () = tokio::time::sleep(wait) => {}
            }
            let store = Arc::clone(&self.0);
            let removed = blocking(move || store.remove_expired()).await;
            if let Err(error) = removed {
                tracing::warn!(%error, "files whose time is over cannot be removed; tried again later");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(RETRY) => {}
                }
            }
        }
    }

    /// Bytes that could be stored now.
    pub fn room(&self) -> u64 {
        self.0.total_bytes.saturating_sub(self.0.state().taken.bytes)
    }

    /// Begins a file. What the client calls it is cleaned here.
    ///
    /// # Errors
    /// There is no room, or the disk refuses.
    pub async fn begin(&self, name: &str) -> Result<Upload, NotStored> {
        let mut room = Room { store: Arc::clone(&self.0), taken: Taken::default() };
        room.take_place()?;
        // Made before the file is: whatever ends this early, nothing of it stays.
        let content = Content { id: FileId::random(), store: Arc::clone(&self.0), stays: false };
        let (file, content) = blocking(move || (content.store.place.create(&content.id), content)).await;
        let file = file?;
        let writer = tokio::fs::File::from_std(file);
        Ok(Upload { name: name::cleaned(name), size: 0, writer, content, room })
    }

    /// Makes files of uploads: all of them or, after an error, none.
    ///
    /// Cancel safety: once begun it goes to its end.
    ///
    /// # Errors
    /// The disk refuses.
    pub async fn keep(
        &self,
        project: &Project,
        environment: Option<&str>,
        uploads: Vec<Uploaded>,
    ) -> Result<Vec<FileInfo>, NotStored> {
        let store = Arc::clone(&self.0);
        let (project, environment) = (Arc::clone(project), environment.map(str::to_owned));
        Ok(blocking(move || store.keep(&project, environment.as_deref(), uploads)).await?)
    }

    /// A file, whosever it is.
    pub fn get(&self, id: &str) -> Option<FileInfo> {
        let id = id.parse().ok()?;
        self.0.state().files.get(&id).cloned()
    }

    /// Whether a project has all these files.
    ///
    /// # Errors
    /// The first that it has not.
    pub fn known(&self, project: &str, ids: &[String]) -> Result<(), String> {
        let state = self.0.state();
        match ids.iter().find(|id| state.of(project, id).is_none()) {
            Some(missing) => Err(missing.clone()),
            None => Ok(()),
        }
    }

    /// Moves those of the files that are orphans into an environment; they then stay until they are deleted. Repeating
    /// it changes nothing.
    ///
    /// # Errors
    /// A file is missing: nothing is promoted. The disk refuses: those before it are.
    pub async fn promote(&self, project: &str, ids: &[String], environment: &str) -> Result<(), NotPromoted> {
        self.known(project, ids).map_err(NotPromoted::Missing)?;
        let store = Arc::clone(&self.0);
        let (project, ids, environment) = (project.to_owned(), ids.to_vec(), environment.to_owned());
        blocking(move || ids.iter().try_for_each(|id| store.promote(&project, id, &environment))).await
    }

    /// The files of an environment, oldest first.
    pub fn of_environment(&self, project: &str, environment: &str) -> Vec<FileInfo> {
        let state = self.0.state();
        let fits = |info: &&FileInfo| *info.project == *project && info.environment.as_deref() == Some(environment);
        let mut files: Vec<_> = state.files.values().filter(fits).cloned().collect();
        drop(state);
        files.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        files
    }

    /// Removes a file of an environment; false where there is none.
    ///
    /// # Errors
    /// The disk refuses; the file may then be there or not after a restart.
    pub async fn delete(&self, project: &str, environment: &str, id: &str) -> io::Result<bool> {
        let info = self.get(id).filter(|info| *info.project == *project);
        let Some(info) = info.filter(|info| info.environment.as_deref() == Some(environment)) else { return Ok(false) };
        let store = Arc::clone(&self.0);
        blocking(move || store.remove(&info.id)).await
    }

    /// Opens a file's content; `None` when it is gone. Who reads on keeps it even when it is deleted meanwhile.
    ///
    /// # Errors
    /// The disk refuses.
    pub async fn read(&self, id: &FileId) -> io::Result<Option<tokio::fs::File>> {
        let (store, id) = (Arc::clone(&self.0), id.clone());
        match blocking(move || store.place.read(&id)).await {
            Ok(file) => Ok(Some(tokio::fs::File::from_std(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl State {
    fn of(&self, project: &str, id: &str) -> Option<&FileInfo> {
        self.files.get(&id.parse().ok()?).filter(|info| *info.project == *project)
    }
}

/// What blocks, on a thread that may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("it does not panic, and is not cancelled")
}

fn now() -> u64 {
    clock::milliseconds(OffsetDateTime::now_utc())
}

impl Store {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// When the oldest orphan goes, in milliseconds of wall time.
    fn next_expiry(&self) -> Option<u64> {
        self.state().orphans.first().map(|(created_at, _)| created_at.saturating_add(self.orphan))
    }

    fn remove_expired(&self) -> io::Result<()> {
        while self.next_expiry().is_some_and(|at| at <= now()) {
            let oldest = self.state().orphans.first().map(|(_, id)| id.clone());
            let Some(id) = oldest else { break };
            let _writing = self.writing.lock().expect("no holder panics");
            // It may have been promoted just before.
            if self.state().files.get(&id).is_some_and(|info| info.environment.is_none()) {
                self.remove_locked(&id)?;
            }
        }
        Ok(())
    }

    fn remove(&self, id: &FileId) -> io::Result<bool> {
        let _writing = self.writing.lock().expect("no holder panics");
        if !self.state().files.contains_key(id) {
            return Ok(false);
        }
        self.remove_locked(id)?;
        self.place.sync()?;
        Ok(true)
    }

    fn remove_locked(&self, id: &FileId) -> io::Result<()> {
        self.place.remove(id)?;
        self.state().remove(id);
        Ok(())
    }

    fn keep(&self, project: &Project, environment: Option<&str>, uploads: Vec<Uploaded>) -> io::Result<Vec<FileInfo>> {
        let created_at = now();
        let info = |upload: &Uploaded| FileInfo {
            id: upload.content.id.clone(),
            project: Arc::clone(project),
            name: upload.name.clone(),
            size: upload.size,
            created_at,
            environment: environment.map(str::to_owned),
        };
        let files: Vec<FileInfo> = uploads.iter().map(info).collect();
        // Until all are written, dropping the uploads removes what there is of them.
        files.iter().try_for_each(|info| self.place.write(info))?;
        self.place.sync()?;
        let mut state = self.state();
        files.iter().cloned().for_each(|info| state.insert(info));
        drop(state);
        uploads.into_iter().for_each(Uploaded::stays);
        self.orphans_changed.notify_one();
        Ok(files)
    }

    fn promote(&self, project: &str, id: &str, environment: &str) -> Result<(), NotPromoted> {
        let _writing = self.writing.lock().expect("no holder panics");
        let found = self.state().of(project, id).cloned();
        let mut info = found.ok_or_else(|| NotPromoted::Missing(id.to_owned()))?;
        if info.environment.is_some() {
            return Ok(());
        }
        info.environment = Some(environment.to_owned());
        self.place.write(&info)?;
        self.place.sync()?;
        let mut state = self.state();
        state.orphans.remove(&(info.created_at, info.id.clone()));
        state.insert(info);
        Ok(())
    }
}

/// Room for one upload, given back when it is dropped.
struct Room {
    store: Arc<Store>,
    taken: Taken,
}

impl Room {
    fn take_place(&mut self) -> Result<(), NotStored> {
        if self.store.state().taken.files >= FILES {
            return Err(NotStored::Full);
        }
        self.take(Taken { files: 1, bytes: FILE_OVERHEAD })
    }

    fn take(&mut self, more: Taken) -> Result<(), NotStored> {
        let mut state = self.store.state();
        let bytes = state.taken.bytes.saturating_add(more.bytes);
        if bytes > self.store.total_bytes {
            return Err(NotStored::Full);
        }
        state.taken = Taken { files: state.taken.files + more.files, bytes };
        self.taken = Taken { files: self.taken.files + more.files, bytes: self.taken.bytes + more.bytes };
        Ok(())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut state = self.store.state();
        state.taken.files -= self.taken.files;
        state.taken.bytes -= self.taken.bytes;
    }
}

/// What is on the disk of a file that is none yet; removed when it is dropped.
struct Content {
    id: FileId,
    store: Arc<Store>,
    stays: bool,
}

impl Drop for Content {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        // What stays behind is removed at the next start.
        let _: io::Result<()> = self.store.place.remove(&self.id);
    }
}

/// A file on its way. Dropped, it leaves nothing behind.
pub struct Upload {
    name: String,
    size: u64,
    writer: tokio::fs::File,
    content: Content,
    room: Room,
}

impl Upload {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// The file or all files together have become too large, or the disk refuses. Nothing more can be done with it.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), NotStored> {
        let more = bytes.len() as u64;
        let limit = self.room.store.file_bytes;
        if self.size + more > limit {
            return Err(NotStored::TooLarge { limit });
        }
        self.room.take(Taken { files: 0, bytes: more })?;
        self.writer.write_all(bytes).await?;
        self.size += more;
        Ok(())
    }

    /// Its content is complete, and as durable as the store promises.
    ///
    /// # Errors
    /// The disk refuses.
    pub async fn finish(mut self) -> Result<Uploaded, NotStored> {
        self.writer.flush().await?;
        if self.content.store.place.syncs() {
            self.writer.sync_all().await?;
        }
        Ok(Uploaded { name: self.name, size: self.size, content: self.content, room: self.room })
    }
}

/// A file whose content is complete. Dropped, it leaves nothing behind.
pub struct Uploaded {
    name: String,
    size: u64,
    content: Content,
    room: Room,
}

impl Uploaded {
    /// It is a file: its room stays taken.
    fn stays(self) {
        let Self { mut content, mut room, .. } = self;
        room.taken = Taken::default();
        content.stays = true;
    }
}
