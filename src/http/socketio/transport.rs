//! What carries a connection's packets: long-polling, a websocket, or first the one and then the other.

use std::sync::Arc;

use bytes::Bytes;
use onlooker_protocol::Position;
use tokio::{sync::oneshot, time::Instant};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::{
    super::{
        socket::Socket,
        wire::{self, Wire},
    },
    forms::Item,
    polling::{Happened, Polling},
};

/// Steps are asked for while less than this waits.
const FILL: usize = 64 * 1024;

pub(super) struct Transport {
    wire: Option<Wire>,
    /// Present also after the upgrade: its requests are then answered that they are misplaced.
    polling: Option<Box<Polling>>,
}

/// What a turn came to.
pub(super) enum Turn {
    Text(Utf8Bytes),
    Binary(Bytes),
    /// A request's packets. It is answered when the reply is used, and refused when it is dropped.
    Posted {
        body: Bytes,
        reply: oneshot::Sender<()>,
    },
    /// Something may be sent, or was.
    Moved,
    /// The peer broke a rule of the transport.
    Misused,
    /// Gone, or closed by the peer.
    Gone,
    TooLarge,
}

impl Transport {
    pub(super) fn websocket(wire: Wire) -> Self {
        Self { wire: Some(wire), polling: None }
    }

    pub(super) fn polling(polling: Polling) -> Self {
        Self { wire: None, polling: Some(Box::new(polling)) }
    }

    pub(super) fn queue(&mut self, item: Item) {
        match (&mut self.wire, &mut self.polling) {
            (Some(wire), _) => queue_on(wire, item),
            (None, Some(polling)) => polling.queue(item),
            (None, None) => {}
        }
    }

    /// Whether more may be asked for to be sent. A session that polls is given nothing before it asks.
    pub(super) fn has_room(&self) -> bool {
        match (&self.wire, &self.polling) {
            (Some(wire), _) => wire.waiting() < FILL,
            (None, Some(polling)) => polling.is_waited_for() && polling.waiting_bytes() < FILL,
            (None, None) => false,
        }
    }

    /// Whether it is worth while to wait for more.
    pub(super) fn wants_more(&self) -> bool {
        match &self.wire {
            Some(wire) => wire.waiting() < FILL && wire.is_idle(),
            None => self.has_room(),
        }
    }

    /// Whether a ping that is queued now goes out with what was queued before it, and soon.
    pub(super) fn takes_pings(&self) -> bool {
        self.wire.is_some() || self.polling.as_ref().is_some_and(|polling| polling.is_waited_for())
    }

    /// The place of what was queued last, to be asked for later with [`Self::has_left`].
    pub(super) fn place_of_last(&self) -> u64 {
        match (&self.wire, &self.polling) {
            (Some(wire), polling) => before_upgrade(polling.as_deref()) + wire.queued(),
            (None, polling) => polling.as_ref().map_or(0, |polling| polling.queued()),
        }
    }

    /// Whether what was queued at this place was handed on.
    pub(super) fn has_left(&self, place: u64) -> bool {
        let before = before_upgrade(self.polling.as_deref());
        place <= before + self.wire.as_ref().map_or(0, Wire::handed_on)
    }

    /// Answers whoever waits for packets, if there are some.
    pub(super) fn deliver(&mut self, position: impl FnOnce() -> Option<Position>) {
        if let (None, Some(polling)) = (&self.wire, &mut self.polling)
            && polling.is_waited_for()
        {
            polling.deliver(position());
        }
    }

    pub(super) fn take_proof(&mut self) -> Option<Position> {
        self.polling.as_mut()?.take_proof()
    }

    /// Bytes that wait and nobody fetches.
    pub(super) fn unfetched(&self) -> usize {
        match (&self.wire, &self.polling) {
            (None, Some(polling)) => polling.waiting_bytes(),
            _ => 0,
        }
    }

    /// The websocket that everything goes over, if it does.
    pub(super) fn socket(&self) -> Option<&Arc<Socket>> {
        Some(self.wire.as_ref()?.socket())
    }

    pub(super) fn stalled_since(&self) -> Option<Instant> {
        self.wire.as_ref()?.stalled_since()
    }

    pub(super) fn quiet_since(&self) -> Option<Instant> {
        self.polling.as_ref()?.quiet_since()
    }

    /// What happens next. Cancel safe.
    pub(super) async fn turn(&mut self) -> Turn {
        match (&mut self.wire, &mut self.polling) {
            (Some(wire), None) => of_wire(wire.turn().await),
            (Some(wire), Some(polling)) => {
                // Boxed: few connections were upgraded, and all of them pay for what is in this future.
                let misplaced = Box::pin(polling.next());
                tokio::select! {
                    turn = wire.turn() => of_wire(turn),
                    _ = misplaced => Turn::Moved,
                }
            }
            (None, Some(polling)) => match Box::pin(polling.next()).await {
                Happened::Polled | Happened::Nothing => Turn::Moved,
                Happened::Posted { body, reply } => Turn::Posted { body, reply },
                Happened::Upgraded(wire) => {
                    let mut wire = *wire;
                    polling.take_out().into_iter().for_each(|item| queue_on(&mut wire, item));
                    self.wire = Some(wire);
                    Turn::Moved
                }
                Happened::Misused => Turn::Misused,
                Happened::Cancelled => Turn::Gone,
            },
            (None, None) => Turn::Gone,
        }
    }

    /// Its parts, for the end.
    pub(super) fn into_parts(self) -> (Option<Wire>, Option<Box<Polling>>) {
        (self.wire, self.polling)
    }
}

/// Packets that left by polling. Those that had not were the websocket's first.
fn before_upgrade(polling: Option<&Polling>) -> u64 {
    polling.map_or(0, Polling::handed_on)
}

/// Header and attachment are queued together: nothing comes between them.
fn queue_on(wire: &mut Wire, item: Item) {
    match item {
        Item::Text(text) => wire.send_text_shared(text),
        Item::Picture(picture) => {
            wire.send_text_shared(picture.header.clone());
            wire.send_binary(picture.bytes.clone());
        }
    }
}

fn of_wire(turn: wire::Turn) -> Turn {
    match turn {
        wire::Turn::Received(Message::Text(text)) => Turn::Text(text),
        wire::Turn::Received(Message::Binary(bytes)) => Turn::Binary(bytes),
        wire::Turn::Received(_) | wire::Turn::Flushed => Turn::Moved,
        wire::Turn::Closed(_) => Turn::Gone,
        wire::Turn::Broken(error) => match wire::close_code(&error) {
            Some((onlooker_protocol::Code::FrameTooLarge, _)) => Turn::TooLarge,
            Some(_) => Turn::Misused,
            None => Turn::Gone,
        },
    }
}
