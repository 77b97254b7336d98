//! Which rounds count.
//!
//! Machines have more than one speed, and change it for every server alike. So each server runs between two runs of the
//! floor, and counts only where both were as fast as the floor usually is when nothing disturbs it, and like each other:
//! ratios then compare one speed. A floor that was faster than ever once is no measure for the rest.

use std::collections::HashMap;

use serde::Serialize;

use crate::spec::Figures;

/// One server's run, between two of the floor.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub round: usize,
    pub entry: usize,
    pub figures: Figures,
    pub before: Option<Figures>,
    pub after: Option<Figures>,
}

impl Sample {
    pub fn floors(&self) -> impl Iterator<Item = &Figures> {
        self.before.iter().chain(&self.after)
    }

    /// The mean of a figure of the two floors.
    fn floor(&self, figure: impl Fn(&Figures) -> f64) -> Option<f64> {
        let figures: Vec<f64> = self.floors().map(figure).collect();
        (!figures.is_empty()).then(|| figures.iter().sum::<f64>() / figures.len() as f64)
    }

    /// A figure of the server to that of the floor.
    pub fn ratio(&self, figure: impl Fn(&Figures) -> f64) -> Option<f64> {
        let floor = self.floor(&figure).filter(|floor| *floor > 0.0)?;
        Some(figure(&self.figures) / floor)
    }
}

/// Of a failure's sentence so much is shown.
const WHY_MOST: usize = 240;

pub(crate) struct Rounds {
    samples: Vec<Sample>,
    failures: HashMap<usize, String>,
    /// So much of its usual time may the floor take, and of the other one's beside the same run.
    slow: f64,
}

/// The least, the median and the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub least: f64,
    pub median: f64,
    pub greatest: f64,
}

impl Spread {
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (least, greatest) = (*sorted.first()?, *sorted.last()?);
        let half = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[half] } else { f64::midpoint(sorted[half - 1], sorted[half]) };
        Some(Self { least, median, greatest })
    }
}

impl Rounds {
    pub fn new(slow: f64) -> Self {
        Self { samples: Vec::new(), failures: HashMap::new(), slow }
    }

    pub fn add(&mut self, sample: Sample) {
        self.samples.push(sample);
    }

    /// `why` is kept as one line.
    pub fn fail(&mut self, entry: usize, why: &str) {
        let words: Vec<&str> = why.split_whitespace().collect();
        self.failures.insert(entry, words.join(" ").chars().take(WHY_MOST).collect());
    }

    pub fn failure(&self, entry: usize) -> Option<&str> {
        self.failures.get(&entry).map(String::as_str)
    }

    pub fn all(&self) -> &[Sample] {
        &self.samples
    }

    /// What the floor takes for a message when nothing disturbs it: a quarter of its runs took no longer.
    fn undisturbed(&self) -> Option<f64> {
        let mut times: Vec<f64> = self.samples.iter().flat_map(Sample::floors).map(|floor| floor.cpu_us).collect();
        times.sort_by(f64::total_cmp);
        times.get(times.len() / 4).copied()
    }

    pub fn is_clean(&self, sample: &Sample) -> bool {
        let Some(undisturbed) = self.undisturbed() else { return true };
        let Some(beside) = Spread::of(sample.floors().map(|floor| floor.cpu_us)) else { return true };
        beside.greatest <= self.slow * undisturbed.min(beside.least)
    }

    pub fn clean(&self, entry: usize) -> Vec<&Sample> {
        let own = self.samples.iter().filter(|sample| sample.entry == entry);
        own.filter(|sample| self.is_clean(sample)).collect()
    }

    /// How many were thrown out, of one server or of all.
    pub fn thrown_out(&self, entry: Option<usize>) -> usize {
        let own = self.samples.iter().filter(|sample| entry.is_none_or(|entry| entry == sample.entry));
        own.filter(|sample| !self.is_clean(sample)).count()
    }

    /// Two ways in the same rounds, where both are clean.
    pub fn pairs(&self, entry: usize, base: usize) -> Vec<(&Sample, &Sample)> {
        let bases = self.clean(base);
        let with_base = |sample: &'_ Sample| bases.iter().find(|base| base.round == sample.round).copied();
        self.clean(entry).into_iter().filter_map(|sample| Some((sample, with_base(sample)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(cpu_us: f64) -> Figures {
        Figures { cpu_us, ..Figures::default() }
    }

    fn rounds(samples: &[(usize, usize, f64, [f64; 2])]) -> Rounds {
        let mut rounds = Rounds::new(1.25);
        for &(round, entry, cpu, [before, after]) in samples {
            let (before, after) = (Some(figures(before)), Some(figures(after)));
            rounds.add(Sample { round, entry, figures: figures(cpu), before, after });
        }
        rounds
    }

    #[test]
    fn a_round_beside_a_slow_floor_is_thrown_out() {
        let rounds = rounds(&[
            (0, 0, 2.0, [1.0, 1.2]),
            (1, 0, 6.0, [1.2, 3.0]),
            (2, 0, 6.0, [3.0, 1.0]),
            (3, 0, 6.0, [3.0, 3.0]),
            (4, 0, 2.2, [1.25, 1.25]),
        ]);
        let clean: Vec<usize> = rounds.clean(0).iter().map(|sample| sample.round).collect();
        assert_eq!((clean, rounds.thrown_out(Some(0)), rounds.thrown_out(None)), (vec![0, 4], 3, 3));
    }

    #[test]
    fn what_counted_counts_no_longer_once_the_floor_was_faster_more_than_once() {
        let mut rounds = rounds(&[(0, 0, 6.0, [3.0, 3.0]), (1, 0, 6.0, [3.1, 2.9])]);
        assert_eq!(rounds.clean(0).len(), 2);
        let fast = |round| Sample { round, entry: 1, figures: figures(2.0), before: Some(figures(1.0)), after: None };
        rounds.add(fast(2));
        assert_eq!((rounds.clean(0).len(), rounds.clean(1).len(), rounds.thrown_out(None)), (2, 1, 0));
        rounds.add(fast(3));
        assert_eq!((rounds.clean(0).len(), rounds.clean(1).len(), rounds.thrown_out(None)), (0, 2, 2));
    }

    #[test]
    fn a_round_between_two_speeds_is_thrown_out() {
        let rounds = rounds(&[(0, 0, 2.0, [1.0, 1.0]), (1, 0, 2.0, [0.8, 1.2]), (2, 0, 2.0, [1.2, 1.0])]);
        let clean: Vec<usize> = rounds.clean(0).iter().map(|sample| sample.round).collect();
        assert_eq!(clean, [0, 2]);
    }

    #[test]
    fn ratios_are_to_the_floor_on_both_sides() {
        let rounds = rounds(&[(0, 0, 2.2, [1.0, 1.2])]);
        let ratio = rounds.clean(0)[0].ratio(|figures| figures.cpu_us).unwrap();
        assert!((ratio - 2.0).abs() < 1e-9, "{ratio}");
    }

    #[test]
    fn two_ways_are_compared_in_rounds_in_which_both_are_clean() {
        let rounds = rounds(&[
            (0, 0, 2.0, [1.0, 1.0]),
            (0, 1, 3.0, [1.0, 1.0]),
            (1, 0, 2.0, [1.0, 1.0]),
            (1, 1, 9.0, [1.0, 3.0]),
            (2, 1, 4.0, [1.0, 1.0]),
            (2, 0, 2.4, [1.2, 1.2]),
        ]);
        let pairs: Vec<(usize, usize)> = rounds.pairs(1, 0).iter().map(|(a, b)| (a.round, b.round)).collect();
        assert_eq!(pairs, [(0, 0), (2, 2)]);
    }

    #[test]
    fn without_a_floor_every_round_counts() {
        let mut rounds = Rounds::new(1.25);
        rounds.add(Sample { round: 0, entry: 0, figures: figures(1.0), before: None, after: None });
        assert_eq!((rounds.clean(0).len(), rounds.thrown_out(None)), (1, 0));
        assert_eq!(rounds.clean(0)[0].ratio(|figures| figures.cpu_us), None);
    }

    #[test]
    fn the_median_lies_in_the_middle() {
        let spread = |figures: &[f64]| Spread::of(figures.iter().copied());
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some(Spread { least: 1.0, median: 2.0, greatest: 3.0 }));
        assert_eq!(spread(&[4.0, 1.0]), Some(Spread { least: 1.0, median: 2.5, greatest: 4.0 }));
    }
}
