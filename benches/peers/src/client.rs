//! A blocking WebSocket client: speaks with a server before the measurement begins.

use std::{
    collections::VecDeque,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use crate::{
    Outcome,
    frames::{self, Hearing, Reader},
};

/// How long a server may take to say something before the measurement.
const PATIENCE: Duration = Duration::from_secs(30);
const HEAD_MOST: usize = 8 * 1024;

/// The request that opens a WebSocket. `more` is lines of its head, each with its end.
pub fn upgrade(address: SocketAddr, path: &str, more: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
    )
    .into_bytes()
}

/// Where the answer to [`upgrade`] ends in these bytes, if it does. Fails where the server refuses.
pub fn upgraded(bytes: &[u8]) -> Outcome<Option<usize>> {
    let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else {
        return if bytes.len() > HEAD_MOST { Err("the server's answer has no end".into()) } else { Ok(None) };
    };
    if bytes.starts_with(b"HTTP/1.1 101 ") {
        return Ok(Some(end + 4));
    }
    let line = bytes.split(|byte| *byte == b'\r').next().unwrap_or_default();
    Err(format!("the server refused a WebSocket: {}", String::from_utf8_lossy(line)).into())
}

#[derive(Default)]
struct Texts {
    whole: VecDeque<String>,
    present: Vec<u8>,
    left: u64,
    is_text: bool,
}

impl Hearing for Texts {
    fn frame(&mut self, opcode: u8, length: u64, _peek: &[u8]) {
        (self.is_text, self.left) = (opcode == frames::TEXT, length);
        self.present.clear();
    }

    fn payload(&mut self, bytes: &[u8]) {
        self.left -= bytes.len() as u64;
        if self.is_text {
            self.present.extend_from_slice(bytes);
            if self.left == 0 {
                self.whole.push_back(String::from_utf8_lossy(&self.present).into_owned());
            }
        }
    }
}

pub struct Client {
    pub stream: TcpStream,
    pub reader: Reader,
    texts: Texts,
    buffer: Vec<u8>,
}

/// A connection whose small writes go at once.
pub fn connect(address: SocketAddr) -> Outcome<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

impl Client {
    pub fn open(address: SocketAddr, path: &str, more: &str) -> Outcome<Self> {
        let mut stream = connect(address)?;
        stream.write_all(&upgrade(address, path, more))?;
        let (mut head, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
        let end = loop {
            let count = read(&mut stream, &mut buffer)?;
            head.extend_from_slice(&buffer[..count]);
            if let Some(end) = upgraded(&head)? {
                break end;
            }
        };
        let mut client = Self { stream, reader: Reader::default(), texts: Texts::default(), buffer };
        client.reader.feed(&head[end..], &mut client.texts)?;
        Ok(client)
    }

    pub fn say(&mut self, text: &str) -> Outcome<()> {
        self.say_all([text])
    }

    /// All of them in one write.
    pub fn say_all(&mut self, texts: impl IntoIterator<Item = impl AsRef<str>>) -> Outcome<()> {
        let mut out = Vec::new();
        for text in texts {
            frames::client(frames::TEXT, text.as_ref().as_bytes(), KEY, &mut out);
        }
        Ok(self.stream.write_all(&out)?)
    }

    /// The next text that has this in it. Others are passed over, except refusals.
    pub fn until(&mut self, part: &str) -> Outcome<String> {
        loop {
            while let Some(text) = self.texts.whole.pop_front() {
                if text.contains(part) {
                    return Ok(text);
                }
                if text.starts_with(r#"{"type":"error""#) || text.starts_with("44") {
                    return Err(format!("the server refused: {text}").into());
                }
            }
            let count = read(&mut self.stream, &mut self.buffer)?;
            self.reader.feed(&self.buffer[..count], &mut self.texts)?;
        }
    }
}

/// What clients mask with. Servers have the same work with any key that is not 0.
pub const KEY: u32 = 0x5af1_93c7;

fn read(stream: &mut TcpStream, buffer: &mut [u8]) -> Outcome<usize> {
    match stream.read(buffer)? {
        0 => Err("the server closed a connection".into()),
        count => Ok(count),
    }
}
