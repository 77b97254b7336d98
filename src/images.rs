//! The last pictures of one session, in memory, bounded by number and bytes.
//!
//! Each is kept as the finished binary frame that subscribers get, so that nothing is copied per subscriber. While
//! somebody has control, pictures are for the holder alone and leave with the lease.
//!
//! A reduced picture is made when somebody asks for it, once, and lies with its original: it is shown to whoever may
//! see that, and goes with it.

mod reducer;
mod scaling;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, OnceLock},
};

use bytes::Bytes;
use onlooker_protocol::{
    picture::{self, ShownPicture},
    subscriber::PictureLevel,
};
use tokio::sync::watch;

pub use reducer::Reducer;

use crate::{control::HolderKey, ids::SessionId, ingest::NewPicture};

#[derive(Clone, Copy, Debug)]
pub struct ImageBounds {
    pub count: usize,
    pub bytes: usize,
}

pub struct Picture {
    session: SessionId,
    pub id: Arc<str>,
    pub media: String,
    /// The binary frame: header and bytes.
    pub frame: Bytes,
    header: usize,
    /// Made here of a larger one.
    reduced: bool,
    /// The offset of its event: it is shown once that is committed.
    offset: u64,
    /// Set while somebody has control: nobody else may see it.
    only_for: Option<HolderKey>,
}

impl Picture {
    fn new(session: SessionId, media: String, bytes: &[u8], at: Placed) -> Self {
        let Placed { id, offset, only_for } = at;
        let header = ShownPicture {
            session: session.to_string(),
            id: id.to_string(),
            media: media.clone(),
            size: bytes.len() as u64,
        };
        let frame: Bytes = picture::encode(&header, bytes).into();
        let header = frame.len() - bytes.len();
        Self { session, id, media, frame, header, reduced: false, offset, only_for }
    }

    /// The same picture with fewer bytes.
    fn reduced_to(&self, jpeg: &[u8]) -> Self {
        let at = Placed { id: Arc::clone(&self.id), offset: self.offset, only_for: self.only_for.clone() };
        Self { reduced: true, ..Self::new(self.session, "image/jpeg".to_owned(), jpeg, at) }
    }

    /// The picture's own bytes.
    pub fn bytes(&self) -> Bytes {
        self.frame.slice(self.header..)
    }

    /// The offset of its event.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether it has other bytes than the picture of the same id that was published.
    pub fn is_reduced(&self) -> bool {
        self.reduced
    }

    pub fn may_see(&self, viewer: &HolderKey) -> bool {
        self.only_for.as_ref().is_none_or(|holder| holder == viewer)
    }
}

/// The newest picture, and who may see it.
pub enum Newest {
    None,
    ForAll(Arc<Picture>),
    /// For the holder of control alone; others are shown an older one.
    ForOne,
}

/// Where a picture belongs.
pub struct Placed {
    pub id: Arc<str>,
    pub offset: u64,
    pub only_for: Option<HolderKey>,
}

pub struct Images {
    shelf: Arc<Shelf>,
    reducer: Reducer,
}

/// What a worker of the reducer needs of a session.
struct Shelf {
    bounds: ImageBounds,
    kept: Mutex<Kept>,
    /// Told of each reduced picture. Made when somebody follows: most sessions never need one.
    made: OnceLock<watch::Sender<()>>,
}

#[derive(Default)]
struct Kept {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// The session is in the reducer's queue or with one of its workers.
    queued: bool,
}

/// A picture and what became of reducing it.
struct Entry {
    full: Arc<Picture>,
    variant: Variant,
}

enum Variant {
    Unasked,
    /// By a subscriber, whom a newer one serves better, or by its id.
    Asked {
        by_id: bool,
    },
    Making,
    Made(Arc<Picture>),
    Unfit,
}

impl Entry {
    fn made(&self) -> Option<Arc<Picture>> {
        if let Variant::Made(picture) = &self.variant { Some(Arc::clone(picture)) } else { None }
    }

    fn is_shown(&self, viewer: &HolderKey, committed: u64) -> bool {
        self.full.offset < committed && self.full.may_see(viewer)
    }

    fn bytes(&self) -> usize {
        let variant = self.made().filter(|picture| picture.reduced);
        self.full.frame.len() + variant.map_or(0, |picture| picture.frame.len())
    }
}

impl Images {
    pub fn new(bounds: ImageBounds, reducer: Reducer) -> Self {
        let shelf = Shelf { bounds, kept: Mutex::default(), made: OnceLock::new() };
        Self { shelf: Arc::new(shelf), reducer }
    }

    pub fn add(&self, session: SessionId, new: NewPicture, at: Placed) {
        let full = Arc::new(Picture::new(session, new.media, &new.bytes, at));
        let mut kept = self.shelf.lock();
        kept.bytes += full.frame.len();
        kept.entries.push_back(Entry { full, variant: Variant::Unasked });
        kept.trim(self.shelf.bounds);
    }

    /// The newest picture of a level that this viewer may see, of those whose events are before `committed`.
    ///
    /// A reduced one that is not there yet is made, and [`Self::follow_reduced`] tells when it is; until then this is
    /// the newest that was made. One that cannot be reduced is passed over.
    pub fn latest(&self, viewer: &HolderKey, level: PictureLevel, committed: u64) -> Option<Arc<Picture>> {
        match level {
            PictureLevel::None => None,
            PictureLevel::Full => self.find_latest(|entry| entry.is_shown(viewer, committed)),
            PictureLevel::Reduced => self.latest_reduced(viewer, committed),
        }
    }

    /// The newest picture of those whose events are before `committed`, unless it is not for everybody.
    pub fn newest(&self, committed: u64) -> Newest {
        match self.find_latest(|entry| entry.full.offset < committed) {
            None => Newest::None,
            Some(picture) if picture.only_for.is_none() => Newest::ForAll(picture),
            Some(_) => Newest::ForOne,
        }
    }

    /// The newest picture that everybody may see, of those whose events are before `committed`.
    pub fn latest_for_all(&self, committed: u64) -> Option<Arc<Picture>> {
        self.find_latest(|entry| entry.full.offset < committed && entry.full.only_for.is_none())
    }

    fn find_latest(&self, fits: impl Fn(&Entry) -> bool) -> Option<Arc<Picture>> {
        let kept = self.shelf.lock();
        let found = kept.entries.iter().rev().find(|entry| fits(entry))?;
        Some(Arc::clone(&found.full))
    }

    fn latest_reduced(&self, viewer: &HolderKey, committed: u64) -> Option<Arc<Picture>> {
        let mut kept = self.shelf.lock();
        let fits = |entry: &Entry| entry.is_shown(viewer, committed) && !matches!(entry.variant, Variant::Unfit);
        let newest = kept.entries.iter().rposition(fits)?;
        let begins = kept.ask(newest, false);
        let shown = kept.entries.range(..=newest).rev().filter(|entry| entry.is_shown(viewer, committed));
        let found = shown.filter_map(Entry::made).next();
        drop(kept);
        if begins {
            self.reducer.enqueue(&self.shelf);
        }
        found
    }

    pub fn get(&self, id: &str, viewer: &HolderKey) -> Option<Arc<Picture>> {
        let kept = self.shelf.lock();
        kept.position(id, viewer).map(|at| Arc::clone(&kept.entries[at].full))
    }

    /// A picture's reduced form, when it has been made. `None` when the viewer may not see it, and when it cannot be
    /// reduced. Cancel safe: it is made all the same.
    pub async fn get_reduced(&self, id: &str, viewer: &HolderKey) -> Option<Arc<Picture>> {
        let mut made = self.follow_reduced();
        loop {
            if let Some(found) = self.ask_for(id, viewer)? {
                return Some(found);
            }
            made.changed().await.ok()?;
        }
    }

    /// `Some(None)`: it is to be made.
    fn ask_for(&self, id: &str, viewer: &HolderKey) -> Option<Option<Arc<Picture>>> {
        let mut kept = self.shelf.lock();
        let at = kept.position(id, viewer)?;
        if matches!(kept.entries[at].variant, Variant::Unfit) {
            return None;
        }
        let begins = kept.ask(at, true);
        let found = kept.entries[at].made();
        drop(kept);
        if begins {
            self.reducer.enqueue(&self.shelf);
        }
        Some(found)
    }

    /// Changes with each reduced picture, and with each that could not be.
    pub fn follow_reduced(&self) -> watch::Receiver<()> {
        self.shelf.made.get_or_init(|| watch::Sender::new(())).subscribe()
    }

    /// Forgets pictures whose events were not taken.
    pub fn remove_from(&self, offset: u64) {
        self.shelf.lock().retain(|picture| picture.offset < offset);
    }

    /// Forgets the pictures that were for the holder of control alone.
    pub fn forget_private(&self) {
        self.shelf.lock().retain(|picture| picture.only_for.is_none());
    }

    pub fn clear(&self) {
        self.shelf.lock().retain(|_| false);
    }
}

impl Shelf {
    /// The picture to be reduced next, if one is still wanted. The one asked for longest comes first: one by a viewer
    /// who sees others must not wait for ever.
    fn begin(&self) -> Option<Arc<Picture>> {
        let mut kept = self.lock();
        let asked = kept.entries.iter_mut().find(|entry| matches!(entry.variant, Variant::Asked { .. }));
        let Some(entry) = asked else {
            kept.queued = false;
            return None;
        };
        entry.variant = Variant::Making;
        Some(Arc::clone(&entry.full))
    }

    /// Takes what was made, unless its original is gone. Whether another one is to be made.
    fn finish(&self, original: &Arc<Picture>, variant: Option<Arc<Picture>>) -> bool {
        let goes_on = {
            let mut kept = self.lock();
            if let Some(entry) = kept.entries.iter_mut().find(|entry| Arc::ptr_eq(&entry.full, original)) {
                entry.variant = variant.map_or(Variant::Unfit, Variant::Made);
            }
            kept.count_bytes();
            kept.trim(self.bounds);
            kept.queued = kept.entries.iter().any(|entry| matches!(entry.variant, Variant::Asked { .. }));
            kept.queued
        };
        if let Some(made) = self.made.get() {
            made.send_replace(());
        }
        goes_on
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().expect("no holder panics")
    }
}

impl Kept {
    fn position(&self, id: &str, viewer: &HolderKey) -> Option<usize> {
        self.entries.iter().position(|entry| *entry.full.id == *id && entry.full.may_see(viewer))
    }

    /// Notes that a picture is wanted reduced. Whether the session needs a place in the queue for it.
    fn ask(&mut self, at: usize, by_id: bool) -> bool {
        let variant = &mut self.entries[at].variant;
        match variant {
            Variant::Unasked => *variant = Variant::Asked { by_id },
            Variant::Asked { by_id: already } => *already |= by_id,
            Variant::Making | Variant::Made(_) | Variant::Unfit => return false,
        }
        self.pass_over_older(at);
        !std::mem::replace(&mut self.queued, true)
    }

    /// The newest wins: what the same viewers were waiting for is no longer wanted.
    fn pass_over_older(&mut self, newest: usize) {
        let only_for = self.entries[newest].full.only_for.clone();
        for entry in self.entries.range_mut(..newest).filter(|entry| entry.full.only_for == only_for) {
            if matches!(entry.variant, Variant::Asked { by_id: false }) {
                entry.variant = Variant::Unasked;
            }
        }
    }

    fn trim(&mut self, bounds: ImageBounds) {
        while self.entries.len() > 1 && (self.entries.len() > bounds.count || self.bytes > bounds.bytes) {
            let oldest = self.entries.pop_front().expect("more than one");
            self.bytes -= oldest.bytes();
        }
    }

    fn retain(&mut self, stays: impl Fn(&Picture) -> bool) {
        self.entries.retain(|entry| stays(&entry.full));
        self.count_bytes();
    }

    fn count_bytes(&mut self) {
        self.bytes = self.entries.iter().map(Entry::bytes).sum();
    }
}

#[cfg(test)]
mod tests;
