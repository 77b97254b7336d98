//! All subscribers on one epoll: they join, and then what comes is counted.
//!
//! Each subscriber is checked for what it gets: every message of its channels once and in order. What is missing in
//! between was passed over, what comes again is a fault of the server.

mod member;
mod tally;

use std::{
    mem::MaybeUninit,
    net::TcpStream,
    ops::Range,
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::{Duration, Instant},
};

use rustix::{
    event::{
        Timespec,
        epoll::{self, CreateFlags, Event, EventData, EventFlags},
    },
    io::Errno,
    net::{RecvFlags, recv, sockopt::set_socket_linger},
};

use self::member::Listener;
pub(super) use self::{member::Member, tally::Tally};
use super::board::Board;
use crate::{
    Outcome,
    frames::Reader,
    mark::Search,
    speech::{Ear, Subscribing},
};

const BUFFER: usize = 256 * 1024;
const EVENTS: usize = 256;
const PUBLISHER: u64 = u64::MAX;
/// How long joining may go without a step forward.
const STUCK: Duration = Duration::from_secs(30);
const TURN: Duration = Duration::from_millis(10);

pub(super) struct Audience {
    epoll: OwnedFd,
    board: Arc<Board>,
    subscribing: Arc<dyn Subscribing>,
    members: Vec<Member>,
    joined: usize,
    listener: Option<Listener>,
    pub tally: Tally,
    search: Search,
    buffer: Vec<u8>,
}

impl Audience {
    pub fn new(board: Arc<Board>, subscribing: Arc<dyn Subscribing>) -> Outcome<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            board,
            subscribing,
            members: Vec::new(),
            joined: 0,
            listener: None,
            tally: Tally::default(),
            search: Search::default(),
            buffer: vec![0; BUFFER],
        })
    }

    /// Hears what the publisher is told.
    pub fn listen(&mut self, stream: TcpStream, reader: Reader, ear: Box<dyn Ear>) -> Outcome<()> {
        epoll::add(&self.epoll, &stream, EventData::new_u64(PUBLISHER), EventFlags::IN)?;
        self.listener = Some(Listener { stream, reader, ear });
        Ok(())
    }

    /// From here on subscribers join in another way.
    pub fn speak(&mut self, subscribing: Arc<dyn Subscribing>) {
        self.subscribing = subscribing;
    }

    /// Joins subscribers, each to its channels, so many at once. Returns when all have joined.
    pub fn join(&mut self, wanted: &[Range<usize>], at_once: usize) -> Outcome<()> {
        let (mut wanted, all) = (wanted.iter(), self.members.len() + wanted.len());
        let mut progress = (self.joined, Instant::now());
        while self.joined < all {
            while self.members.len() - self.joined < at_once {
                let Some(channels) = wanted.next() else { break };
                self.begin(channels.clone(), None)?;
            }
            self.turn(TURN)?;
            self.board.check()?;
            if progress.0 < self.joined {
                progress = (self.joined, Instant::now());
            } else if progress.1.elapsed() > STUCK {
                return Err(format!("only {} of {all} subscribers could join", self.joined).into());
            }
        }
        Ok(())
    }

    /// Joins subscribers that read nothing more once they have joined, and have small buffers. They count nowhere.
    pub fn join_deaf(&mut self, count: usize, channels: &Range<usize>) -> Outcome<Vec<TcpStream>> {
        /// The kernel makes the least of it that it allows.
        const SMALL: usize = 1;
        let mut deaf = Vec::new();
        for _ in 0..count {
            let before = self.joined;
            self.begin(channels.clone(), Some(SMALL))?;
            let began = Instant::now();
            while self.joined == before {
                self.turn(TURN)?;
                self.board.check()?;
                if began.elapsed() > STUCK {
                    return Err("a subscriber could not join".into());
                }
            }
            let member = self.members.pop().ok_or("nobody joined")?;
            self.joined -= 1;
            self.tally.forget(&member.seat);
            epoll::delete(&self.epoll, &member.stream)?;
            deaf.push(member.stream);
        }
        Ok(deaf)
    }

    fn begin(&mut self, channels: Range<usize>, receive_buffer: Option<usize>) -> Outcome<()> {
        let seat = self.tally.seat(&channels);
        let member = Member::begin(self.subscribing.as_ref(), &channels, seat, receive_buffer)?;
        let flags = EventFlags::IN | EventFlags::ET;
        epoll::add(&self.epoll, &member.stream, EventData::new_u64(self.members.len() as u64), flags)?;
        self.members.push(member);
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Cuts all subscribers off at once, without a word.
    pub fn cut(&mut self) -> Outcome<()> {
        for member in &self.members {
            set_socket_linger(&member.stream, Some(Duration::ZERO))?;
        }
        self.members.clear();
        self.joined = 0;
        self.tally.clear();
        Ok(())
    }

    /// Reads for a while.
    pub fn live(&mut self, time: Duration) -> Outcome<()> {
        let end = Instant::now() + time;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            self.turn(left.min(TURN))?;
            self.board.check()?;
        }
        Ok(())
    }

    /// Reads until the board says stop. What fails is written on the board.
    pub fn run(&mut self) {
        while !self.board.stop.load(SeqCst) {
            self.tally.measuring = self.board.measuring.load(SeqCst);
            if let Err(failure) = self.turn(TURN) {
                self.board.fail(failure.to_string());
            }
        }
    }

    /// Waits for something to read, reads it all, and tells the board.
    pub fn turn(&mut self, most: Duration) -> Outcome<()> {
        let timeout = Timespec { tv_sec: most.as_secs() as _, tv_nsec: most.subsec_nanos().into() };
        let mut events = [MaybeUninit::<Event>::uninit(); EVENTS];
        let ready = match epoll::wait(&self.epoll, &mut events, Some(&timeout)) {
            Ok((ready, _)) => ready,
            Err(Errno::INTR) => &mut [],
            Err(error) => return Err(error.into()),
        };
        for event in ready {
            match event.data.u64() {
                PUBLISHER => self.hear()?,
                member => self.receive(member as usize)?,
            }
        }
        self.tell();
        Ok(())
    }

    fn receive(&mut self, member: usize) -> Outcome<()> {
        let Self { members, tally, search, buffer, subscribing, joined, .. } = self;
        // Its connection was cut while its event was on the way.
        let Some(member) = members.get_mut(member) else { return Ok(()) };
        loop {
            let (_, count) = match recv(&member.stream, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err("the server closed a subscriber's connection".into()),
                Ok(received) => received,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(format!("a subscriber was cut off: {error}").into()),
            };
            tally.now = crate::machine::now();
            let was_joining = member.is_joining();
            member.hear(&buffer[..count], subscribing.as_ref(), search, tally)?;
            *joined += usize::from(was_joining && !member.is_joining());
            // With less than there was room for the socket is empty, and the next bytes make a new event.
            if count < buffer.len() {
                return Ok(());
            }
        }
    }

    fn hear(&mut self) -> Outcome<()> {
        let Some(listener) = &mut self.listener else { return Ok(()) };
        match recv(&listener.stream, &mut self.buffer[..], RecvFlags::DONTWAIT) {
            Ok((_, 0)) => Err("the server closed the publisher's connection".into()),
            Ok((_, count)) => listener.hear(&self.buffer[..count], &self.board),
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(error) => Err(format!("the publisher was cut off: {error}").into()),
        }
    }

    fn tell(&mut self) {
        let Self { board, tally, .. } = self;
        board.delivered.store(tally.delivered, SeqCst);
        board.skipped.store(tally.skipped, SeqCst);
        board.repeated.store(tally.repeated, SeqCst);
        if board.completed.swap(tally.completed, SeqCst) != tally.completed {
            board.wake();
        }
    }
}
