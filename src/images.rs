//! The last pictures of one session, in memory, bounded by number and bytes.
//!
//! Each is kept as the finished binary frame that subscribers get, so that nothing is copied per subscriber. While
//! somebody has control, pictures are for the holder alone and leave with the lease.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;
use onlooker_protocol::picture::{self, ShownPicture};

use crate::{control::HolderKey, ids::SessionId, ingest::NewPicture};

#[derive(Clone, Copy, Debug)]
pub struct ImageBounds {
    pub count: usize,
    pub bytes: usize,
}

pub struct Picture {
    pub id: Arc<str>,
    pub media: String,
    /// The binary frame: header and bytes.
    pub frame: Bytes,
    header: usize,
    /// The offset of its event: it is shown once that is committed.
    offset: u64,
    /// Set while somebody has control: nobody else may see it.
    only_for: Option<HolderKey>,
}

impl Picture {
    /// The picture's own bytes.
    pub fn bytes(&self) -> Bytes {
        self.frame.slice(self.header..)
    }

    pub fn may_see(&self, viewer: &HolderKey) -> bool {
        self.only_for.as_ref().is_none_or(|holder| holder == viewer)
    }
}

/// Where a picture belongs.
pub struct Placed {
    pub id: Arc<str>,
    pub offset: u64,
    pub only_for: Option<HolderKey>,
}

pub struct Images {
    bounds: ImageBounds,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    pictures: VecDeque<Arc<Picture>>,
    bytes: usize,
}

impl Images {
    pub fn new(bounds: ImageBounds) -> Self {
        Self { bounds, kept: Mutex::default() }
    }

    pub fn add(&self, session: SessionId, new: NewPicture, at: Placed) {
        let Placed { id, offset, only_for } = at;
        let header = ShownPicture {
            session: session.to_string(),
            id: id.to_string(),
            media: new.media.clone(),
            size: new.bytes.len() as u64,
        };
        let frame: Bytes = picture::encode(&header, &new.bytes).into();
        let header = frame.len() - new.bytes.len();
        let picture = Arc::new(Picture { id, media: new.media, frame, header, offset, only_for });
        let mut kept = self.lock();
        kept.bytes += picture.frame.len();
        kept.pictures.push_back(picture);
        while kept.pictures.len() > 1 && (kept.pictures.len() > self.bounds.count || kept.bytes > self.bounds.bytes) {
            let oldest = kept.pictures.pop_front().expect("more than one");
            kept.bytes -= oldest.frame.len();
        }
    }

    /// The newest picture that this viewer may see, of those whose events are before `committed`.
    pub fn latest(&self, viewer: &HolderKey, committed: u64) -> Option<Arc<Picture>> {
        let shown = |picture: &&Arc<Picture>| picture.offset < committed && picture.may_see(viewer);
        self.lock().pictures.iter().rev().find(shown).cloned()
    }

    /// The newest picture that everybody may see, of those whose events are before `committed`.
    pub fn latest_for_all(&self, committed: u64) -> Option<Arc<Picture>> {
        let shown = |picture: &&Arc<Picture>| picture.offset < committed && picture.only_for.is_none();
        self.lock().pictures.iter().rev().find(shown).cloned()
    }

    /// Forgets pictures whose events were not taken.
    pub fn remove_from(&self, offset: u64) {
        let mut kept = self.lock();
        kept.pictures.retain(|picture| picture.offset < offset);
        kept.bytes = kept.pictures.iter().map(|picture| picture.frame.len()).sum();
    }

    pub fn get(&self, id: &str, viewer: &HolderKey) -> Option<Arc<Picture>> {
        self.lock().pictures.iter().find(|picture| *picture.id == *id && picture.may_see(viewer)).cloned()
    }

    /// Forgets the pictures that were for the holder of control alone.
    pub fn forget_private(&self) {
        let mut kept = self.lock();
        kept.pictures.retain(|picture| picture.only_for.is_none());
        kept.bytes = kept.pictures.iter().map(|picture| picture.frame.len()).sum();
    }

    pub fn clear(&self) {
        *self.lock() = Kept::default();
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().expect("no holder panics")
    }
}
