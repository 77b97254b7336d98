//! How each kind of server is spoken to.

mod floor;
mod nats;
mod nchan;
mod node;
mod onlooker;
mod redis;

use std::{
    net::{SocketAddr, TcpStream},
    ops::Range,
};

use memchr::memmem;

use crate::{
    Outcome,
    client::KEY,
    frames::{self, Reader},
    spec::{Fanout, Speech, Target},
};

/// A subscriber's side: the same for all subscribers.
pub trait Subscribing: Send + Sync {
    /// Where subscribers connect.
    fn address(&self) -> SocketAddr;

    /// The request that opens the WebSocket; `None`: there is none, bytes count as they are.
    fn upgrade(&self, channels: &Range<usize>) -> Option<Vec<u8>>;

    /// What is said to join, in order.
    fn steps(&self, channels: &Range<usize>) -> Vec<Step>;

    /// What a frame has to be answered with, as bytes to send; `peek` is its beginning.
    fn reply(&self, opcode: u8, peek: &[u8]) -> Option<Vec<u8>> {
        let _ = (opcode, peek);
        None
    }
}

/// Waits until the server has said something so often, then says the next thing.
pub struct Step {
    pub heard: &'static str,
    pub times: usize,
    /// Bytes to send; none behind the last step.
    pub say: Vec<u8>,
}

impl Step {
    fn new(heard: &'static str, say: Vec<u8>) -> Self {
        Self { heard, times: 1, say }
    }
}

/// A publisher's side: what it says.
pub trait Mouth: Send {
    /// Appends the bytes that publish the next message of a channel.
    fn publish(&mut self, channel: usize, payload: &[u8], out: &mut Vec<u8>);

    /// Appends several messages of one channel, together where the protocol can.
    fn publish_many(&mut self, channel: usize, payloads: &[Vec<u8>], out: &mut Vec<u8>) {
        for payload in payloads {
            self.publish(channel, payload, out);
        }
    }
}

/// A publisher's side: what it hears.
pub trait Ear: Send {
    /// Whether frames are heard, or else bytes.
    fn is_framed(&self) -> bool;

    fn frame(&mut self, opcode: u8, peek: &[u8]) -> Result<Heard, String> {
        let _ = (opcode, peek);
        Ok(Heard::default())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<Heard, String> {
        let _ = bytes;
        Ok(Heard::default())
    }
}

#[derive(Default)]
pub struct Heard {
    /// Messages that are acknowledged by this.
    pub accepted: u64,
    /// Bytes to send.
    pub say: Vec<u8>,
    /// Where the last acknowledged message stands, in the server's words.
    pub position: Option<String>,
}

/// A publisher that is ready to publish.
pub struct Publisher {
    pub stream: TcpStream,
    pub reader: Reader,
    pub mouth: Box<dyn Mouth>,
    pub ear: Box<dyn Ear>,
    /// Whether every message is acknowledged.
    pub acknowledged: bool,
    pub subscribing: Box<dyn Subscribing>,
    /// The server's names of the channels, where they are its own.
    pub sessions: Vec<String>,
}

/// Opens a publisher with its channels.
pub fn open(target: &Target, channels: usize, quiet: usize) -> Outcome<Publisher> {
    match target.speech {
        Speech::Floor => floor::open(target),
        Speech::Native | Speech::Pictures | Speech::WebRun => onlooker::open(target, channels, quiet),
        Speech::Nats => nats::open(target),
        Speech::Nchan => nchan::open(target),
        Speech::Ws => node::open_ws(target),
        Speech::SocketIo => node::open_socket_io(target),
        Speech::Redis => redis::open(target),
    }
}

/// Onlooker's subscribers, each from a position on.
pub fn resuming(target: &Target, sessions: &[String], since: &str) -> Box<dyn Subscribing> {
    Box::new(onlooker::Native::new(target, sessions.to_vec(), Some(since.to_owned())))
}

/// Connections that a fan-out needs, those that never read left out: the channels of each.
pub fn audience(fanout: &Fanout) -> Vec<Range<usize>> {
    if fanout.together {
        return vec![0..fanout.channels; fanout.subscribers];
    }
    // Neighbours are of different channels, so that nothing depends on the order of joining.
    let of_one_round = |_| (0..fanout.channels).map(|channel| channel..channel + 1);
    (0..fanout.subscribers).flat_map(of_one_round).collect()
}

fn text(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    frames::client(frames::TEXT, text.as_bytes(), KEY, &mut out);
    out
}

/// The answer to a WebSocket ping, which every server may send.
pub fn pong(peek: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frames::client(frames::PONG, peek, KEY, &mut out);
    out
}

fn contains(bytes: &[u8], part: &str) -> bool {
    memmem::find(bytes, part.as_bytes()).is_some()
}
