//! Who has got what.

use std::ops::Range;

use crate::{histogram::Histogram, mark::Mark};

/// Where one connection's numbers stand.
#[derive(Clone, Debug)]
pub(crate) struct Seat {
    first: u32,
    base: usize,
    channels: usize,
}

#[derive(Default)]
pub(crate) struct Tally {
    pub delivered: u64,
    pub skipped: u64,
    pub repeated: u64,
    pub completed: u64,
    /// Whether latencies count.
    pub measuring: bool,
    /// The time of the present read.
    pub now: u64,
    pub latencies: Histogram,
    /// The number with which newcomers begin.
    pub begin_at: u32,
    /// What each seat expects next, channel by channel.
    expected: Vec<u32>,
    completion: Option<Completion>,
    /// An event that nobody asked for.
    pub strange: Option<Mark>,
}

/// How many have each of the newest messages of each channel.
struct Completion {
    audience: u32,
    /// Of one channel not more messages are under way than this.
    window: usize,
    have: Vec<u32>,
}

impl Tally {
    /// From here on it is counted which messages all subscribers of a channel have, of which so many are under way.
    pub fn complete(&mut self, channels: usize, audience: usize, window: u64) {
        let window = window as usize;
        self.completion = Some(Completion { audience: audience as u32, window, have: vec![0; channels * window] });
    }

    pub fn seat(&mut self, channels: &Range<usize>) -> Seat {
        let base = self.expected.len();
        self.expected.resize(base + channels.len(), self.begin_at);
        Seat { first: channels.start as u32, base, channels: channels.len() }
    }

    /// Gives the newest seat back.
    pub fn forget(&mut self, seat: &Seat) {
        self.expected.truncate(seat.base);
    }

    /// Nobody is there any more, and counting begins anew.
    pub fn clear(&mut self) {
        self.expected.clear();
        (self.delivered, self.skipped, self.repeated) = (0, 0, 0);
    }

    pub fn arrived(&mut self, seat: &Seat, mark: Mark) {
        let place = mark.channel.wrapping_sub(seat.first) as usize;
        if place >= seat.channels {
            self.strange.get_or_insert(mark);
            return;
        }
        let expected = &mut self.expected[seat.base + place];
        if mark.number < *expected {
            self.repeated += 1;
            return;
        }
        let new = *expected..=mark.number;
        self.skipped += u64::from(mark.number - *expected);
        *expected = mark.number + 1;
        self.delivered += 1;
        if let Some(completion) = &mut self.completion {
            self.completed += completion.count(mark.channel, new);
        }
        if self.measuring {
            self.latencies.record(self.now.saturating_sub(mark.at));
        }
    }
}

impl Completion {
    /// One more has these. Returns how many of them everybody has by that.
    fn count(&mut self, channel: u32, numbers: std::ops::RangeInclusive<u32>) -> u64 {
        let mut completed = 0;
        for number in numbers {
            let have = &mut self.have[channel as usize * self.window + number as usize % self.window];
            *have += 1;
            if *have == self.audience {
                *have = 0;
                completed += 1;
            }
        }
        completed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(channel: u32, number: u32) -> Mark {
        Mark { at: 1_000, channel, number }
    }

    #[test]
    fn a_message_is_complete_when_the_last_subscriber_has_it() {
        let mut tally = Tally::default();
        tally.complete(2, 2, 4);
        let seats = [tally.seat(&(0..1)), tally.seat(&(1..2)), tally.seat(&(0..1)), tally.seat(&(1..2))];
        for number in 0..20 {
            tally.arrived(&seats[0], mark(0, number));
            tally.arrived(&seats[1], mark(1, number));
            assert_eq!(tally.completed, u64::from(number) * 2);
            tally.arrived(&seats[3], mark(1, number));
            tally.arrived(&seats[2], mark(0, number));
            assert_eq!(tally.completed, u64::from(number + 1) * 2);
        }
        assert_eq!((tally.delivered, tally.skipped, tally.repeated), (80, 0, 0));
    }

    #[test]
    fn what_was_passed_over_is_complete_and_counted_apart() {
        let mut tally = Tally::default();
        tally.complete(1, 2, 2);
        let seats = [tally.seat(&(0..1)), tally.seat(&(0..1))];
        tally.arrived(&seats[0], mark(0, 0));
        tally.arrived(&seats[0], mark(0, 1));
        assert_eq!(tally.completed, 0);
        tally.arrived(&seats[1], mark(0, 1));
        assert_eq!((tally.completed, tally.delivered, tally.skipped), (2, 3, 1));
    }

    #[test]
    fn a_repeat_counts_as_nothing_else() {
        let mut tally = Tally { measuring: true, now: 5_000, ..Tally::default() };
        let seat = tally.seat(&(3..5));
        for seen in [mark(3, 0), mark(4, 0), mark(3, 0), mark(3, 1), mark(3, 0)] {
            tally.arrived(&seat, seen);
        }
        assert_eq!((tally.delivered, tally.repeated, tally.latencies.count()), (3, 2, 3));
        assert!(tally.latencies.at(0.5).unwrap().abs_diff(4_000) < 100);
    }

    #[test]
    fn a_message_of_another_channel_is_strange() {
        let mut tally = Tally::default();
        let seat = tally.seat(&(3..4));
        tally.arrived(&seat, mark(4, 0));
        assert_eq!((tally.strange, tally.delivered), (Some(mark(4, 0)), 0));
        tally.strange = None;
        tally.arrived(&seat, mark(2, 0));
        assert_eq!(tally.strange, Some(mark(2, 0)));
    }

    #[test]
    fn whoever_resumes_begins_with_what_was_missed() {
        let mut tally = Tally { begin_at: 200, ..Tally::default() };
        let seat = tally.seat(&(0..1));
        tally.arrived(&seat, mark(0, 200));
        assert_eq!((tally.delivered, tally.skipped), (1, 0));
    }
}
