//! What the driver tells the load generator, and what it hears back.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// One measurement of one server that runs already.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    pub target: Target,
    pub job: Job,
    pub times: Times,
    /// Processors of the load generator.
    pub cpus: Vec<usize>,
}

/// A server, and how it is spoken to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Target {
    pub speech: Speech,
    pub subscribe: SocketAddr,
    pub publish: SocketAddr,
    /// Its process group.
    pub group: u32,
    pub keys: Keys,
}

/// Empty where nobody asks for them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Keys {
    pub runtime: String,
    pub subscriber: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Speech {
    Floor,
    /// Onlooker's own WebSocket.
    Native,
    /// The same with pictures instead of events.
    Pictures,
    /// Onlooker's Socket.IO.
    WebRun,
    Nats,
    Nchan,
    Ws,
    SocketIo,
    Redis,
}

/// In seconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Times {
    pub warm_up: f64,
    pub window: f64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Job {
    Fanout(Fanout),
    Idle(Idle),
    Resume(Resume),
    Ingest(Ingest),
}

/// Messages from one publisher to many subscribers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fanout {
    pub channels: usize,
    /// Of each channel.
    pub subscribers: usize,
    /// One connection follows all channels, in the place of one for each subscriber.
    pub together: bool,
    /// Further channels that exist and are quiet.
    pub quiet: usize,
    /// Of each message.
    pub bytes: usize,
    pub pace: Pace,
    /// Before the warm-up, at full rate.
    pub fill: Fill,
    /// Further subscribers that never read, once they have joined.
    pub deaf: usize,
}

/// What fills the buffers of those that never read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fill {
    pub messages: u64,
    /// Of each message.
    pub bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Pace {
    /// Messages a second, whatever becomes of them.
    Rate(f64),
    /// Messages that not everybody has yet.
    Window(u64),
}

/// Connections that do nothing but live.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Idle {
    /// Connections at which memory is looked at, in growing order.
    pub steps: Vec<usize>,
    /// Seconds before each look.
    pub settle: f64,
}

/// Subscribers that lose their connections at once, and come back.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Resume {
    pub subscribers: usize,
    /// Messages that each of them has missed.
    pub back: u32,
    pub bytes: usize,
}

/// A publisher whom nobody follows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ingest {
    pub bytes: usize,
    /// Messages in one frame.
    pub batch: u64,
    /// Messages that are not acknowledged yet.
    pub window: u64,
}

/// What came out of one job. What a job does not measure is 0 or absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// The server's processor time for each delivered (with [`Ingest`]: acknowledged) message.
    pub cpu_us: f64,
    pub per_second: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub delivered: u64,
    /// Never came, although everything was given time to.
    pub lost: u64,
    /// Passed over for a newer one: pictures.
    pub skipped: u64,
    /// Came twice or out of order.
    pub repeated: u64,
    /// Share of its processor that the load generator itself used.
    pub own_share: f64,
    pub connections: usize,
    /// Resident memory that each connection added.
    pub connection_bytes: f64,
    /// The same between the first and the last of [`Idle::steps`].
    pub marginal_bytes: Option<f64>,
    /// Resident memory at the end of the window, or at its peak during [`Resume`].
    pub rss: u64,
    /// What it grew by over the measurement.
    pub growth: f64,
    /// From the cut to the last message of [`Resume`].
    pub seconds: f64,
}
