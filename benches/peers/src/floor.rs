//! The two floors: what the kernel asks for, and nothing more.
//!
//! `limit` makes one `write(2)` for each subscriber and message. `limit coalescing` joins everything that one read of
//! the publisher found into one write for each subscriber. Both speak WebSocket to subscribers, so that the same load
//! generator reads them. A subscriber that does not read stops everybody: this is a floor, no server.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Mutex, PoisonError},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha1::{Digest, Sha1};

use crate::{
    Outcome,
    frames::{self, TEXT},
};

/// Read from the publisher at once.
const READ: usize = 256 * 1024;
const HEAD_MOST: usize = 8 * 1024;

/// The subscribers of each channel.
#[derive(Default)]
struct Channels(Mutex<Vec<Vec<TcpStream>>>);

/// `floor [--coalescing]`. Prints where subscribers and the publisher connect.
pub fn main() -> Outcome<()> {
    let coalescing = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--coalescing") => true,
        Some(_) => return Err("floor [--coalescing]".into()),
    };
    let (subscribers, publisher) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
    println!("listening on {} {}", subscribers.local_addr()?, publisher.local_addr()?);
    let channels = Channels::default();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for stream in subscribers.incoming().flatten() {
                // One that breaks off is its own loss.
                drop(channels.join(stream));
            }
        });
        for stream in publisher.incoming() {
            channels.serve(stream?, coalescing)?;
        }
        Ok(())
    })
}

impl Channels {
    fn join(&self, mut stream: TcpStream) -> Outcome<()> {
        stream.set_nodelay(true)?;
        let (channel, key) = request(&mut stream)?;
        let accept = STANDARD.encode(Sha1::digest(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11")));
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        stream.write_all(answer.as_bytes())?;
        let mut channels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if channels.len() <= channel {
            channels.resize_with(channel + 1, Vec::new);
        }
        channels[channel].push(stream);
        Ok(())
    }

    fn serve(&self, mut publisher: TcpStream, coalescing: bool) -> Outcome<()> {
        let mut incoming = Incoming::default();
        let mut joined = Joined::default();
        while incoming.read(&mut publisher)? {
            while let Some((channel, payload)) = incoming.next() {
                joined.add(channel, payload);
                if !coalescing {
                    self.write(&mut joined);
                }
            }
            self.write(&mut joined);
        }
        Ok(())
    }

    fn write(&self, joined: &mut Joined) {
        let mut channels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        joined.drain(|channel, bytes| {
            if let Some(subscribers) = channels.get_mut(channel) {
                subscribers.retain_mut(|subscriber| subscriber.write_all(bytes).is_ok());
            }
        });
    }
}

/// What the upgrade asks for: `GET /CHANNEL`, and the key.
fn request(stream: &mut TcpStream) -> Outcome<(usize, String)> {
    let (mut head, mut buffer) = (Vec::new(), [0; 1024]);
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut buffer)? {
            0 => return Err("broken off".into()),
            count => head.extend_from_slice(&buffer[..count]),
        }
        if head.len() > HEAD_MOST {
            return Err("too long".into());
        }
    }
    let head = String::from_utf8(head)?;
    let path = head.strip_prefix("GET /").and_then(|rest| rest.split(' ').next()).ok_or("no GET")?;
    let key = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).ok_or("no key")?;
    Ok((path.parse()?, key.to_owned()))
}

/// The publisher's messages: channel and length, 4 bytes each, little-endian, then the payload.
#[derive(Default)]
struct Incoming {
    bytes: Vec<u8>,
    from: usize,
    to: usize,
}

impl Incoming {
    /// Whether there was something to read.
    fn read(&mut self, publisher: &mut impl Read) -> Outcome<bool> {
        self.bytes.copy_within(self.from..self.to, 0);
        (self.from, self.to) = (0, self.to - self.from);
        if self.bytes.len() < self.to + READ {
            self.bytes.resize(self.to + READ, 0);
        }
        let count = publisher.read(&mut self.bytes[self.to..])?;
        self.to += count;
        Ok(count > 0)
    }

    fn next(&mut self) -> Option<(usize, &[u8])> {
        let waiting = &self.bytes[self.from..self.to];
        let (head, rest) = waiting.split_first_chunk::<8>()?;
        let [a, b, c, d, e, f, g, h] = *head;
        let (channel, length) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]) as usize);
        let payload = rest.get(..length)?;
        self.from += head.len() + length;
        Some((channel as usize, payload))
    }
}

/// What waits to be written to each channel.
#[derive(Default)]
struct Joined {
    channels: Vec<Vec<u8>>,
    touched: Vec<usize>,
}

impl Joined {
    fn add(&mut self, channel: usize, payload: &[u8]) {
        if self.channels.len() <= channel {
            self.channels.resize_with(channel + 1, Vec::new);
        }
        let bytes = &mut self.channels[channel];
        if bytes.is_empty() {
            self.touched.push(channel);
        }
        frames::server(TEXT, payload, bytes);
    }

    fn drain(&mut self, mut write: impl FnMut(usize, &[u8])) {
        for channel in self.touched.drain(..) {
            write(channel, &self.channels[channel]);
            self.channels[channel].clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_the_same_wherever_reads_cut_them() {
        let messages: Vec<(usize, Vec<u8>)> = (0..20).map(|number| (number % 3, vec![b'x'; number * 37])).collect();
        let mut bytes = Vec::new();
        for (channel, payload) in &messages {
            bytes.extend_from_slice(&(*channel as u32).to_le_bytes());
            bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
            bytes.extend_from_slice(payload);
        }
        for size in (1..90).chain([1_000, bytes.len()]) {
            let (mut incoming, mut found) = (Incoming::default(), Vec::new());
            for mut piece in bytes.chunks(size) {
                assert!(incoming.read(&mut piece).unwrap());
                while let Some((channel, payload)) = incoming.next() {
                    found.push((channel, payload.to_vec()));
                }
            }
            assert!(found == messages, "reads of {size}");
        }
    }

    #[test]
    fn each_channel_is_written_once_with_all_its_frames() {
        let (mut joined, mut written) = (Joined::default(), Vec::new());
        for (channel, payload) in [(2, b"ab"), (0, b"cd"), (2, b"ef")] {
            joined.add(channel, payload);
        }
        joined.drain(|channel, bytes| written.push((channel, bytes.to_vec())));
        assert_eq!(written, [(2, b"\x81\x02ab\x81\x02ef".to_vec()), (0, b"\x81\x02cd".to_vec())]);
        joined.drain(|_, _| panic!("written twice"));
    }
}
