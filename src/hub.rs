//! Fan-out on this node: wakes those who follow a session when its log's committed head has moved.
//!
//! The hub carries no events: the log is the buffer, and everybody reads it from their own position. It therefore
//! cannot be slowed by a subscriber, and has no queue. One small task per followed session follows the head; it ends
//! when nobody follows any more.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use onlooker_protocol::{subscriber::ClaimedGuardrail, view::WatcherCounts};
use tokio::sync::{Notify, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{engine::Head, ids::SessionId};

/// How many followers are woken before other tasks get a turn.
const CHUNK: usize = 64;

/// What a connection waits on: which of its subscriptions have something to read.
#[derive(Default)]
pub struct Signal {
    ready: Mutex<VecDeque<u32>>,
    poked: AtomicBool,
    notify: Notify,
}

impl Signal {
    /// Resolves when some subscription may have something to read. Cancel safe.
    pub async fn wait(&self) {
        loop {
            if self.poked.swap(false, Ordering::AcqRel) || !self.lock().is_empty() {
                return;
            }
            self.notify.notified().await;
        }
    }

    /// Takes the subscription that has been ready for longest: one that always has more does not hold up the others.
    pub fn take(&self) -> Option<u32> {
        self.lock().pop_front()
    }

    /// Wakes the connection although no subscription has anything: somebody spoke for it.
    pub fn poke(&self) {
        self.poked.store(true, Ordering::Release);
        self.notify.notify_one();
    }

    fn push(&self, slot: u32) {
        self.lock().push_back(slot);
        self.notify.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<u32>> {
        self.ready.lock().expect("no holder panics")
    }
}

/// One subscription, as the hub knows it.
struct Follower {
    signal: Arc<Signal>,
    slot: u32,
    /// It is in its connection's list already: a wake-up costs it at most one entry.
    marked: AtomicBool,
}

impl Follower {
    fn wake(&self) {
        if !self.marked.swap(true, Ordering::AcqRel) {
            self.signal.push(self.slot);
        }
    }
}

/// State that is not in the log: who watches, who has claimed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Side {
    pub counts: WatcherCounts,
    pub claims: Arc<Vec<ClaimedGuardrail>>,
}

/// What a topic follows.
pub struct Source {
    pub head: watch::Receiver<Head>,
    pub side: watch::Receiver<Side>,
    /// Changes when a reduced picture is ready.
    pub pictures: watch::Receiver<()>,
}

#[derive(Clone)]
pub struct Hub {
    inner: Arc<Inner>,
}

struct Inner {
    topics: Mutex<HashMap<SessionId, Topic>>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

struct Topic {
    followers: Arc<Mutex<Vec<Arc<Follower>>>>,
    /// Ends the topic's task.
    stop: CancellationToken,
}

impl Hub {
    /// Its tasks belong to `tasks` and end at `shutdown`.
    pub fn new(tasks: TaskTracker, shutdown: CancellationToken) -> Self {
        Self { inner: Arc::new(Inner { topics: Mutex::default(), tasks, shutdown }) }
    }

    /// From now on `signal` is told that `slot` may have something to read. Read after attaching: what was committed
    /// before is in the log, what comes after wakes.
    pub fn attach(&self, session: SessionId, source: Source, signal: &Arc<Signal>, slot: u32) -> Attachment {
        let follower = Arc::new(Follower { signal: Arc::clone(signal), slot, marked: AtomicBool::new(false) });
        let mut topics = self.lock();
        let topic = topics.entry(session).or_insert_with(|| self.begin(source));
        topic.followers.lock().expect("no holder panics").push(Arc::clone(&follower));
        Attachment { hub: self.clone(), session, follower }
    }

    /// Sessions that somebody follows here.
    pub fn followed(&self) -> usize {
        self.lock().len()
    }

    fn begin(&self, source: Source) -> Topic {
        let followers = Arc::new(Mutex::new(Vec::new()));
        let stop = self.inner.shutdown.child_token();
        self.inner.tasks.spawn(follow(source, Arc::clone(&followers), stop.clone()));
        Topic { followers, stop }
    }

    fn detach(&self, session: SessionId, follower: &Arc<Follower>) {
        let mut topics = self.lock();
        let Some(topic) = topics.get(&session) else { return };
        let empty = {
            let mut followers = topic.followers.lock().expect("no holder panics");
            if let Some(at) = followers.iter().position(|other| Arc::ptr_eq(other, follower)) {
                followers.swap_remove(at);
            }
            followers.is_empty()
        };
        if empty && let Some(topic) = topics.remove(&session) {
            topic.stop.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, Topic>> {
        self.inner.topics.lock().expect("no holder panics")
    }
}

/// Follows one session's head until it is stopped or the log is gone.
async fn follow(mut source: Source, followers: Arc<Mutex<Vec<Arc<Follower>>>>, stop: CancellationToken) {
    loop {
        let gone = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = source.head.changed() => changed.is_err(),
            changed = source.side.changed() => changed.is_err(),
            changed = source.pictures.changed() => changed.is_err(),
        };
        let snapshot: Vec<Arc<Follower>> = followers.lock().expect("no holder panics").clone();
        for chunk in snapshot.chunks(CHUNK) {
            for follower in chunk {
                follower.wake();
            }
            tokio::task::yield_now().await;
        }
        if gone {
            return;
        }
    }
}

/// A subscription's place in the hub; dropping it detaches.
pub struct Attachment {
    hub: Hub,
    session: SessionId,
    follower: Arc<Follower>,
}

impl Attachment {
    /// Says that this subscription is about to read: whatever is committed from now on wakes it again.
    pub fn reading(&self) {
        self.follower.marked.store(false, Ordering::Release);
    }

    /// Wakes the subscription itself, to go on where it stopped.
    pub fn wake(&self) {
        self.follower.wake();
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.hub.detach(self.session, &self.follower);
    }
}
