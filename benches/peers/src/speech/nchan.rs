//! nginx with nchan: subscribers over WebSocket, messages by POST, pipelined on one connection.

use std::{net::SocketAddr, ops::Range};

use memchr::memmem;

use super::{Ear, Heard, Mouth, Publisher, Step, Subscribing};
use crate::{
    Outcome,
    client::{connect, upgrade},
    frames::Reader,
    spec::Target,
};

struct Nchan(Target);

impl Subscribing for Nchan {
    fn address(&self) -> SocketAddr {
        self.0.subscribe
    }

    fn upgrade(&self, channels: &Range<usize>) -> Option<Vec<u8>> {
        Some(upgrade(self.0.subscribe, &format!("/sub/{}", channels.start), ""))
    }

    fn steps(&self, _channels: &Range<usize>) -> Vec<Step> {
        Vec::new()
    }
}

struct Posts;

impl Mouth for Posts {
    fn publish(&mut self, channel: usize, payload: &[u8], out: &mut Vec<u8>) {
        let head = format!("POST /pub/{channel} HTTP/1.1\r\nHost: bench\r\nContent-Length: {}\r\n\r\n", payload.len());
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(payload);
    }
}

impl Ear for Posts {
    fn is_framed(&self) -> bool {
        false
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<Heard, String> {
        let refused =
            memmem::find_iter(bytes, "HTTP/1.1 ").find(|at| bytes.get(at + 9).is_some_and(|kind| *kind > b'2'));
        match refused {
            Some(at) => {
                Err(format!("nginx refused: {}", String::from_utf8_lossy(&bytes[at..bytes.len().min(at + 40)])))
            }
            None => Ok(Heard::default()),
        }
    }
}

pub(super) fn open(target: &Target) -> Outcome<Publisher> {
    Ok(Publisher {
        stream: connect(target.publish)?,
        reader: Reader::default(),
        mouth: Box::new(Posts),
        ear: Box::new(Posts),
        acknowledged: false,
        subscribing: Box::new(Nchan(target.clone())),
        sessions: Vec::new(),
    })
}
