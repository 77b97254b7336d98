//! The bare loop: see `floor.rs`.

use std::{net::SocketAddr, ops::Range};

use super::{Ear, Mouth, Publisher, Step, Subscribing};
use crate::{
    Outcome,
    client::{connect, upgrade},
    frames::Reader,
    spec::Target,
};

struct Floor(Target);

impl Subscribing for Floor {
    fn address(&self) -> SocketAddr {
        self.0.subscribe
    }

    fn upgrade(&self, channels: &Range<usize>) -> Option<Vec<u8>> {
        Some(upgrade(self.0.subscribe, &format!("/{}", channels.start), ""))
    }

    fn steps(&self, _channels: &Range<usize>) -> Vec<Step> {
        Vec::new()
    }
}

struct Lengths;

impl Mouth for Lengths {
    fn publish(&mut self, channel: usize, payload: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(&(channel as u32).to_le_bytes());
        out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        out.extend_from_slice(payload);
    }
}

impl Ear for Lengths {
    fn is_framed(&self) -> bool {
        false
    }
}

pub(super) fn open(target: &Target) -> Outcome<Publisher> {
    Ok(Publisher {
        stream: connect(target.publish)?,
        reader: Reader::default(),
        mouth: Box::new(Lengths),
        ear: Box::new(Lengths),
        acknowledged: false,
        subscribing: Box::new(Floor(target.clone())),
        sessions: Vec::new(),
    })
}
