//! What Onlooker must reach, and whether it did.
//!
//! No verdict is given where too few rounds were clean, and where the load generator had no time left: what is slow then
//! is not the server.

use serde::Serialize;

use super::{
    rounds::{Rounds, Sample, Spread},
    works::{DEAF, KNOWN, MANY, ONLOOKER, SOCKET_IO, TOGETHER, Work},
};
use crate::spec::{Figures, Job};

/// What memory may grow by because of subscribers that never read: some send queues, and no log.
const DEAF_GROWTH: f64 = 16.0 * 1024.0 * 1024.0;
/// Two runs of the same differ by so much in their p99 at least.
const NOISE: f64 = 0.1;
/// Processors that subscribers come back on.
const CORES: f64 = 2.0;

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) enum Verdict {
    Met,
    Missed,
    /// Nobody can tell, and why.
    None(String),
}

/// One thing that must be reached.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Must {
    pub what: String,
    pub bound: Bound,
    pub aim: Option<f64>,
    pub found: Option<Spread>,
    pub verdict: Verdict,
}

pub(crate) struct Judge<'a> {
    pub work: &'a Work,
    pub rounds: &'a Rounds,
    /// Clean rounds that are needed.
    pub enough: usize,
    /// Share of its processor beyond which the load generator may be what is measured.
    pub own_most: f64,
}

impl Judge<'_> {
    pub fn all(&self) -> Vec<Must> {
        let mut all = match self.work.name {
            "a" => vec![self.cpu(1.0, 0.7)],
            "a'" => vec![self.cpu(1.2, 1.1), self.p50(1.2, 1.1)],
            "b" => vec![self.cpu(1.15, 1.0)],
            "c" => vec![self.cpu(1.4, 1.15)],
            "d" => vec![self.memory()],
            "e" => [MANY, TOGETHER, KNOWN].map(|label| self.within(label, 1.3, Some(1.1))).into(),
            "f" => vec![self.p99_unchanged(), self.deaf_memory()],
            "g" => vec![self.resumed(), self.no_copies()],
            "h" => vec![self.taken_in()],
            "s" => vec![self.within(SOCKET_IO, 1.3, None)],
            _ => Vec::new(),
        };
        all.extend(self.whole());
        all.retain(|must| must.found.is_some() || must.verdict != Verdict::None(String::new()));
        all
    }

    fn clean(&self, label: &str) -> Vec<&Sample> {
        self.work.entry(label).map_or(Vec::new(), |entry| self.rounds.clean(entry))
    }

    fn cpu(&self, most: f64, aim: f64) -> Must {
        let ratios = self.clean(ONLOOKER).into_iter().filter_map(|sample| sample.ratio(|figures| figures.cpu_us));
        self.judged("CPU of a delivered event, × coalescing floor", ONLOOKER, ratios, Bound::AtMost(most), Some(aim))
    }

    fn p50(&self, most: f64, aim: f64) -> Must {
        let ratios = self.clean(ONLOOKER).into_iter().filter_map(|sample| sample.ratio(|figures| figures.p50_us));
        self.judged("p50 latency, × coalescing floor", ONLOOKER, ratios, Bound::AtMost(most), Some(aim))
    }

    fn memory(&self) -> Must {
        let bytes = self.clean(ONLOOKER).into_iter().map(|sample| sample.figures.connection_bytes);
        self.judged("bytes of a connection", ONLOOKER, bytes, Bound::AtMost(2048.0), Some(1024.0))
    }

    /// One way of Onlooker to another, each taken to its floor.
    fn within(&self, label: &str, most: f64, aim: Option<f64>) -> Must {
        let cpu = |sample: &Sample| sample.ratio(|figures| figures.cpu_us);
        let pairs = self.pairs(label);
        let ratios = pairs.iter().filter_map(|(sample, base)| Some(cpu(sample)? / cpu(base)?));
        self.judged(&format!("{label}: CPU of a delivered event, × native"), label, ratios, Bound::AtMost(most), aim)
    }

    fn pairs(&self, label: &str) -> Vec<(&Sample, &Sample)> {
        let entries = self.work.entry(label).zip(self.work.entry(ONLOOKER));
        entries.map_or(Vec::new(), |(entry, base)| self.rounds.pairs(entry, base))
    }

    /// Within what the same differs by from round to round.
    fn p99_unchanged(&self) -> Must {
        let without = Spread::of(self.clean(ONLOOKER).into_iter().map(|sample| sample.figures.p99_us));
        let noise = without.map_or(0.0, |spread| (spread.greatest - spread.least) / 2.0 / spread.median);
        let pairs = self.pairs(DEAF);
        let ratios = pairs.iter().map(|(with, without)| with.figures.p99_us / without.figures.p99_us);
        let bound = Bound::AtMost(1.0 + noise.max(NOISE));
        self.judged("p99 of the others, × without those that never read", DEAF, ratios, bound, None)
    }

    fn deaf_memory(&self) -> Must {
        let pairs = self.pairs(DEAF);
        let growth = pairs.iter().map(|(with, without)| with.figures.growth - without.figures.growth);
        self.judged("bytes more with those that never read", DEAF, growth, Bound::AtMost(DEAF_GROWTH), None)
    }

    fn resumed(&self) -> Must {
        let rates = self.clean(ONLOOKER).into_iter().map(|sample| CORES * 1e6 / sample.figures.cpu_us);
        self.judged("events/s on two cores", ONLOOKER, rates, Bound::AtLeast(1e6), None)
    }

    fn no_copies(&self) -> Must {
        let copies = self.clean(ONLOOKER).into_iter().map(|sample| self.copies(&sample.figures));
        self.judged("growth, in copies of what each has missed", ONLOOKER, copies, Bound::AtMost(0.5), None)
    }

    fn copies(&self, figures: &Figures) -> f64 {
        let jobs = self.work.entries.iter().map(|entry| &entry.job);
        let missed = jobs.filter_map(|job| match job {
            Job::Resume(job) => Some(job.subscribers as f64 * f64::from(job.back) * job.bytes as f64),
            _ => None,
        });
        figures.growth / missed.sum::<f64>()
    }

    fn taken_in(&self) -> Must {
        let rates = self.clean(ONLOOKER).into_iter().map(|sample| 1e6 / sample.figures.cpu_us);
        self.judged("events/s a core", ONLOOKER, rates, Bound::AtLeast(300_000.0), None)
    }

    /// No order broken, no silent hole. Pictures alone may be passed over for newer ones.
    fn whole(&self) -> Option<Must> {
        let own = |sample: &&Sample| {
            let entry = &self.work.entries[sample.entry];
            entry.peer.is_onlooker() && matches!(entry.job, Job::Fanout(_) | Job::Resume(_))
        };
        let samples: Vec<&Sample> = self.rounds.all().iter().filter(own).collect();
        let faults = samples.iter().map(|sample| {
            let figures = &sample.figures;
            let skipped = if self.work.name == "b" { 0 } else { figures.skipped };
            (figures.lost + figures.repeated + skipped) as f64
        });
        let found = Spread::of(faults)?;
        let verdict = if found.greatest == 0.0 { Verdict::Met } else { Verdict::Missed };
        let what = "events lost, repeated or out of order".to_owned();
        Some(Must { what, bound: Bound::AtMost(0.0), aim: None, found: Some(found), verdict })
    }

    fn judged(
        &self,
        what: &str,
        label: &str,
        found: impl IntoIterator<Item = f64>,
        bound: Bound,
        aim: Option<f64>,
    ) -> Must {
        let found: Vec<f64> = found.into_iter().collect();
        let (count, found) = (found.len(), Spread::of(found));
        let verdict = match (self.refusal(label, count), found) {
            (Some(why), _) => Verdict::None(why),
            (None, Some(found)) if bound.holds(found.median) => Verdict::Met,
            _ => Verdict::Missed,
        };
        Must { what: what.to_owned(), bound, aim, found, verdict }
    }

    /// Why nobody can tell. Empty: nobody asked.
    fn refusal(&self, label: &str, count: usize) -> Option<String> {
        let entry = self.work.entry(label)?;
        let failed = self.rounds.failure(entry);
        let ran = self.rounds.all().iter().any(|sample| sample.entry == entry);
        match failed {
            Some(failure) if count < self.enough => return Some(failure.to_owned()),
            None if !ran => return Some(String::new()),
            _ => {}
        }
        if count < self.enough {
            return Some(format!("{count} clean rounds of {}", self.enough));
        }
        let busy = self.own_share(label).filter(|share| *share > self.own_most)?;
        Some(format!("the load generator was the bottleneck: {:.0} % of its processor", busy * 100.0))
    }

    /// Of the server's runs or of the floor's beside them, whichever is greater.
    fn own_share(&self, label: &str) -> Option<f64> {
        let clean = self.clean(label);
        let own = Spread::of(clean.iter().map(|sample| sample.figures.own_share));
        let floors = Spread::of(clean.iter().flat_map(|sample| sample.floors()).map(|floor| floor.own_share));
        [own, floors].into_iter().flatten().map(|spread| spread.median).max_by(f64::total_cmp)
    }
}

impl Bound {
    fn holds(self, found: f64) -> bool {
        match self {
            Self::AtMost(most) => found <= most,
            Self::AtLeast(least) => found >= least,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        run::{servers::Peer, works::Entry},
        spec::{Fanout, Fill, Pace, Speech},
    };

    fn work(name: &'static str) -> Work {
        let job = Fanout {
            channels: 1,
            subscribers: 1,
            together: false,
            quiet: 0,
            bytes: 200,
            pace: Pace::Window(8),
            fill: Fill::default(),
            deaf: 0,
        };
        let entry =
            |label| Entry { label, peer: Peer::Onlooker, speech: Speech::Native, job: Job::Fanout(job.clone()) };
        let entries = vec![entry(ONLOOKER), entry(SOCKET_IO), entry(DEAF)];
        Work { name, title: String::new(), probe: None, entries, least_window: 0.0 }
    }

    fn figures(cpu_us: f64) -> Figures {
        Figures { cpu_us, own_share: 0.5, ..Figures::default() }
    }

    fn sample(round: usize, entry: usize, figures: Figures) -> Sample {
        let floor = Some(self::figures(1.0));
        Sample { round, entry, figures, before: floor.clone(), after: floor }
    }

    fn judged(name: &'static str, samples: Vec<Sample>) -> Vec<Must> {
        let (work, mut rounds) = (work(name), Rounds::new(1.25));
        samples.into_iter().for_each(|sample| rounds.add(sample));
        Judge { work: &work, rounds: &rounds, enough: 2, own_most: 0.95 }.all()
    }

    fn first(name: &'static str, samples: Vec<Sample>) -> Verdict {
        judged(name, samples).remove(0).verdict
    }

    #[test]
    fn the_median_of_clean_rounds_decides() {
        let runs = |cpus: [f64; 3]| cpus.into_iter().enumerate().map(|(n, cpu)| sample(n, 0, figures(cpu))).collect();
        assert_eq!(first("a", runs([0.9, 1.0, 5.0])), Verdict::Met);
        assert_eq!(first("a", runs([0.9, 1.1, 5.0])), Verdict::Missed);
    }

    #[test]
    fn too_few_clean_rounds_make_no_verdict() {
        let slow = Sample { after: Some(figures(2.0)), ..sample(1, 0, figures(0.9)) };
        let verdict = first("a", vec![sample(0, 0, figures(0.9)), slow]);
        assert_eq!(verdict, Verdict::None("1 clean rounds of 2".to_owned()));
    }

    #[test]
    fn a_load_generator_without_time_makes_no_verdict() {
        let busy = |own_share| Figures { own_share, ..figures(0.9) };
        let by_server = vec![sample(0, 0, busy(0.97)), sample(1, 0, busy(0.98))];
        assert!(matches!(first("a", by_server), Verdict::None(why) if why.contains("bottleneck")));
        let by_floor = [0, 1].map(|round| Sample {
            before: Some(Figures { own_share: 0.99, ..figures(1.0) }),
            after: Some(Figures { own_share: 0.99, ..figures(1.0) }),
            ..sample(round, 0, figures(0.9))
        });
        assert!(matches!(first("a", by_floor.into()), Verdict::None(why) if why.contains("bottleneck")));
    }

    #[test]
    fn one_lost_event_is_a_miss_whatever_the_round() {
        let lost = Figures { lost: 1, ..figures(0.9) };
        let musts = judged("a", vec![sample(0, 0, figures(0.9)), sample(1, 0, lost)]);
        assert_eq!((&musts[0].verdict, &musts[1].verdict), (&Verdict::Met, &Verdict::Missed));
        let skipped = Figures { skipped: 3, ..figures(0.9) };
        assert_eq!(judged("b", vec![sample(0, 0, skipped.clone())])[1].verdict, Verdict::Met);
        assert_eq!(judged("c", vec![sample(0, 0, skipped)])[1].verdict, Verdict::Missed);
    }

    #[test]
    fn socket_io_is_compared_with_native_in_the_same_round() {
        let runs = vec![
            sample(0, 0, figures(1.0)),
            sample(0, 1, figures(1.2)),
            sample(1, 0, figures(2.0)),
            sample(1, 1, figures(2.4)),
        ];
        let must = judged("s", runs).remove(0);
        assert!((must.found.unwrap().median - 1.2).abs() < 1e-9);
        assert_eq!(must.verdict, Verdict::Met);
    }

    #[test]
    fn what_was_not_asked_for_is_not_judged_and_what_failed_is_said() {
        assert!(judged("a", Vec::new()).is_empty());
        let (work, mut rounds) = (work("a"), Rounds::new(1.25));
        rounds.fail(0, "it fell\n over\n");
        let musts = Judge { work: &work, rounds: &rounds, enough: 2, own_most: 0.95 }.all();
        assert_eq!(musts[0].verdict, Verdict::None("it fell over".to_owned()));
    }

    #[test]
    fn a_rate_must_be_reached_and_not_be_kept_below() {
        let runs = |cpu| vec![sample(0, 0, figures(cpu)), sample(1, 0, figures(cpu))];
        assert_eq!(first("h", runs(3.0)), Verdict::Met);
        assert_eq!(first("h", runs(4.0)), Verdict::Missed);
        assert_eq!(first("g", runs(1.9)), Verdict::Met);
        assert_eq!(first("g", runs(2.1)), Verdict::Missed);
    }
}
