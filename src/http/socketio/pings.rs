//! Pings and their pongs. A pong carries nothing: which ping it answers is told by the order alone.

use std::collections::VecDeque;

use tokio::time::Instant;

/// Pings without an answer. A client that answers none proves nothing by more of them.
const UNANSWERED: usize = 64;

pub(super) struct Pings {
    /// When the heartbeat's next one is due.
    pub next: Instant,
    /// The heartbeat's is due.
    pub due: bool,
    /// Something was sent that is to be proved soon.
    pub owed: bool,
    last: u64,
    /// Where each was queued, oldest first.
    unanswered: VecDeque<u64>,
}

impl Pings {
    pub(super) fn new(next: Instant) -> Self {
        Self { next, due: false, owed: false, last: 0, unanswered: VecDeque::new() }
    }

    /// Whether another one is of use: one that has not left yet would be answered no sooner than one behind it.
    pub(super) fn has_room(&self, has_left: impl FnOnce(u64) -> bool) -> bool {
        self.unanswered.len() < UNANSWERED && self.unanswered.back().is_none_or(|place| has_left(*place))
    }

    /// One was queued at this place. Returns its number.
    pub(super) fn queued(&mut self, place: u64) -> u64 {
        self.last += 1;
        self.unanswered.push_back(place);
        self.last
    }

    /// A pong came. Returns the number of the ping that it answers; one that nobody asked for, or whose ping has not
    /// left, answers none.
    pub(super) fn answered(&mut self, has_left: impl FnOnce(u64) -> bool) -> Option<u64> {
        let place = *self.unanswered.front()?;
        if !has_left(place) {
            return None;
        }
        self.unanswered.pop_front();
        Some(self.last - self.unanswered.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pongs_answer_in_order_and_only_what_has_left() {
        let mut pings = Pings::new(Instant::now());
        assert_eq!(pings.answered(|_| true), None);
        assert_eq!((pings.queued(5), pings.queued(9)), (1, 2));
        assert_eq!(pings.answered(|place| place <= 4), None);
        assert_eq!(pings.answered(|place| place <= 5), Some(1));
        assert_eq!(pings.answered(|place| place <= 5), None);
        assert!(!pings.has_room(|place| place <= 5));
        assert_eq!(pings.queued(12), 3);
        assert_eq!((pings.answered(|_| true), pings.answered(|_| true)), (Some(2), Some(3)));
        assert_eq!(pings.answered(|_| true), None);
        assert_eq!(pings.queued(20), 4);
        assert_eq!(pings.answered(|_| true), Some(4));
    }

    #[test]
    fn who_answers_none_is_not_pinged_without_end() {
        let mut pings = Pings::new(Instant::now());
        while pings.has_room(|_| true) {
            pings.queued(0);
        }
        assert_eq!(pings.unanswered.len(), UNANSWERED);
    }
}
