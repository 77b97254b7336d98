//! The events of one session that the gateway has not acknowledged: bounded, numbered, and sent again after a loss.
//!
//! Plain state without clock or IO. Numbers are dense: the first event kept carries `first`, the next one made will
//! carry `first + kept.len()`. An event that is dropped, because the gateway will never take it, gives its number to
//! the one behind it, which is what the gateway then expects.

use std::collections::VecDeque;

use bytes::Bytes;
use onlooker_protocol::{
    event::kind,
    picture::{self, PublishedPicture},
    runtime::{PublishedEvent, RuntimeToGateway},
};
use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;

use crate::socket;

/// Bounds of what is kept unacknowledged a session. One event larger than the bytes is taken when nothing else waits.
pub(crate) const EVENTS_MAX: usize = 1_000;
pub(crate) const BYTES_MAX: usize = 16 << 20;

/// What an event takes in a frame beside its data, rounded up: names, numbers, the task's id.
const ENVELOPE: usize = 192;
/// What a frame takes beside its events and its session's id, rounded up.
const FRAME: usize = 64;

/// Bounds of one frame, from the gateway's `hello`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameLimits {
    pub(crate) bytes: usize,
    pub(crate) events: usize,
}

/// An event before it has a number.
#[derive(Clone, Debug)]
pub(crate) struct Unnumbered {
    pub(crate) kind: String,
    pub(crate) task: Option<String>,
    pub(crate) data: Value,
    pub(crate) picture: Option<Picture>,
    size: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct Picture {
    pub(crate) media: String,
    pub(crate) bytes: Bytes,
}

impl Unnumbered {
    pub(crate) fn new(kind: &str, task: Option<&str>, data: Value) -> Self {
        let size = ENVELOPE + kind.len() + json_size(&data);
        Self { kind: kind.to_owned(), task: task.map(str::to_owned), data, picture: None, size }
    }

    pub(crate) fn picture(task: Option<&str>, media: &str, bytes: Bytes, data: Value) -> Self {
        let mut event = Self::new(kind::SCREENSHOT, task, data);
        event.size += media.len() + bytes.len();
        event.picture = Some(Picture { media: media.to_owned(), bytes });
        event
    }
}

/// What the writer does next for a window.
#[derive(Debug)]
pub(crate) enum NextFrame {
    Send(Message),
    /// The next event fits no frame of this gateway: it is dropped.
    TooLarge(Unnumbered),
    Nothing,
}

#[derive(Debug)]
pub(crate) struct Window {
    kept: VecDeque<Unnumbered>,
    bytes: usize,
    /// The number of the first event kept, or of the next one made.
    first: u64,
    /// How many of those kept were sent on this connection.
    sent: usize,
    /// Where the last rewind went, until the gateway has answered something from there on. What it says before that
    /// answers frames from before the rewind.
    rewound: Option<u64>,
}

impl Window {
    pub(crate) fn new() -> Self {
        Self { kept: VecDeque::new(), bytes: 0, first: 1, sent: 0, rewound: None }
    }

    pub(crate) fn has_room(&self, event: &Unnumbered) -> bool {
        self.kept.is_empty() || (self.kept.len() < EVENTS_MAX && self.bytes + event.size <= BYTES_MAX)
    }

    /// Takes an event. The caller has asked [`Self::has_room`].
    pub(crate) fn push(&mut self, event: Unnumbered) {
        self.bytes += event.size;
        self.kept.push_back(event);
    }

    /// Everything up to `n` is in the log.
    pub(crate) fn accepted(&mut self, n: u64) {
        if self.rewound.is_some_and(|to| n >= to) {
            self.rewound = None;
        }
        let count = n.saturating_add(1).saturating_sub(self.first).min(self.sent as u64);
        for _ in 0..count {
            self.drop_first();
        }
    }

    /// A connection begins at which the gateway expects this number. Returns the number for `n_lost` when events
    /// that it needs are gone; those still kept then follow from that number.
    pub(crate) fn resume(&mut self, expected: u64) -> Option<u64> {
        self.rewound = None;
        self.rewind(expected)
    }

    /// The gateway refused a number, expecting another. Like [`Self::resume`], once for each rewind.
    pub(crate) fn number_expected(&mut self, expected: u64) -> Option<u64> {
        if self.rewound == Some(expected) {
            return None;
        }
        let lost = self.rewind(expected);
        self.rewound = Some(expected);
        lost
    }

    /// The gateway could not take the event after `n` now; everything from there is sent again.
    pub(crate) fn again_after(&mut self, n: u64) {
        self.accepted(n);
        self.sent = 0;
        self.rewound = Some(n + 1);
    }

    /// The gateway will never take the event after `n`: drops and returns it.
    pub(crate) fn drop_after(&mut self, n: u64) -> Option<Unnumbered> {
        self.accepted(n);
        if self.first != n + 1 || self.sent == 0 {
            return None;
        }
        let dropped = self.pop()?;
        self.sent = 0;
        self.rewound = Some(self.first);
        Some(dropped)
    }

    /// The next frame of unsent events: a batch, or one picture.
    pub(crate) fn next_frame(&mut self, session: &str, limits: FrameLimits) -> NextFrame {
        let Some(next) = self.kept.get(self.sent) else { return NextFrame::Nothing };
        let n = self.first + self.sent as u64;
        if FRAME + session.len() + next.size > limits.bytes {
            let dropped = self.kept.remove(self.sent).expect("the event was there a line ago");
            self.bytes -= dropped.size;
            return NextFrame::TooLarge(dropped);
        }
        if let Some(picture) = &next.picture {
            let header = PublishedPicture {
                session: session.to_owned(),
                n,
                media: picture.media.clone(),
                task: next.task.clone(),
                data: next.data.clone(),
            };
            let frame = picture::encode(&header, &picture.bytes);
            self.sent += 1;
            return NextFrame::Send(Message::binary(frame));
        }
        let events = self.batch(n, limits.bytes - FRAME - session.len(), limits.events);
        self.sent += events.len();
        NextFrame::Send(socket::text(&RuntimeToGateway::Events { session: session.to_owned(), events }))
    }

    fn batch(&self, n: u64, mut room: usize, events_max: usize) -> Vec<PublishedEvent> {
        let mut events = Vec::new();
        for event in self.kept.range(self.sent..).take(events_max.max(1)) {
            if event.picture.is_some() || event.size > room {
                break;
            }
            room -= event.size;
            events.push(PublishedEvent {
                n: n + events.len() as u64,
                kind: event.kind.clone(),
                task: event.task.clone(),
                data: event.data.clone(),
                picture: None,
            });
        }
        events
    }

    fn rewind(&mut self, expected: u64) -> Option<u64> {
        let lost = (expected < self.first).then_some(expected);
        let next = self.first + self.kept.len() as u64;
        // Outside of what is kept, the events before are gone here, or the log has some that were never made here:
        // then all that is kept goes on from where the gateway is.
        if (self.first..=next).contains(&expected) {
            for _ in self.first..expected {
                self.pop();
            }
        }
        self.first = expected;
        self.sent = 0;
        lost
    }

    fn drop_first(&mut self) {
        self.pop();
        self.sent -= 1;
        self.first += 1;
    }

    /// Takes the first event out without moving the numbers.
    fn pop(&mut self) -> Option<Unnumbered> {
        let event = self.kept.pop_front()?;
        self.bytes -= event.size;
        Some(event)
    }
}

/// A size that JSON text of this value does not exceed by much: strings are counted with room for their escapes.
fn json_size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) => 5,
        Value::Number(_) => 24,
        Value::String(text) => string_size(text),
        Value::Array(items) => 2 + items.iter().map(|item| 1 + json_size(item)).sum::<usize>(),
        Value::Object(members) => {
            2 + members.iter().map(|(name, value)| 2 + string_size(name) + json_size(value)).sum::<usize>()
        }
    }
}

fn string_size(text: &str) -> usize {
    let escapes = |byte: u8| match byte {
        b'"' | b'\\' => 1,
        0..=0x1f => 5,
        _ => 0,
    };
    2 + text.bytes().map(|byte| 1 + escapes(byte)).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const LIMITS: FrameLimits = FrameLimits { bytes: 4_096, events: 3 };

    fn event(name: u64) -> Unnumbered {
        Unnumbered::new(kind::ACTION, Some("t"), json!({"name": name}))
    }

    fn window(events: std::ops::RangeInclusive<u64>) -> Window {
        let mut window = Window::new();
        events.for_each(|name| window.push(event(name)));
        window
    }

    /// Sends everything unsent and returns (number, name) of each event.
    fn sent(window: &mut Window) -> Vec<(u64, u64)> {
        let mut out = Vec::new();
        while let NextFrame::Send(message) = window.next_frame("s", LIMITS) {
            let frame: RuntimeToGateway = serde_json::from_str(message.to_text().unwrap()).unwrap();
            let RuntimeToGateway::Events { events, .. } = frame else { panic!("a batch") };
            assert!(events.len() <= LIMITS.events && message.len() <= LIMITS.bytes);
            out.extend(events.iter().map(|e| (e.n, e.data["name"].as_u64().unwrap())));
        }
        out
    }

    #[test]
    fn a_resume_sends_again_from_the_number_expected() {
        let mut window = window(1..=5);
        assert_eq!(sent(&mut window).len(), 5);
        window.accepted(2);
        assert_eq!(window.resume(4), None);
        assert_eq!(sent(&mut window), [(4, 4), (5, 5)]);
    }

    #[test]
    fn events_that_are_gone_are_told_and_the_kept_ones_follow_from_there() {
        let mut window = window(1..=5);
        sent(&mut window);
        window.accepted(4);
        assert_eq!(window.resume(2), Some(2));
        assert_eq!(sent(&mut window), [(2, 5)]);
    }

    #[test]
    fn a_log_that_is_ahead_is_followed_without_loss() {
        let mut window = window(1..=2);
        assert_eq!(window.resume(9), None);
        assert_eq!(sent(&mut window), [(9, 1), (10, 2)]);
    }

    #[test]
    fn a_refused_event_gives_its_number_to_the_next_and_stale_refusals_rewind_nothing() {
        let mut window = window(1..=5);
        sent(&mut window);
        assert_eq!(window.drop_after(2).unwrap().data, json!({"name": 3}));
        assert_eq!(sent(&mut window), [(3, 4), (4, 5)]);
        // The gateway's words on what was under way when it refused.
        assert_eq!(window.number_expected(3), None);
        assert_eq!(sent(&mut window), []);
        window.accepted(4);
        assert!(window.kept.is_empty());
    }

    #[test]
    fn an_event_larger_than_a_frame_is_given_up_and_the_rest_keeps_dense_numbers() {
        let mut window = window(1..=1);
        window.push(Unnumbered::new(kind::AGENT, None, json!({"content": "x".repeat(5_000)})));
        window.push(event(3));
        let first = sent(&mut window);
        assert_eq!(first, [(1, 1)]);
        assert_eq!(sent(&mut window), [(2, 3)]);
    }

    #[test]
    fn a_window_is_bounded_by_bytes_and_takes_one_event_of_any_size() {
        let mut window = Window::new();
        let large = || Unnumbered::picture(None, "image/png", vec![0; BYTES_MAX + 1].into(), Value::Null);
        assert!(window.has_room(&large()));
        window.push(large());
        assert!(!window.has_room(&event(1)));
    }

    proptest! {
        /// A gateway that follows the rules and may be cut off at any moment ends with every event, once, in order.
        #[test]
        fn a_gateway_that_is_cut_off_gets_every_event_once(steps in prop::collection::vec((0u8..4, 0u64..6), 1..60)) {
            let mut window = Window::new();
            let (mut made, mut log, mut under_way) = (0, Vec::new(), VecDeque::new());
            for (step, amount) in steps {
                match step {
                    0 => for _ in 0..amount { made += 1; window.push(event(made)); },
                    1 => under_way.extend(sent(&mut window)),
                    2 => for _ in 0..amount {
                        let Some((n, name)) = under_way.pop_front() else { break };
                        prop_assert_eq!(n, log.len() as u64 + 1);
                        log.push(name);
                        window.accepted(n);
                    },
                    _ => {
                        // Some of what was under way arrives, its acknowledgement does not.
                        log.extend(under_way.drain(..).take(amount as usize).map(|(_, name)| name));
                        prop_assert_eq!(window.resume(log.len() as u64 + 1), None);
                    }
                }
            }
            log.extend(under_way.drain(..).map(|(_, name)| name));
            window.accepted(log.len() as u64);
            log.extend(sent(&mut window).into_iter().map(|(_, name)| name));
            prop_assert_eq!(log, (1..=made).collect::<Vec<_>>());
        }

        #[test]
        fn the_estimated_size_covers_the_json(text in ".*", number in any::<f64>()) {
            let value = json!({"a": text, "b": [number, null, true, {"c\n": text}]});
            prop_assert!(json_size(&value) >= serde_json::to_string(&value).unwrap().len());
        }
    }
}
