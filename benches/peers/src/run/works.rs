//! What is measured.

use super::{options::Options, servers::Peer};
use crate::spec::{Fanout, Fill, Idle, Ingest, Job, Pace, Resume, Speech};

pub(crate) const NAMES: [&str; 10] = ["a", "a'", "b", "c", "d", "e", "f", "g", "h", "s"];

/// Files that a process has open beside its connections.
const OTHER_FILES: usize = 256;
const MANY_CONNECTIONS: usize = 10_000;
/// Rounds of what hangs on memory alone.
const MEMORY_ROUNDS: usize = 3;

pub(crate) struct Work {
    pub name: &'static str,
    pub title: String,
    /// The floor's run before and after each server's; `None`: the machine's speed does not matter.
    pub probe: Option<Entry>,
    pub entries: Vec<Entry>,
    /// Seconds.
    pub least_window: f64,
}

impl Work {
    /// Clean rounds that are enough.
    pub fn rounds(&self, options: &Options) -> usize {
        if self.probe.is_none() { options.rounds.min(MEMORY_ROUNDS) } else { options.rounds }
    }

    pub fn entry(&self, label: &str) -> Option<usize> {
        self.entries.iter().position(|entry| entry.label == label)
    }
}

/// One way to do the work.
#[derive(Clone)]
pub(crate) struct Entry {
    pub label: &'static str,
    pub peer: Peer,
    pub speech: Speech,
    pub job: Job,
}

pub(crate) const ONLOOKER: &str = "Onlooker";
pub(crate) const MANY: &str = "Onlooker, each its own session";
pub(crate) const TOGETHER: &str = "Onlooker, all on one connection";
pub(crate) const KNOWN: &str = "Onlooker, most sessions quiet";
pub(crate) const DEAF: &str = "Onlooker, some never read";
pub(crate) const SINGLY: &str = "Onlooker, one event a frame";
pub(crate) const SOCKET_IO: &str = "Onlooker over Socket.IO";

/// How many of what.
struct Sizes {
    is_full: bool,
    audience: usize,
    pictures: usize,
    channels: usize,
    idle: [usize; 2],
    many: usize,
    together: usize,
    known: usize,
    busy: usize,
    fill: Fill,
    deaf: usize,
    back: u32,
    resuming: usize,
    /// Seconds through which idle connections of Onlooker live, more than its pings are apart; of others.
    settle: [f64; 2],
}

impl Sizes {
    fn new(options: &Options, open_files: usize) -> Self {
        if options.quick {
            return Self {
                is_full: false,
                audience: 50,
                pictures: 5,
                channels: 20,
                idle: [50, 200],
                many: 200,
                together: 50,
                known: 500,
                busy: 50,
                fill: Fill { messages: 20, bytes: 20_000 },
                deaf: 2,
                back: 50,
                resuming: 100,
                settle: [0.5, 0.2],
            };
        }
        let room = open_files.saturating_sub(OTHER_FILES);
        let fit = |connections: usize| connections.min(room);
        Self {
            is_full: true,
            audience: 1_000,
            pictures: 100,
            channels: 500,
            idle: [fit(2_500), fit(MANY_CONNECTIONS)],
            many: fit(MANY_CONNECTIONS),
            together: 1_000,
            known: 100_000,
            busy: 1_000,
            // More than the kernel keeps for one connection: 4 MiB, and the receiver's least.
            fill: Fill { messages: 300, bytes: 20_000 },
            deaf: 10,
            back: 200,
            // Those that leave may still be there when they come back.
            resuming: MANY_CONNECTIONS.min(room / 2),
            settle: [12.0, 2.0],
        }
    }

    /// Says so where the limit of open files leaves room for less than there should be.
    fn said(&self, connections: usize) -> String {
        let why =
            if self.is_full && connections < MANY_CONNECTIONS { " (as many as `ulimit -n` has room for)" } else { "" };
        format!("{connections}{why}")
    }
}

fn fanout(channels: usize, subscribers: usize, bytes: usize, pace: Pace) -> Fanout {
    Fanout { channels, subscribers, together: false, quiet: 0, bytes, pace, fill: Fill::default(), deaf: 0 }
}

/// The floor, and those that are measured beside Onlooker.
fn everybody(onlooker: Speech, job: impl Fn(Peer) -> Job) -> Vec<Entry> {
    let entry = |(label, peer, speech)| Entry { label, peer, speech, job: job(peer) };
    let all = [
        ("limit", Peer::Limit, Speech::Floor),
        (ONLOOKER, Peer::Onlooker, onlooker),
        ("nats-server", Peer::Nats, Speech::Nats),
        ("nginx + nchan", Peer::Nchan, Speech::Nchan),
        ("node ws", Peer::Ws, Speech::Ws),
        ("socket.io", Peer::SocketIo, Speech::SocketIo),
        ("redis, plain TCP", Peer::Redis, Speech::Redis),
    ];
    all.into_iter().map(entry).collect()
}

fn floor(job: Job) -> Option<Entry> {
    Some(Entry { label: "limit coalescing", peer: Peer::Coalescing, speech: Speech::Floor, job })
}

fn native(label: &'static str, job: Job) -> Entry {
    Entry { label, peer: Peer::Onlooker, speech: Speech::Native, job }
}

/// The floor with what Onlooker writes: an event lies in an envelope that names its session, its position and its time,
/// and takes about as much as its 200 bytes.
const ENVELOPE: usize = 199;

/// Nothing where that makes no difference.
fn long_frames(job: &Fanout) -> Option<Entry> {
    let longer = Job::Fanout(Fanout { bytes: job.bytes + ENVELOPE, ..job.clone() });
    let entry = Entry { label: "loop, long frames", peer: Peer::Coalescing, speech: Speech::Floor, job: longer };
    (job.bytes < 10 * ENVELOPE).then_some(entry)
}

/// Everything, in the order of its names. `open_files` is what a process may have.
pub(crate) fn all(options: &Options, open_files: usize) -> Vec<Work> {
    let sizes = Sizes::new(options, open_files);
    let a = fanout(1, sizes.audience, 200, Pace::Window(8));
    let mut works = compared(&sizes, &a);
    works.push(idle(&sizes));
    works.push(many_sessions(&sizes));
    works.push(never_reading(&sizes, &a));
    works.push(coming_back(&sizes, &a));
    works.push(taking_in(&a));
    works.push(over_socket_io(&sizes, &a));
    works
}

fn compared(sizes: &Sizes, a: &Fanout) -> Vec<Work> {
    let paced = Fanout { pace: Pace::Rate(10.0), ..a.clone() };
    let b = fanout(1, sizes.pictures, 60_000, Pace::Window(2));
    let work = |name, title: String, job: &Fanout, speech, least_window| Work {
        name,
        title,
        probe: floor(Job::Fanout(job.clone())),
        entries: everybody(speech, |_| Job::Fanout(job.clone())).into_iter().chain(long_frames(job)).collect(),
        least_window,
    };
    let (audience, pictures, channels) = (sizes.audience, sizes.pictures, sizes.channels);
    vec![
        work("a", format!("1 → {audience}, 200 B, full rate"), a, Speech::Native, 0.0),
        // Ten messages a second are few to tell a median from.
        work("a'", format!("1 → {audience}, 200 B, 10 events/s"), &paced, Speech::Native, 3.0),
        work("b", format!("1 → {pictures}, 60 KB, full rate (pictures)"), &b, Speech::Pictures, 0.0),
        work("c", format!("{channels} × 2, 200 B, full rate"), &c(sizes), Speech::Native, 0.0),
    ]
}

fn c(sizes: &Sizes) -> Fanout {
    fanout(sizes.channels, 2, 200, Pace::Window(256))
}

fn idle(sizes: &Sizes) -> Work {
    let [own, others] = sizes.settle;
    let job = |peer: Peer| {
        let settle = if peer.is_onlooker() { own } else { others };
        Job::Idle(Idle { steps: sizes.idle.to_vec(), settle })
    };
    Work {
        name: "d",
        title: format!("{} idle connections", sizes.said(sizes.idle[1])),
        probe: None,
        entries: everybody(Speech::Native, job),
        least_window: 0.0,
    }
}

fn many_sessions(sizes: &Sizes) -> Work {
    let many = Fanout { channels: sizes.many, subscribers: 1, ..c(sizes) };
    let together = Fanout { channels: sizes.together, subscribers: 1, together: true, ..c(sizes) };
    let known = Fanout { channels: sizes.busy, quiet: sizes.known - sizes.busy, ..c(sizes) };
    Work {
        name: "e",
        title: format!(
            "{} sessions × 1; one connection following {}; {} sessions known, {} busy",
            sizes.said(sizes.many),
            sizes.together,
            sizes.known,
            sizes.busy
        ),
        probe: floor(Job::Fanout(c(sizes))),
        entries: vec![
            native(ONLOOKER, Job::Fanout(c(sizes))),
            native(MANY, Job::Fanout(many)),
            native(TOGETHER, Job::Fanout(together)),
            native(KNOWN, Job::Fanout(known)),
        ],
        least_window: 0.0,
    }
}

fn never_reading(sizes: &Sizes, a: &Fanout) -> Work {
    let all_read = Fanout { pace: Pace::Rate(50.0), fill: sizes.fill, ..a.clone() };
    let some_do_not = Fanout { deaf: sizes.deaf, ..all_read.clone() };
    Work {
        name: "f",
        title: format!("1 → {}, 200 B, 50 events/s, {} more never read", sizes.audience, sizes.deaf),
        probe: floor(Job::Fanout(a.clone())),
        entries: vec![native(ONLOOKER, Job::Fanout(all_read)), native(DEAF, Job::Fanout(some_do_not))],
        least_window: 3.0,
    }
}

fn coming_back(sizes: &Sizes, a: &Fanout) -> Work {
    let job = Resume { subscribers: sizes.resuming, back: sizes.back, bytes: 200 };
    Work {
        name: "g",
        title: format!("{} cut at once, resuming from {} events back", sizes.said(sizes.resuming), sizes.back),
        probe: floor(Job::Fanout(a.clone())),
        entries: vec![native(ONLOOKER, Job::Resume(job))],
        least_window: 0.0,
    }
}

fn taking_in(a: &Fanout) -> Work {
    let entry = |label, batch| Entry {
        label,
        peer: Peer::OnlookerInMemory,
        speech: Speech::Native,
        job: Job::Ingest(Ingest { bytes: 300, batch, window: 20_000 }),
    };
    Work {
        name: "h",
        title: "runtime → acknowledged, 300 B, in memory, one pipelined socket".to_owned(),
        probe: floor(Job::Fanout(a.clone())),
        entries: vec![entry(ONLOOKER, 100), entry(SINGLY, 1)],
        least_window: 0.0,
    }
}

fn over_socket_io(sizes: &Sizes, a: &Fanout) -> Work {
    let over = Entry { speech: Speech::WebRun, ..native(SOCKET_IO, Job::Fanout(a.clone())) };
    Work {
        name: "s",
        title: format!("1 → {}, 200 B, full rate, over Socket.IO", sizes.audience),
        probe: floor(Job::Fanout(a.clone())),
        entries: vec![native(ONLOOKER, Job::Fanout(a.clone())), over],
        least_window: 0.0,
    }
}
