//! redis over plain TCP: a reference, no WebSocket.

use std::{net::SocketAddr, ops::Range};

use super::{Ear, Heard, Mouth, Publisher, Step, Subscribing};
use crate::{Outcome, client::connect, frames::Reader, spec::Target};

struct Redis(SocketAddr);

impl Subscribing for Redis {
    fn address(&self) -> SocketAddr {
        self.0
    }

    fn upgrade(&self, _channels: &Range<usize>) -> Option<Vec<u8>> {
        None
    }

    fn steps(&self, channels: &Range<usize>) -> Vec<Step> {
        let names: String = channels.clone().map(|channel| format!(" c{channel}")).collect();
        let subscribe = Step::new("", format!("SUBSCRIBE{names}\r\n").into_bytes());
        vec![subscribe, Step { heard: "$9\r\nsubscribe\r\n", times: channels.len(), say: Vec::new() }]
    }
}

struct Resp;

impl Mouth for Resp {
    fn publish(&mut self, channel: usize, payload: &[u8], out: &mut Vec<u8>) {
        let name = format!("c{channel}");
        let head = format!("*3\r\n$7\r\nPUBLISH\r\n${}\r\n{name}\r\n${}\r\n", name.len(), payload.len());
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(payload);
        out.extend_from_slice(b"\r\n");
    }
}

impl Ear for Resp {
    fn is_framed(&self) -> bool {
        false
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<Heard, String> {
        // Answers are numbers; what begins with a minus is a refusal.
        match memchr::memchr(b'-', bytes) {
            Some(at) => Err(format!("redis refused: {}", String::from_utf8_lossy(&bytes[at..]))),
            None => Ok(Heard::default()),
        }
    }
}

pub(super) fn open(target: &Target) -> Outcome<Publisher> {
    Ok(Publisher {
        stream: connect(target.publish)?,
        reader: Reader::default(),
        mouth: Box::new(Resp),
        ear: Box::new(Resp),
        acknowledged: false,
        subscribing: Box::new(Redis(target.subscribe)),
        sessions: Vec::new(),
    })
}
