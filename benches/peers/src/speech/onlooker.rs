//! Onlooker: a runtime that opens sessions and publishes events or pictures, subscribers over its own WebSocket and over
//! Socket.IO. The words are those of `protocol/PROTOCOL.md`.

use std::{collections::HashMap, net::SocketAddr, ops::Range};

use serde_json::{Value, json};

use super::{Ear, Heard, Mouth, Publisher, Step, Subscribing, text};
use crate::{
    Outcome,
    client::{Client, KEY, upgrade},
    frames::{self, BINARY, TEXT},
    spec::{Speech, Target},
};

/// Sessions that are asked for in one write.
const OPENED_AT_ONCE: usize = 256;
/// Everything that is published is searched for it.
const SECRET: &str = "correct-horse-battery-staple";

pub(super) struct Native {
    target: Target,
    sessions: Vec<String>,
    since: Option<String>,
}

impl Native {
    pub(super) fn new(target: &Target, sessions: Vec<String>, since: Option<String>) -> Self {
        Self { target: target.clone(), sessions, since }
    }

    fn subscribe(&self, session: &str) -> Vec<u8> {
        let mut frame = json!({ "type": "subscribe", "session": session, "attention": "active" });
        if let Some(since) = &self.since {
            frame["since"] = json!(since);
        }
        if self.target.speech == Speech::Pictures {
            frame["pictures"] = json!("full");
        }
        text(&frame.to_string())
    }
}

impl Subscribing for Native {
    fn address(&self) -> SocketAddr {
        self.target.subscribe
    }

    fn upgrade(&self, _channels: &Range<usize>) -> Option<Vec<u8>> {
        Some(upgrade(self.target.subscribe, "/v1/ws", "Sec-WebSocket-Protocol: onlooker.v1\r\n"))
    }

    fn steps(&self, channels: &Range<usize>) -> Vec<Step> {
        let auth = text(&json!({ "type": "auth", "token": self.target.keys.subscriber }).to_string());
        let subscribe = channels.clone().flat_map(|channel| self.subscribe(&self.sessions[channel])).collect();
        vec![
            Step::new(r#"{"type":"hello""#, auth),
            Step::new(r#"{"type":"ready""#, subscribe),
            Step { heard: r#"{"type":"live""#, times: channels.len(), say: Vec::new() },
        ]
    }

    /// With each pong goes a word that somebody is still there, as a page of somebody who looks says it.
    fn reply(&self, opcode: u8, peek: &[u8]) -> Option<Vec<u8>> {
        let mut say = pong(opcode, peek)?;
        say.extend(text(r#"{"type":"attention","state":"active"}"#));
        Some(say)
    }
}

/// The answer to a gateway's `ping`, for runtimes and subscribers alike.
fn pong(opcode: u8, peek: &[u8]) -> Option<Vec<u8>> {
    let rest = peek.strip_prefix(br#"{"type":"ping","id":"#).filter(|_| opcode == TEXT)?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let id = String::from_utf8_lossy(&rest[..digits]);
    Some(text(&format!(r#"{{"type":"pong","id":{id}}}"#)))
}

struct WebRun {
    target: Target,
    sessions: Vec<String>,
}

impl Subscribing for WebRun {
    fn address(&self) -> SocketAddr {
        self.target.subscribe
    }

    fn upgrade(&self, _channels: &Range<usize>) -> Option<Vec<u8>> {
        Some(upgrade(self.target.subscribe, "/socket.io/?EIO=4&transport=websocket", ""))
    }

    fn steps(&self, channels: &Range<usize>) -> Vec<Step> {
        let auth = json!({ "sessionId": self.sessions[channels.start], "apiKey": self.target.keys.subscriber });
        vec![Step::new("0{", text(&format!("40{auth}"))), Step::new("40{", Vec::new())]
    }

    fn reply(&self, opcode: u8, peek: &[u8]) -> Option<Vec<u8>> {
        (opcode == TEXT && peek == b"2").then(|| text("3"))
    }
}

struct Runtime {
    sessions: Vec<String>,
    /// The number of each session's last event.
    numbers: Vec<u64>,
    pictures: bool,
}

const EVENT_BEGIN: &str = r#","type":"agent","data":{"content":""#;
const EVENT_END: &str = r#""}}"#;

impl Runtime {
    fn picture(&mut self, channel: usize, picture: &[u8], out: &mut Vec<u8>) {
        let (session, n) = (&self.sessions[channel], self.numbers[channel]);
        let header = format!(r#"{{"session":"{session}","n":{n},"media":"image/jpeg"}}"#);
        frames::client_with(BINARY, 4 + header.len() + picture.len(), KEY, out, |out| {
            out.extend_from_slice(&(header.len() as u32).to_be_bytes());
            out.extend_from_slice(header.as_bytes());
            out.extend_from_slice(picture);
        });
    }

    /// One frame with these events, which have the numbers up to the session's last.
    fn events(&self, channel: usize, payloads: &[&[u8]], out: &mut Vec<u8>) {
        let first = self.numbers[channel] + 1 - payloads.len() as u64;
        let head = format!(r#"{{"type":"events","session":"{}","events":["#, self.sessions[channel]);
        let begins: Vec<String> =
            (first..).take(payloads.len()).map(|n| format!(r#"{{"n":{n}{EVENT_BEGIN}"#)).collect();
        let events = begins.iter().zip(payloads).map(|(begin, payload)| begin.len() + payload.len() + EVENT_END.len());
        let length = head.len() + events.sum::<usize>() + payloads.len() - 1 + "]}".len();
        frames::client_with(TEXT, length, KEY, out, |out| {
            out.extend_from_slice(head.as_bytes());
            for (place, (begin, payload)) in begins.iter().zip(payloads).enumerate() {
                if place > 0 {
                    out.push(b',');
                }
                out.extend_from_slice(begin.as_bytes());
                out.extend_from_slice(payload);
                out.extend_from_slice(EVENT_END.as_bytes());
            }
            out.extend_from_slice(b"]}");
        });
    }
}

impl Mouth for Runtime {
    fn publish(&mut self, channel: usize, payload: &[u8], out: &mut Vec<u8>) {
        self.numbers[channel] += 1;
        if self.pictures {
            self.picture(channel, payload, out);
        } else {
            self.events(channel, &[payload], out);
        }
    }

    fn publish_many(&mut self, channel: usize, payloads: &[Vec<u8>], out: &mut Vec<u8>) {
        self.numbers[channel] += payloads.len() as u64;
        self.events(channel, &payloads.iter().map(Vec::as_slice).collect::<Vec<_>>(), out);
    }
}

/// Hears what is accepted.
struct Accepted {
    /// The last number of each session.
    numbers: HashMap<Vec<u8>, u64>,
}

impl Ear for Accepted {
    fn is_framed(&self) -> bool {
        true
    }

    fn frame(&mut self, opcode: u8, peek: &[u8]) -> Result<Heard, String> {
        if opcode != TEXT {
            return Ok(Heard::default());
        }
        if let Some(say) = pong(opcode, peek) {
            return Ok(Heard { say, ..Heard::default() });
        }
        if let Some(rest) = peek.strip_prefix(br#"{"type":"accepted","session":""#) {
            return self.accepted(rest).ok_or_else(|| format!("not understood: {}", String::from_utf8_lossy(peek)));
        }
        let refusals: [&[u8]; 3] = [br#"{"type":"event_refused""#, br#"{"type":"released""#, br#"{"type":"error""#];
        if refusals.iter().any(|refusal| peek.starts_with(refusal)) {
            return Err(format!("the gateway refused: {}", String::from_utf8_lossy(peek)));
        }
        Ok(Heard::default())
    }
}

impl Accepted {
    /// What follows in the frame: `SESSION","n":N,"position":"POSITION"`.
    fn accepted(&mut self, rest: &[u8]) -> Option<Heard> {
        let (session, rest) = rest.split_at_checked(memchr::memchr(b'"', rest)?)?;
        let digits: Vec<u8> = rest.strip_prefix(br#"","n":"#)?.iter().copied().take_while(u8::is_ascii_digit).collect();
        let n: u64 = std::str::from_utf8(&digits).ok()?.parse().ok()?;
        let position = memchr::memmem::find(rest, br#""position":""#).map(|at| &rest[at + 12..]);
        let position = position.and_then(|rest| rest.split(|byte| *byte == b'"').next());
        let last = self.numbers.get_mut(session)?;
        let accepted = n.saturating_sub(*last);
        *last = n.max(*last);
        let position = position.map(|position| String::from_utf8_lossy(position).into_owned());
        Some(Heard { accepted, position, ..Heard::default() })
    }
}

fn open_frame(reference: usize, with_secret: bool) -> String {
    let mut frame = json!({ "type": "open", "ref": reference.to_string() });
    if with_secret {
        frame["secrets"] = json!([{ "match": "shop.example", "fields": { "password": SECRET } }]);
    }
    frame.to_string()
}

/// Sessions have a secret, so that the redactor has something to look for; quiet ones have none.
fn open_sessions(client: &mut Client, channels: usize, quiet: usize) -> Outcome<Vec<String>> {
    let mut sessions = Vec::with_capacity(channels + quiet);
    while sessions.len() < channels + quiet {
        let from = sessions.len();
        let to = (channels + quiet).min(from + OPENED_AT_ONCE);
        client.say_all((from..to).map(|reference| open_frame(reference, reference < channels)))?;
        for _ in from..to {
            let opened: Value = serde_json::from_str(&client.until(r#"{"type":"opened""#)?)?;
            sessions.push(opened["session"].as_str().ok_or("a session has no id")?.to_owned());
        }
    }
    sessions.truncate(channels);
    Ok(sessions)
}

pub(super) fn open(target: &Target, channels: usize, quiet: usize) -> Outcome<Publisher> {
    let mut client = Client::open(target.publish, "/v1/runtime", "")?;
    client.until(r#"{"type":"hello""#)?;
    client.say(&json!({ "type": "auth", "token": target.keys.runtime }).to_string())?;
    client.say(&json!({ "type": "register", "name": "bench", "capacity": 1_000_000 }).to_string())?;
    client.until(r#"{"type":"registered""#)?;
    let sessions = open_sessions(&mut client, channels, quiet)?;
    let subscribing: Box<dyn Subscribing> = match target.speech {
        Speech::WebRun => Box::new(WebRun { target: target.clone(), sessions: sessions.clone() }),
        _ => Box::new(Native::new(target, sessions.clone(), None)),
    };
    let numbers = sessions.iter().map(|session| (session.clone().into_bytes(), 0)).collect();
    let pictures = target.speech == Speech::Pictures;
    Ok(Publisher {
        stream: client.stream,
        reader: client.reader,
        mouth: Box::new(Runtime { numbers: vec![0; sessions.len()], sessions: sessions.clone(), pictures }),
        ear: Box::new(Accepted { numbers }),
        acknowledged: true,
        subscribing,
        sessions,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload_of(frame: &[u8]) -> Vec<u8> {
        let (head, key) = match frame[1] & 0x7f {
            126 => (8, &frame[4..8]),
            _ => (6, &frame[2..6]),
        };
        frame[head..].iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key).collect()
    }

    fn runtime() -> Runtime {
        Runtime { sessions: vec!["a".to_owned(), "b".to_owned()], numbers: vec![0, 7], pictures: false }
    }

    #[test]
    fn events_of_a_batch_have_the_next_numbers_and_the_frame_its_length() {
        let (mut runtime, mut out) = (runtime(), Vec::new());
        runtime.publish_many(1, &[b"x".to_vec(), b"yy".to_vec()], &mut out);
        let frame: Value = serde_json::from_slice(&payload_of(&out)).unwrap();
        let event = |n: u64, content: &str| json!({ "n": n, "type": "agent", "data": { "content": content } });
        assert_eq!(frame, json!({ "type": "events", "session": "b", "events": [event(8, "x"), event(9, "yy")] }));
    }

    #[test]
    fn what_is_accepted_is_counted_once() {
        let mut ear = Accepted { numbers: HashMap::from([(b"a".to_vec(), 0), (b"b".to_vec(), 0)]) };
        let mut accepted = |session: &str, n: u64| {
            let frame = format!(r#"{{"type":"accepted","session":"{session}","n":{n},"position":"k3:{n}"}}"#);
            let heard = ear.frame(TEXT, frame.as_bytes()).unwrap();
            assert_eq!(heard.position, Some(format!("k3:{n}")));
            heard.accepted
        };
        assert_eq!([accepted("a", 3), accepted("b", 1), accepted("a", 3), accepted("a", 4)], [3, 1, 0, 1]);
    }

    #[test]
    fn a_refusal_is_a_failure() {
        let mut ear = Accepted { numbers: HashMap::new() };
        assert!(ear.frame(TEXT, br#"{"type":"event_refused","session":"a","n":3}"#).is_err());
        assert!(ear.frame(TEXT, br#"{"type":"watchers","session":"a"}"#).is_ok());
    }

    #[test]
    fn a_ping_is_answered_by_its_id() {
        let said = pong(TEXT, br#"{"type":"ping","id":42,"positions":{"a":"k:1"}}"#).unwrap();
        assert_eq!(payload_of(&said), br#"{"type":"pong","id":42}"#);
        assert!(pong(BINARY, br#"{"type":"ping","id":42}"#).is_none());
    }
}
