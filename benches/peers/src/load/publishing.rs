//! The publisher's thread.

use std::{
    io::Write,
    net::TcpStream,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use super::board::Board;
use crate::{
    Outcome, machine,
    mark::{self, Mark},
    spec::Pace,
    speech::Mouth,
};

/// Messages that may wait for their acknowledgement at any pace.
const UNACCEPTED: u64 = 8_192;
/// A sleep that nobody ends is over after this.
const NAP: Duration = Duration::from_millis(50);
/// Frames are written together up to this size.
const WRITE: usize = 64 * 1024;

/// So long, and at this pace.
pub(super) struct Phase {
    pub pace: Pace,
    /// Messages; `None`: until the board says enough.
    pub messages: Option<u64>,
    /// Of each message.
    pub bytes: usize,
}

pub(super) struct Publishing {
    pub board: Arc<Board>,
    stream: TcpStream,
    mouth: Box<dyn Mouth>,
    acknowledged: bool,
    /// Numbers of the channels' next messages.
    next: Vec<u32>,
    channel: usize,
    payload: Vec<u8>,
    out: Vec<u8>,
}

impl Publishing {
    pub fn new(board: Arc<Board>, stream: TcpStream, mouth: Box<dyn Mouth>, acknowledged: bool) -> Self {
        let (next, payload, out) = (Vec::new(), Vec::new(), Vec::new());
        Self { board, stream, mouth, acknowledged, next, channel: 0, payload, out }
    }

    /// Messages to so many channels in turn.
    pub fn to(mut self, channels: usize) -> Self {
        self.next = vec![0; channels];
        self
    }

    /// Publishes one phase after the other. What fails is written on the board.
    pub fn run(mut self, phases: &[Phase]) -> Self {
        self.board.i_publish();
        for phase in phases {
            self.payload = filler(phase.bytes);
            let outcome = match phase.pace {
                Pace::Rate(rate) => self.paced(rate, phase.messages),
                Pace::Window(window) => self.windowed(window, phase.messages),
            };
            if let Err(failure) = outcome {
                self.board.fail(format!("publishing failed: {failure}"));
            }
            self.board.phases.fetch_add(1, SeqCst);
        }
        self.board.i_published();
        self
    }

    fn windowed(&mut self, window: u64, messages: Option<u64>) -> Outcome<()> {
        let board = Arc::clone(&self.board);
        let last = messages.map_or(u64::MAX, |messages| board.published.load(SeqCst) + messages);
        let room = || {
            let published = board.published.load(SeqCst);
            let under_way = published - board.completed.load(SeqCst);
            window.saturating_sub(under_way).min(last - published)
        };
        while !board.published_enough.load(SeqCst) && board.published.load(SeqCst) < last {
            self.answer()?;
            match room() {
                0 => board.sleep(NAP, || room() > 0),
                _ if self.is_ahead() => board.sleep(NAP, || false),
                room => {
                    let now = machine::now();
                    (0..room).for_each(|_| self.add(now));
                    self.send(room)?;
                }
            }
        }
        Ok(())
    }

    fn paced(&mut self, rate: f64, messages: Option<u64>) -> Outcome<()> {
        let (began, mut sent, most) = (machine::now(), 0, messages.unwrap_or(u64::MAX));
        while !self.board.published_enough.load(SeqCst) && sent < most {
            self.answer()?;
            let due = began + (sent as f64 * 1e9 / rate) as u64;
            match due.saturating_sub(machine::now()) {
                0 => {
                    self.add(due);
                    self.send(1)?;
                    sent += 1;
                }
                early => self.board.sleep(Duration::from_nanos(early).min(NAP), || false),
            }
        }
        Ok(())
    }

    /// Publishes as fast as it is acknowledged, in batches, until the board says enough.
    pub fn ingest(mut self, bytes: usize, batch: u64, window: u64) -> Self {
        self.board.i_publish();
        let board = Arc::clone(&self.board);
        let room = || board.published.load(SeqCst) + batch <= board.accepted.load(SeqCst) + window;
        let mut payloads = vec![filler(bytes); batch as usize];
        while !board.published_enough.load(SeqCst) {
            let outcome = self.answer().and_then(|()| {
                if !room() {
                    board.sleep(NAP, room);
                    return Ok(());
                }
                let at = machine::now();
                for payload in &mut payloads {
                    Mark { at, channel: 0, number: self.next[0] }.write(payload);
                    self.next[0] += 1;
                }
                self.mouth.publish_many(0, &payloads, &mut self.out);
                board.published.fetch_add(batch, SeqCst);
                // Several frames in one write, as a socket with much to say has them.
                if self.out.len() < WRITE && room() { Ok(()) } else { self.send(0) }
            });
            if let Err(failure) = outcome {
                board.fail(format!("publishing failed: {failure}"));
            }
        }
        board.i_published();
        self
    }

    fn is_ahead(&self) -> bool {
        self.acknowledged && self.board.published.load(SeqCst) >= self.board.accepted.load(SeqCst) + UNACCEPTED
    }

    /// Sends what has to be said beside messages.
    fn answer(&mut self) -> Outcome<()> {
        let said = self.board.take_said();
        if said.is_empty() { Ok(()) } else { Ok(self.stream.write_all(&said)?) }
    }

    fn add(&mut self, at: u64) {
        let channel = self.channel;
        Mark { at, channel: channel as u32, number: self.next[channel] }.write(&mut self.payload);
        self.next[channel] += 1;
        self.mouth.publish(channel, &self.payload, &mut self.out);
        self.channel = (channel + 1) % self.next.len();
    }

    fn send(&mut self, messages: u64) -> Outcome<()> {
        self.board.published.fetch_add(messages, SeqCst);
        let sent = self.stream.write_all(&self.out);
        self.out.clear();
        Ok(sent?)
    }
}

/// Text that compresses badly enough and has no mark in it.
fn filler(bytes: usize) -> Vec<u8> {
    const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz 0123456789";
    let mut state = 0x2545_f491_u32;
    let letter = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        LETTERS[(state >> 16) as usize % LETTERS.len()]
    };
    (0..bytes.max(mark::LEN)).map(letter).collect()
}
