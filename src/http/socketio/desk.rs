//! Where the requests of a polling session meet its connection: each is handed over and waits for what it is answered.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use bytes::Bytes;
use dashmap::DashMap;
use tokio::sync::{mpsc, oneshot};

use super::super::wire::Wire;
use crate::ids::random_token;

/// Requests of one session that may wait for its connection. One of each kind at a time is what the protocol allows.
const REQUESTS: usize = 4;

/// What a session's requests ask of its connection.
pub(super) enum Asked {
    /// `t` is what its client wrote to tell its requests apart. Answered with a body, or with nothing: it is misplaced.
    Poll { t: Option<Box<str>>, reply: oneshot::Sender<Bytes> },
    /// Answered once its packets are taken; with nothing if they were no packets.
    Post { body: Bytes, reply: oneshot::Sender<()> },
    /// It begins an upgrade.
    Upgrade(Box<Wire>),
    /// A request broke the rules: the session ends.
    Misused,
}

/// The sessions that began by polling. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Desks {
    open: Arc<DashMap<Box<str>, Arc<Desk>>>,
    count: Arc<AtomicUsize>,
}

/// One session, as its requests find it.
pub(super) struct Desk {
    asked: mpsc::Sender<Asked>,
    posting: AtomicBool,
}

/// A session's place among all; given back when it is dropped.
pub(super) struct Place {
    pub sid: Box<str>,
    desks: Desks,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.desks.open.remove(&self.sid);
        self.desks.count.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Desks {
    /// Begins a session. `None`: there are `limit` already.
    pub(super) fn begin(&self, limit: usize) -> Option<(Place, mpsc::Receiver<Asked>)> {
        if self.count.fetch_add(1, Ordering::AcqRel) >= limit {
            self.count.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        let (asked, receiver) = mpsc::channel(REQUESTS);
        let sid: Box<str> = random_token().into();
        self.open.insert(sid.clone(), Arc::new(Desk { asked, posting: AtomicBool::new(false) }));
        Some((Place { sid, desks: self.clone() }, receiver))
    }

    pub(super) fn get(&self, sid: &str) -> Option<Arc<Desk>> {
        self.open.get(sid).map(|desk| Arc::clone(&desk))
    }
}

/// The right to post; one request has it at a time.
pub(super) struct Posting<'a>(&'a Desk);

impl Drop for Posting<'_> {
    fn drop(&mut self) {
        self.0.posting.store(false, Ordering::Release);
    }
}

impl Desk {
    pub(super) fn begin_post(&self) -> Option<Posting<'_>> {
        (!self.posting.swap(true, Ordering::AcqRel)).then_some(Posting(self))
    }

    /// The body of a poll; `None` when it is not answered.
    pub(super) async fn poll(&self, t: Option<Box<str>>) -> Option<Bytes> {
        let (reply, body) = oneshot::channel();
        self.asked.send(Asked::Poll { t, reply }).await.ok()?;
        body.await.ok()
    }

    /// Whether the packets were taken.
    pub(super) async fn post(&self, body: Bytes) -> bool {
        let (reply, taken) = oneshot::channel();
        self.asked.send(Asked::Post { body, reply }).await.is_ok() && taken.await.is_ok()
    }

    pub(super) async fn upgrade(&self, wire: Wire) {
        // A session that has ended meanwhile drops the socket.
        let _ = self.asked.send(Asked::Upgrade(Box::new(wire))).await;
    }

    pub(super) async fn misused(&self) {
        let _ = self.asked.send(Asked::Misused).await;
    }
}
