//! Node's `ws` and `socket.io`, behind the two small servers in `node/`.

use std::{net::SocketAddr, ops::Range};

use super::{Ear, Heard, Mouth, Publisher, Step, Subscribing, text};
use crate::{
    Outcome,
    client::{Client, KEY, upgrade},
    frames::{self, TEXT},
    spec::Target,
};

struct Ws(Target);

impl Subscribing for Ws {
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

/// Six digits of the channel, then the payload.
struct Numbered;

impl Mouth for Numbered {
    fn publish(&mut self, channel: usize, payload: &[u8], out: &mut Vec<u8>) {
        frames::client_with(TEXT, 6 + payload.len(), KEY, out, |out| {
            out.extend_from_slice(format!("{channel:06}").as_bytes());
            out.extend_from_slice(payload);
        });
    }
}

impl Ear for Numbered {
    fn is_framed(&self) -> bool {
        true
    }
}

pub(super) fn open_ws(target: &Target) -> Outcome<Publisher> {
    let client = Client::open(target.publish, "/publish", "")?;
    Ok(Publisher {
        stream: client.stream,
        reader: client.reader,
        mouth: Box::new(Numbered),
        ear: Box::new(Numbered),
        acknowledged: false,
        subscribing: Box::new(Ws(target.clone())),
        sessions: Vec::new(),
    })
}

const PATH: &str = "/socket.io/?EIO=4&transport=websocket";
const PING: &[u8] = b"2";

struct SocketIo(Target);

impl Subscribing for SocketIo {
    fn address(&self) -> SocketAddr {
        self.0.subscribe
    }

    fn upgrade(&self, channels: &Range<usize>) -> Option<Vec<u8>> {
        Some(upgrade(self.0.subscribe, &format!("{PATH}&channel={}", channels.start), ""))
    }

    fn steps(&self, _channels: &Range<usize>) -> Vec<Step> {
        vec![Step::new("0{", text("40")), Step::new("40{", Vec::new())]
    }

    fn reply(&self, opcode: u8, peek: &[u8]) -> Option<Vec<u8>> {
        (opcode == TEXT && peek == PING).then(|| text("3"))
    }
}

struct Emits;

impl Mouth for Emits {
    fn publish(&mut self, channel: usize, payload: &[u8], out: &mut Vec<u8>) {
        let head = format!(r#"42["publish","{channel}",""#);
        let length = head.len() + payload.len() + 2;
        frames::client_with(TEXT, length, KEY, out, |out| {
            out.extend_from_slice(head.as_bytes());
            out.extend_from_slice(payload);
            out.extend_from_slice(br#""]"#);
        });
    }
}

impl Ear for Emits {
    fn is_framed(&self) -> bool {
        true
    }

    fn frame(&mut self, opcode: u8, peek: &[u8]) -> Result<Heard, String> {
        let say = if opcode == TEXT && peek == PING { text("3") } else { Vec::new() };
        Ok(Heard { say, ..Heard::default() })
    }
}

pub(super) fn open_socket_io(target: &Target) -> Outcome<Publisher> {
    let mut client = Client::open(target.publish, PATH, "")?;
    client.until("0{")?;
    client.say("40")?;
    client.until("40{")?;
    Ok(Publisher {
        stream: client.stream,
        reader: client.reader,
        mouth: Box::new(Emits),
        ear: Box::new(Emits),
        acknowledged: false,
        subscribing: Box::new(SocketIo(target.clone())),
        sessions: Vec::new(),
    })
}
