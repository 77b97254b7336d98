//! nats-server: subscribers on its WebSocket listener, the publisher on its own port.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    ops::Range,
};

use super::{Ear, Heard, Mouth, Publisher, Step, Subscribing, contains};
use crate::{
    Outcome,
    client::{KEY, connect, upgrade},
    frames::{self, Reader},
    spec::Target,
};

const CONNECT: &str = r#"CONNECT {"verbose":false,"pedantic":false,"protocol":1,"lang":"bench","version":"1"}"#;

struct Nats(Target);

fn framed(words: &str) -> Vec<u8> {
    let mut out = Vec::new();
    frames::client(frames::BINARY, words.as_bytes(), KEY, &mut out);
    out
}

impl Subscribing for Nats {
    fn address(&self) -> SocketAddr {
        self.0.subscribe
    }

    fn upgrade(&self, _channels: &Range<usize>) -> Option<Vec<u8>> {
        Some(upgrade(self.0.subscribe, "/", ""))
    }

    fn steps(&self, channels: &Range<usize>) -> Vec<Step> {
        let subscribe: String = channels.clone().map(|channel| format!("SUB c.{channel} {channel}\r\n")).collect();
        let say = framed(&format!("{CONNECT}\r\n{subscribe}PING\r\n"));
        vec![Step::new("INFO ", say), Step::new("PONG\r\n", Vec::new())]
    }

    /// Its pings come every 2 minutes. One that shares a frame with messages is passed over: two in a row may be.
    fn reply(&self, _opcode: u8, peek: &[u8]) -> Option<Vec<u8>> {
        (peek == b"PING\r\n").then(|| framed("PONG\r\n"))
    }
}

struct Lines;

impl Mouth for Lines {
    fn publish(&mut self, channel: usize, payload: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(format!("PUB c.{channel} {}\r\n", payload.len()).as_bytes());
        out.extend_from_slice(payload);
        out.extend_from_slice(b"\r\n");
    }
}

impl Ear for Lines {
    fn is_framed(&self) -> bool {
        false
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<Heard, String> {
        if contains(bytes, "-ERR") {
            return Err(format!("nats-server refused: {}", String::from_utf8_lossy(bytes)));
        }
        let say = if contains(bytes, "PING\r\n") { b"PONG\r\n".to_vec() } else { Vec::new() };
        Ok(Heard { say, ..Heard::default() })
    }
}

pub(super) fn open(target: &Target) -> Outcome<Publisher> {
    let mut stream = connect(target.publish)?;
    stream.write_all(format!("{CONNECT}\r\nPING\r\n").as_bytes())?;
    let (mut heard, mut buffer) = (Vec::new(), [0; 4096]);
    while !contains(&heard, "PONG\r\n") {
        match stream.read(&mut buffer)? {
            0 => return Err("nats-server closed the publisher's connection".into()),
            count => heard.extend_from_slice(&buffer[..count]),
        }
    }
    Ok(Publisher {
        stream,
        reader: Reader::default(),
        mouth: Box::new(Lines),
        ear: Box::new(Lines),
        acknowledged: false,
        subscribing: Box::new(Nats(target.clone())),
        sessions: Vec::new(),
    })
}
