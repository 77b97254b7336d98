//! What came out: a table for people, JSON for machines, and whether it is enough.

use serde_json::{Map, Value, json};

use super::{
    earlier::Earlier,
    options::Options,
    programs::Programs,
    rounds::{Rounds, Sample, Spread},
    verdict::{Bound, Judge, Must, Verdict},
    works::{Entry, Work},
};
use crate::{
    Outcome, machine,
    spec::{Figures, Job, Pace},
};

const MIB: f64 = 1024.0 * 1024.0;

pub(crate) struct Report {
    pub date: String,
    pub machine: String,
    pub versions: Vec<(String, String)>,
    pub parts: Vec<Part>,
    settings: Value,
    rounds: usize,
    own_most: f64,
    pub quick: bool,
}

/// One work and what came out of it.
pub(crate) struct Part {
    pub work: Work,
    pub rounds: Rounds,
    musts: Vec<Must>,
}

impl Report {
    pub fn new(options: &Options, programs: &Programs) -> Outcome<Self> {
        let machine = format!("{}, {} processors", machine::processor(), machine::cpus()?.len());
        let versions = programs.versions().into_iter().map(|(name, version)| (name.to_owned(), version));
        Ok(Self::begin(options, machine::today(), machine, versions.collect()))
    }

    /// Nothing in it yet, of the day and the machine of an earlier one.
    pub fn of(options: &Options, earlier: &Earlier) -> Self {
        let Earlier { date, machine, versions, .. } = earlier;
        let versions = versions.iter().map(|(name, version)| (name.clone(), version.clone()));
        Self::begin(options, date.clone(), machine.clone(), versions.collect())
    }

    fn begin(options: &Options, date: String, machine: String, versions: Vec<(String, String)>) -> Self {
        let settings = json!({
            "rounds": options.rounds, "mostRounds": options.most_rounds, "warmUp": options.warm_up,
            "window": options.window, "slow": options.slow, "ownMost": options.own_most, "quick": options.quick,
        });
        let (rounds, own_most, quick) = (options.rounds, options.own_most, options.quick);
        Self { date, machine, versions, parts: Vec::new(), settings, rounds, own_most, quick }
    }

    pub fn add(&mut self, work: Work, rounds: Rounds) {
        let enough = if work.probe.is_none() { 1 } else { self.rounds };
        let musts = Judge { work: &work, rounds: &rounds, enough, own_most: self.own_most }.all();
        self.parts.push(Part { work, rounds, musts });
    }

    pub fn print(&self) {
        println!("\n{}, {}", self.date, self.machine);
        for (name, version) in &self.versions {
            println!("  {name}: {version}");
        }
        println!();
        print_table(&self.table());
        for part in &self.parts {
            let thrown_out = part.rounds.thrown_out(None);
            println!("{}: {}; {thrown_out} runs thrown out", part.work.name, part.work.title);
            for must in &part.musts {
                println!("  {}", sentence(must));
            }
        }
        if self.quick {
            println!("\nThis was a quick look: no figure of it is to be believed.");
        }
    }

    fn table(&self) -> Vec<Vec<String>> {
        let head = [
            "work",
            "server",
            "CPU µs/delivered",
            "× coalescing",
            "p50 ×",
            "RSS/connection",
            "own CPU",
            "clean rounds",
            "thrown out",
            "besides",
        ];
        let rows = self.parts.iter().flat_map(Part::rows);
        std::iter::once(head.map(str::to_owned).to_vec()).chain(rows).collect()
    }

    pub fn json(&self) -> Value {
        let versions: Map<String, Value> =
            self.versions.iter().map(|(name, version)| (name.clone(), json!(version))).collect();
        json!({
            "date": self.date, "machine": self.machine, "versions": versions, "settings": self.settings,
            "works": self.parts.iter().map(Part::json).collect::<Vec<_>>(),
        })
    }

    /// Fails if something was missed, or if nobody can tell.
    pub fn gate(&self) -> Outcome<()> {
        if self.parts.iter().all(|part| part.musts.is_empty()) {
            return Err("Onlooker was not measured".into());
        }
        let not_met = |part: &'_ Part| -> Vec<String> {
            let musts = part.musts.iter().filter(|must| must.verdict != Verdict::Met);
            musts.map(|must| format!("{}: {}", part.work.name, sentence(must))).collect()
        };
        let not_met: Vec<String> = self.parts.iter().flat_map(not_met).collect();
        if not_met.is_empty() { Ok(()) } else { Err(format!("not reached:\n{}", not_met.join("\n")).into()) }
    }
}

impl Part {
    fn rows(&self) -> Vec<Vec<String>> {
        let entries = self.work.entries.iter().enumerate();
        let servers = entries.filter_map(|(number, entry)| self.row(number, entry));
        self.floor_row().into_iter().chain(servers).collect()
    }

    fn floor_row(&self) -> Option<Vec<String>> {
        let floor = self.work.probe.as_ref()?;
        let clean = self.rounds.all().iter().filter(|sample| self.rounds.is_clean(sample));
        let runs: Vec<&Figures> = clean.flat_map(Sample::floors).collect();
        Some(vec![
            self.work.name.to_owned(),
            floor.label.to_owned(),
            spread(runs.iter().map(|run| run.cpu_us)),
            "1".to_owned(),
            "1".to_owned(),
            bytes(runs.iter().map(|run| run.connection_bytes)),
            percent(runs.iter().map(|run| run.own_share)),
            runs.len().to_string(),
            String::new(),
            besides(&floor.job, &runs),
        ])
    }

    /// Nothing for a server that did not take part.
    fn row(&self, number: usize, entry: &Entry) -> Option<Vec<String>> {
        let clean = self.rounds.clean(number);
        let thrown_out = self.rounds.thrown_out(Some(number));
        let runs: Vec<&Figures> = clean.iter().map(|sample| &sample.figures).collect();
        let failure = self.rounds.failure(number);
        if runs.is_empty() && thrown_out == 0 && failure.is_none() {
            return None;
        }
        let ratios = |figure: fn(&Figures) -> f64| spread(clean.iter().filter_map(|sample| sample.ratio(figure)));
        let has_connections = match &entry.job {
            // One connection's memory is lost in that of the server.
            Job::Fanout(job) => !job.together,
            Job::Idle(_) => true,
            Job::Resume(_) | Job::Ingest(_) => false,
        };
        let is_comparable = self.is_comparable(entry);
        let of_fanout = |text: String| if is_comparable { text } else { String::new() };
        Some(vec![
            self.work.name.to_owned(),
            entry.label.to_owned(),
            if matches!(entry.job, Job::Idle(_)) { String::new() } else { spread(runs.iter().map(|run| run.cpu_us)) },
            of_fanout(ratios(|figures| figures.cpu_us)),
            of_fanout(ratios(|figures| figures.p50_us)),
            bytes(runs.iter().filter(|_| has_connections).map(|run| run.connection_bytes)),
            percent(runs.iter().map(|run| run.own_share)),
            runs.len().to_string(),
            thrown_out.to_string(),
            [besides(&entry.job, &runs), failure.map_or(String::new(), |failure| format!("failed: {failure}"))]
                .into_iter()
                .filter(|part| !part.is_empty())
                .collect::<Vec<_>>()
                .join("; "),
        ])
    }

    /// Whether the floor does the same at the same pace.
    fn is_comparable(&self, entry: &Entry) -> bool {
        match (&entry.job, self.work.probe.as_ref().map(|floor| &floor.job)) {
            (Job::Fanout(job), Some(Job::Fanout(floor))) => job.pace == floor.pace,
            _ => false,
        }
    }

    /// A figure of one server, over its clean rounds.
    pub fn spread_of(&self, entry: usize, figure: impl Fn(&Sample) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.rounds.clean(entry).into_iter().filter_map(figure))
    }

    fn json(&self) -> Value {
        let entries = self.work.entries.iter().enumerate().map(|(number, entry)| {
            let runs = self.rounds.all().iter().filter(|sample| sample.entry == number).map(|sample| {
                json!({
                    "round": sample.round, "clean": self.rounds.is_clean(sample), "figures": sample.figures,
                    "floorBefore": sample.before, "floorAfter": sample.after,
                })
            });
            json!({
                "server": entry.label, "job": entry.job, "runs": runs.collect::<Vec<_>>(),
                "failure": self.rounds.failure(number),
                "cpuRatio": self.spread_of(number, |sample| sample.ratio(|figures| figures.cpu_us)),
                "p50Ratio": self.spread_of(number, |sample| sample.ratio(|figures| figures.p50_us)),
            })
        });
        json!({
            "work": self.work.name, "title": self.work.title, "thrownOut": self.rounds.thrown_out(None),
            "servers": entries.collect::<Vec<_>>(), "musts": self.musts,
        })
    }
}

/// One run, while it goes on.
pub(crate) fn line(entry: &Entry, figures: &Figures, floor: Option<&Figures>) -> String {
    let cpu = match entry.job {
        Job::Idle(_) => format!("{:.0} B a connection", figures.connection_bytes),
        _ => format!("{:.2} µs, {:.0}/s, own {:.0} %", figures.cpu_us, figures.per_second, figures.own_share * 100.0),
    };
    let floor = floor.map_or(String::new(), |floor| format!("; floor {:.2} µs", floor.cpu_us));
    format!("{}: {cpu}{floor}", entry.label)
}

/// What only one kind of work has.
fn besides(job: &Job, runs: &[&Figures]) -> String {
    let median = |figure: fn(&Figures) -> f64| Spread::of(runs.iter().map(|run| figure(run))).map(|all| all.median);
    let mut parts: Vec<Option<String>> = match job {
        Job::Fanout(job) => {
            let rate = median(|run| run.per_second).filter(|_| matches!(job.pace, Pace::Window(_)));
            let growth = median(|run| run.growth).filter(|_| job.fill.messages > 0);
            vec![
                rate.map(|rate| format!("{}/s", large(rate))),
                median(|run| run.p99_us).map(|time| format!("p99 {:.2} ms", time / 1e3)),
                growth.map(|growth| format!("grew {:.1} MiB", growth / MIB)),
            ]
        }
        Job::Idle(_) => vec![
            median(|run| run.connections as f64).map(|count| format!("{count:.0} connections")),
            median(|run| run.marginal_bytes.unwrap_or(0.0)).map(|each| format!("{each:.0} B for each further one")),
            median(|run| run.cpu_us).map(|time| format!("{time:.0} µs CPU to join")),
        ],
        Job::Resume(_) => vec![
            median(|run| 2e6 / run.cpu_us).map(|rate| format!("{} events/s on two cores", large(rate))),
            median(|run| run.per_second).map(|rate| format!("{}/s beside the load", large(rate))),
            median(|run| run.growth).map(|growth| format!("grew {:.1} MiB", growth / MIB)),
        ],
        Job::Ingest(_) => vec![median(|run| 1e6 / run.cpu_us).map(|rate| format!("{} events/s a core", large(rate)))],
    };
    let sum = |figure: fn(&Figures) -> u64| runs.iter().map(|run| figure(run)).sum::<u64>();
    let faults =
        [("lost", sum(|run| run.lost)), ("skipped", sum(|run| run.skipped)), ("repeated", sum(|run| run.repeated))];
    parts.extend(faults.map(|(name, count)| (count > 0).then(|| format!("{count} {name}"))));
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn sentence(must: &Must) -> String {
    let (word, bound) = match must.bound {
        Bound::AtMost(most) => ("≤", most),
        Bound::AtLeast(least) => ("≥", least),
    };
    let found = must.found.map_or("nothing".to_owned(), shown);
    let aim = must.aim.map_or(String::new(), |aim| format!(", aim {}", number(aim)));
    let verdict = match &must.verdict {
        Verdict::Met => "met".to_owned(),
        Verdict::Missed => "MISSED".to_owned(),
        Verdict::None(why) => format!("no verdict: {why}"),
    };
    format!("{}: {found} (must {word} {}{aim}): {verdict}", must.what, number(bound))
}

fn spread(figures: impl IntoIterator<Item = f64>) -> String {
    Spread::of(figures).map_or(String::new(), shown)
}

fn shown(spread: Spread) -> String {
    let Spread { least, median, greatest } = spread;
    if least == greatest {
        return number(least);
    }
    format!("{} ({}–{})", number(median), number(least), number(greatest))
}

fn bytes(figures: impl IntoIterator<Item = f64>) -> String {
    Spread::of(figures).map_or(String::new(), |spread| format!("{:.0} B", spread.median))
}

fn percent(figures: impl IntoIterator<Item = f64>) -> String {
    let median = Spread::of(figures).map(|spread| spread.median).filter(|share| *share > 0.0);
    median.map_or(String::new(), |share| format!("{:.0} %", share * 100.0))
}

pub(crate) fn number(figure: f64) -> String {
    match figure.abs() {
        enormous if enormous >= 10_000.0 => large(figure),
        large if large >= 100.0 => format!("{figure:.0}"),
        middle if middle >= 10.0 => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}

/// With a comma at every third digit.
fn large(figure: f64) -> String {
    let digits = format!("{:.0}", figure.abs());
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    format!("{}{}", if figure < 0.0 { "-" } else { "" }, groups.join(","))
}

fn print_table(rows: &[Vec<String>]) {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    for (number, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!(" {cell:<width$} |"));
        println!("|{}", cells.collect::<String>());
        if number == 0 {
            let rule = widths.iter().map(|width| format!("{}|", "-".repeat(width + 2)));
            println!("|{}", rule.collect::<String>());
        }
    }
    println!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let all = [0.0, 0.934, 12.34, 219.6, 9_999.4, 1_234_567.0, -25_000.0].map(number);
        assert_eq!(all, ["0.00", "0.93", "12.3", "220", "9999", "1,234,567", "-25,000"]);
    }

    #[test]
    fn a_spread_that_is_none_is_one_number() {
        assert_eq!(spread([1.0]), "1.00");
        assert_eq!(spread([1.0, 2.0, 4.0]), "2.00 (1.00–4.00)");
        assert_eq!(spread([]), "");
    }
}
