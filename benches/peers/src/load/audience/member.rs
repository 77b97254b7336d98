//! One connection: a subscriber on its way in and afterwards, or the publisher's.

use std::{
    collections::VecDeque,
    io::Write,
    net::{SocketAddr, TcpStream},
    ops::Range,
};

use rustix::net::{
    AddressFamily, SocketFlags, SocketType, connect, socket_with,
    sockopt::{set_socket_recv_buffer_size, set_tcp_nodelay},
};

use super::{
    super::board::Board,
    tally::{Seat, Tally},
};
use crate::{
    Outcome,
    client::upgraded,
    frames::{self, Hearing, Reader},
    mark::{Scanner, Search},
    speech::{Ear, Heard, Step, Subscribing, pong},
};

pub(crate) struct Member {
    pub stream: TcpStream,
    /// `None`: no frames, bytes count as they are.
    reader: Option<Reader>,
    scanner: Scanner,
    pub seat: Seat,
    joining: Option<Box<Joining>>,
}

struct Joining {
    /// The answer to the upgrade has not come yet.
    upgrading: bool,
    heard: Vec<u8>,
    /// Up to here nothing is looked for any more.
    looked: usize,
    steps: VecDeque<Step>,
}

impl Joining {
    /// What is to be said. Empty and without a step left: joined.
    fn advance(&mut self) -> Vec<u8> {
        let mut say = Vec::new();
        while let Some(step) = self.steps.front_mut() {
            while step.times > 0 {
                let Some(at) = memchr::memmem::find(&self.heard[self.looked..], step.heard.as_bytes()) else {
                    return say;
                };
                self.looked += at + step.heard.len();
                step.times -= 1;
            }
            say.append(&mut step.say);
            self.steps.pop_front();
        }
        say
    }
}

impl Member {
    pub fn begin(
        subscribing: &dyn Subscribing,
        channels: &Range<usize>,
        seat: Seat,
        receive_buffer: Option<usize>,
    ) -> Outcome<Self> {
        let mut stream = open(subscribing.address(), receive_buffer)?;
        let upgrade = subscribing.upgrade(channels);
        let steps = subscribing.steps(channels).into();
        let upgrading = upgrade.is_some();
        let mut joining = Box::new(Joining { upgrading, heard: Vec::new(), looked: 0, steps });
        let reader = upgrading.then(Reader::default);
        let first = upgrade.unwrap_or_else(|| joining.advance());
        stream.write_all(&first)?;
        Ok(Self { stream, reader, scanner: Scanner::default(), seat, joining: Some(joining) })
    }

    pub fn is_joining(&self) -> bool {
        self.joining.is_some()
    }

    pub fn hear(
        &mut self,
        bytes: &[u8],
        subscribing: &dyn Subscribing,
        search: &Search,
        tally: &mut Tally,
    ) -> Outcome<()> {
        match &mut self.joining {
            Some(joining) if joining.upgrading => {
                joining.heard.extend_from_slice(bytes);
                let Some(end) = upgraded(&joining.heard)? else { return Ok(()) };
                joining.upgrading = false;
                let rest = joining.heard.split_off(end);
                joining.heard.clear();
                self.take(&rest, subscribing, search, tally)?;
            }
            _ => self.take(bytes, subscribing, search, tally)?,
        }
        if let Some(mark) = tally.strange {
            return Err(format!("a subscriber got what it did not ask for: {mark:?}").into());
        }
        Ok(())
    }

    fn take(&mut self, bytes: &[u8], subscribing: &dyn Subscribing, search: &Search, tally: &mut Tally) -> Outcome<()> {
        let Self { reader, scanner, seat, joining, .. } = self;
        let heard = joining.as_mut().map(|joining| &mut joining.heard);
        let mut ears = Ears { subscribing, search, scanner, seat, tally, heard, say: Vec::new(), closed: None };
        match reader {
            Some(reader) => reader.feed(bytes, &mut ears)?,
            None => ears.payload(bytes),
        }
        let Ears { mut say, closed, .. } = ears;
        if let Some(why) = closed {
            return Err(format!("the server closed a subscriber: {why}").into());
        }
        if let Some(joining) = joining {
            say.extend(joining.advance());
            if joining.steps.is_empty() {
                self.joining = None;
            }
        }
        if !say.is_empty() {
            self.stream.write_all(&say)?;
        }
        Ok(())
    }
}

fn open(address: SocketAddr, receive_buffer: Option<usize>) -> Outcome<TcpStream> {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    if let Some(bytes) = receive_buffer {
        // It has to be small before the window is agreed upon.
        set_socket_recv_buffer_size(&socket, bytes)?;
    }
    set_tcp_nodelay(&socket, true)?;
    connect(&socket, &address).map_err(|error| format!("a subscriber cannot connect: {error}"))?;
    Ok(socket.into())
}

/// What one read of a subscriber says.
struct Ears<'a> {
    subscribing: &'a dyn Subscribing,
    search: &'a Search,
    scanner: &'a mut Scanner,
    seat: &'a Seat,
    tally: &'a mut Tally,
    heard: Option<&'a mut Vec<u8>>,
    say: Vec<u8>,
    closed: Option<String>,
}

impl Hearing for Ears<'_> {
    fn frame(&mut self, opcode: u8, _length: u64, peek: &[u8]) {
        match opcode {
            frames::PING => self.say.extend(pong(peek)),
            frames::CLOSE => self.closed = Some(why(peek)),
            _ => {
                if let Some(reply) = self.subscribing.reply(opcode, peek) {
                    self.say.extend(reply);
                }
            }
        }
    }

    fn payload(&mut self, bytes: &[u8]) {
        let Self { tally, seat, .. } = self;
        self.scanner.feed(self.search, bytes, |mark| tally.arrived(seat, mark));
        if let Some(heard) = &mut self.heard {
            heard.extend_from_slice(bytes);
        }
    }
}

/// A close frame's code and reason.
fn why(peek: &[u8]) -> String {
    match peek.split_first_chunk() {
        Some((code, reason)) => format!("{} {}", u16::from_be_bytes(*code), String::from_utf8_lossy(reason)),
        None => "without a code".to_owned(),
    }
}

/// The publisher's connection, as far as it is heard.
pub(crate) struct Listener {
    pub stream: TcpStream,
    pub reader: Reader,
    pub ear: Box<dyn Ear>,
}

impl Listener {
    pub fn hear(&mut self, bytes: &[u8], board: &Board) -> Outcome<()> {
        let mut hears = Hears { ear: self.ear.as_mut(), board, say: Vec::new(), failure: None };
        if hears.ear.is_framed() {
            self.reader.feed(bytes, &mut hears)?;
        } else {
            let heard = hears.ear.bytes(bytes);
            hears.tell(heard);
        }
        let Hears { say, failure, .. } = hears;
        match failure {
            Some(failure) => return Err(failure.into()),
            None if say.is_empty() => {}
            // One thread writes at a time, or frames would interleave.
            None if board.is_publishing() => board.say(&say),
            None => self.stream.write_all(&say)?,
        }
        Ok(())
    }
}

struct Hears<'a> {
    ear: &'a mut dyn Ear,
    board: &'a Board,
    say: Vec<u8>,
    failure: Option<String>,
}

impl Hears<'_> {
    fn tell(&mut self, heard: Result<Heard, String>) {
        match heard {
            Ok(Heard { accepted, say, position }) => {
                if accepted > 0 {
                    self.board.accept(accepted);
                }
                if let Some(position) = position {
                    self.board.stand(position);
                }
                self.say.extend(say);
            }
            Err(failure) => self.failure = Some(failure),
        }
    }
}

impl Hearing for Hears<'_> {
    fn frame(&mut self, opcode: u8, _length: u64, peek: &[u8]) {
        let heard = match opcode {
            frames::PING => Ok(Heard { say: pong(peek), ..Heard::default() }),
            frames::CLOSE => Err(format!("the server closed the publisher's connection: {}", why(peek))),
            _ => self.ear.frame(opcode, peek),
        };
        self.tell(heard);
    }

    fn payload(&mut self, _bytes: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joining_says_each_thing_after_what_it_waits_for_however_it_is_cut() {
        let steps = || -> VecDeque<Step> {
            let step = |heard, times, say: &[u8]| Step { heard, times, say: say.to_vec() };
            [step("hello", 1, b"one"), step("", 1, b"two"), step("live", 2, b"")].into()
        };
        let (text, mut joining) = (b"..hello..live live..", None);
        for cut in 0..=text.len() {
            let joining = joining.insert(Joining { upgrading: false, heard: Vec::new(), looked: 0, steps: steps() });
            let mut said = Vec::new();
            for piece in [&text[..cut], &text[cut..]] {
                joining.heard.extend_from_slice(piece);
                said.extend(joining.advance());
            }
            assert_eq!((&said[..], joining.steps.len()), (&b"onetwo"[..], 0), "cut at {cut}");
        }
    }
}
