//! Sets of times, as half-open spans in milliseconds.

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Spans(Vec<(u64, u64)>);

impl Spans {
    pub(super) fn of(spans: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let mut all: Vec<_> = spans.into_iter().filter(|(from, to)| from < to).collect();
        all.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::with_capacity(all.len());
        for (from, to) in all {
            match merged.last_mut() {
                Some(last) if from <= last.1 => last.1 = last.1.max(to),
                _ => merged.push((from, to)),
            }
        }
        Self(merged)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter().copied()
    }

    pub(super) fn and(&self, other: &Self) -> Self {
        let both = self.iter().flat_map(|(a, b)| other.iter().map(move |(c, d)| (a.max(c), b.min(d))));
        Self::of(both)
    }

    pub(super) fn or(&self, other: &Self) -> Self {
        Self::of(self.iter().chain(other.iter()))
    }

    pub(super) fn without(&self, other: &Self) -> Self {
        let mut left = Vec::new();
        for (mut from, to) in self.iter() {
            for (a, b) in other.iter().filter(|(a, _)| *a < to) {
                left.push((from, a));
                from = from.max(b);
            }
            left.push((from, to));
        }
        Self::of(left)
    }

    pub(super) fn has(&self, at: u64) -> bool {
        self.iter().any(|(from, to)| (from..to).contains(&at))
    }

    /// Whether all of `from..=to` is in one span.
    pub(super) fn has_all(&self, from: u64, to: u64) -> bool {
        self.iter().any(|(a, b)| a <= from && to < b)
    }

    pub(super) fn meets(&self, from: u64, to: u64) -> bool {
        self.iter().any(|(a, b)| a < to && from < b)
    }
}

#[test]
fn spans_are_sets() {
    let a = Spans::of([(5, 9), (0, 3), (2, 4), (7, 7)]);
    assert_eq!(a, Spans(vec![(0, 4), (5, 9)]));
    assert_eq!(a.and(&Spans::of([(3, 6)])), Spans(vec![(3, 4), (5, 6)]));
    assert_eq!(a.without(&Spans::of([(1, 2), (3, 6)])), Spans(vec![(0, 1), (2, 3), (6, 9)]));
    assert!(a.has(3) && !a.has(4) && a.has_all(5, 8) && !a.has_all(3, 5) && a.meets(4, 6) && !a.meets(4, 5));
}
