//! Long-polling: what waits to be fetched, the request that waits for it, and the upgrade away from it.
//!
//! A body stays until its client asks for something else: an HTTP stack may repeat a request on a connection that died,
//! and then gets the same body. A request with a new `t` shows that the body before was read.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use onlooker_protocol::Position;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};
use tokio_tungstenite::tungstenite::Message;

use super::{
    super::wire::{Turn, Wire},
    desk::{Asked, Place},
    forms::Item,
    packet::{NOOP, PROBE, PROBE_ANSWER},
    payload,
};

/// How long an upgrade may take from its socket to its last packet.
const UPGRADE: Duration = Duration::from_secs(10);
/// While an upgrade is under way a poll with nothing to carry is answered after this: its client waits for that.
const RELEASE: Duration = Duration::from_millis(100);

/// Packets in one body. `python-socketio` takes no more, and is gone when more come.
const PACKETS: u64 = 16;

pub(super) struct Polling {
    _place: Place,
    asked: mpsc::Receiver<Asked>,
    out: VecDeque<Item>,
    out_bytes: usize,
    /// Packets that went out in bodies.
    handed_on: u64,
    waiting: Option<Waiting>,
    last: Option<Fetched>,
    proof: Option<Position>,
    probe: Option<Probe>,
    /// Since when no request waits.
    quiet_since: Instant,
    /// The websocket is the transport: what is asked here is misplaced.
    left: bool,
}

/// A request that waits for a body.
struct Waiting {
    t: Option<Box<str>>,
    reply: oneshot::Sender<Bytes>,
    since: Instant,
}

/// The last body.
struct Fetched {
    t: Option<Box<str>>,
    body: Bytes,
    /// What it proves once it is known to be read.
    position: Option<Position>,
}

struct Probe {
    wire: Box<Wire>,
    until: Instant,
    answered: bool,
}

/// What happened at the desk.
pub(super) enum Happened {
    /// A request waits for a body.
    Polled,
    Posted {
        body: Bytes,
        reply: oneshot::Sender<()>,
    },
    /// The websocket is the transport from here on.
    Upgraded(Box<Wire>),
    /// A rule was broken; the session ends.
    Misused,
    /// The request that waited was given up.
    Cancelled,
    /// Nothing that matters.
    Nothing,
}

impl Polling {
    pub(super) fn new(place: Place, asked: mpsc::Receiver<Asked>) -> Self {
        Self {
            _place: place,
            asked,
            out: VecDeque::new(),
            out_bytes: 0,
            handed_on: 0,
            waiting: None,
            last: None,
            proof: None,
            probe: None,
            quiet_since: Instant::now(),
            left: false,
        }
    }

    pub(super) fn queue(&mut self, item: Item) {
        self.out_bytes += item.size();
        self.out.push_back(item);
    }

    /// Packets that were ever queued here.
    pub(super) fn queued(&self) -> u64 {
        self.handed_on + self.out.iter().map(Item::packets).sum::<u64>()
    }

    /// Of those, how many went out in bodies.
    pub(super) fn handed_on(&self) -> u64 {
        self.handed_on
    }

    pub(super) fn waiting_bytes(&self) -> usize {
        self.out_bytes
    }

    pub(super) fn is_waited_for(&self) -> bool {
        self.waiting.is_some()
    }

    /// Since when nobody waits for a body; `None` while somebody does, or nobody has to.
    pub(super) fn quiet_since(&self) -> Option<Instant> {
        (self.waiting.is_none() && !self.left).then_some(self.quiet_since)
    }

    /// What the client has shown that it has, since this was last asked.
    pub(super) fn take_proof(&mut self) -> Option<Position> {
        self.proof.take()
    }

    /// What waits, for the transport that takes over.
    pub(super) fn take_out(&mut self) -> VecDeque<Item> {
        self.out_bytes = 0;
        std::mem::take(&mut self.out)
    }

    /// Answers the request that waits with what waits for it. `position` is what is proved once all of that is read.
    pub(super) fn deliver(&mut self, position: Option<Position>) {
        if self.out.is_empty() {
            return;
        }
        let Some(waiting) = self.waiting.take() else { return };
        let body = payload::join(self.take_body(PACKETS));
        self.answer(waiting, body, position.filter(|_| self.out.is_empty()));
    }

    /// The oldest items, as far as they fit into a body of so many packets.
    fn take_body(&mut self, packets: u64) -> Vec<Item> {
        let mut room = packets;
        let mut body = Vec::new();
        while let Some(item) = self.out.pop_front_if(|item| item.packets() <= room) {
            room -= item.packets();
            self.out_bytes -= item.size();
            body.push(item);
        }
        self.handed_on += packets - room;
        body
    }

    fn answer(&mut self, waiting: Waiting, body: Bytes, position: Option<Position>) {
        self.quiet_since = Instant::now();
        self.last = Some(Fetched { t: waiting.t, body: body.clone(), position });
        // Given up in this instant: it may be repeated.
        let _ = waiting.reply.send(body);
    }

    fn release(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            self.answer(waiting, Bytes::from_static(NOOP.as_bytes()), None);
        }
    }

    /// The last word to whoever waits, behind what was queued, as far as it fits.
    pub(super) fn say_goodbye(&mut self, word: &'static str) {
        let Some(waiting) = self.waiting.take() else { return };
        let mut items = self.take_body(PACKETS - 1);
        items.push(Item::Text(word.into()));
        self.answer(waiting, payload::join(items), None);
    }

    /// What happens next. Cancel safe.
    pub(super) async fn next(&mut self) -> Happened {
        let answered = self.probe.as_ref().is_some_and(|probe| probe.answered);
        let release = self.waiting.as_ref().filter(|_| answered).map(|waiting| waiting.since + RELEASE);
        let probe_until = self.probe.as_ref().map(|probe| probe.until);
        tokio::select! {
            biased;
            asked = self.asked.recv() => match asked {
                Some(asked) => self.take(asked),
                None => Happened::Misused,
            },
            () = given_up(self.waiting.as_mut()) => Happened::Cancelled,
            turn = probed(self.probe.as_mut()) => self.probed(turn),
            () = at(release) => {
                self.release();
                Happened::Nothing
            }
            () = at(probe_until) => {
                self.probe = None;
                Happened::Nothing
            }
        }
    }

    fn take(&mut self, asked: Asked) -> Happened {
        match asked {
            // The replies are dropped, which says so.
            Asked::Poll { .. } | Asked::Post { .. } | Asked::Upgrade(_) if self.left => Happened::Nothing,
            Asked::Poll { t, reply } => self.polled(t, reply),
            Asked::Post { body, reply } => Happened::Posted { body, reply },
            Asked::Upgrade(_) if self.probe.is_some() => Happened::Nothing,
            Asked::Upgrade(wire) => {
                let until = Instant::now() + UPGRADE;
                self.probe = Some(Probe { wire, until, answered: false });
                Happened::Nothing
            }
            // It was begun before the upgrade was over.
            Asked::Misused if self.left => Happened::Nothing,
            Asked::Misused => Happened::Misused,
        }
    }

    fn polled(&mut self, t: Option<Box<str>>, reply: oneshot::Sender<Bytes>) -> Happened {
        let waiting = Waiting { t, reply, since: Instant::now() };
        if let Some(other) = self.waiting.take() {
            let repeated = waiting.t.is_some() && waiting.t == other.t;
            if !repeated && !other.reply.is_closed() {
                self.waiting = Some(other);
                return Happened::Misused;
            }
            let _ = other.reply.send(Bytes::from_static(NOOP.as_bytes()));
        }
        if let Some(last) = self.last.take() {
            if waiting.t.is_some() && waiting.t == last.t {
                let (body, position) = (last.body, last.position);
                self.answer(waiting, body, position);
                return Happened::Nothing;
            }
            if waiting.t.is_some() && last.t.is_some() {
                self.proof = last.position.or(self.proof);
            }
        }
        self.waiting = Some(waiting);
        Happened::Polled
    }

    fn probed(&mut self, turn: Turn) -> Happened {
        let Some(probe) = self.probe.as_mut() else { return Happened::Nothing };
        match turn {
            Turn::Flushed => {}
            Turn::Received(Message::Ping(_) | Message::Pong(_)) => {}
            Turn::Received(Message::Text(text)) if text.as_str() == PROBE && !probe.answered => {
                probe.answered = true;
                probe.wire.send_text_shared(PROBE_ANSWER.into());
                if let Some(waiting) = self.waiting.as_mut() {
                    // Not at once: the client must have the probe's answer before it asks again, or it would ask in vain.
                    waiting.since = Instant::now();
                }
            }
            Turn::Received(Message::Text(text)) if text.as_str() == "5" && probe.answered => {
                let probe = self.probe.take().expect("just seen");
                self.release();
                // Its client stopped polling before it said so: the last body was read, and nothing asks for it again.
                (self.left, self.last) = (true, None);
                return Happened::Upgraded(probe.wire);
            }
            // A failed upgrade leaves the session as it was.
            Turn::Received(_) | Turn::Closed(_) | Turn::Broken(_) => self.probe = None,
        }
        Happened::Nothing
    }
}

async fn given_up(waiting: Option<&mut Waiting>) {
    match waiting {
        Some(waiting) => waiting.reply.closed().await,
        None => std::future::pending().await,
    }
}

async fn probed(probe: Option<&mut Probe>) -> Turn {
    match probe {
        Some(probe) => probe.wire.turn().await,
        None => std::future::pending().await,
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
