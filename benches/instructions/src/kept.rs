//! The kept figures, and what is said of those that differ.

use std::{collections::BTreeMap, fs, path::Path};

use serde::{Deserialize, Serialize};

/// A stage may take this share more than is kept. Between five runs of one program stages varied by 0.7 % at most
/// (`read`, by where the allocator tidies up; maps with random states do the rest), and `all` by less than 0.1 %.
pub(crate) const TOLERANCE: f64 = 0.05;
/// And this many instructions in any case: a short stage moves by more than its share when code around it does.
const SLACK: f64 = 20.0;

/// By profile.
type All = BTreeMap<String, Kept>;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// What made the program, and what it runs on. Figures of others are not compared.
    build: String,
    instructions_per_event: BTreeMap<String, f64>,
}

/// Whether it was optimised: what tests are built with is not, and is there already when they run.
const PROFILE: &str = if cfg!(debug_assertions) { "dev" } else { "instructions" };
const UPDATE: &str = "`make instructions UPDATE=1`, and commit benches/instructions/kept.json";

fn read_all() -> Result<All, String> {
    let kept = fs::read_to_string(path()).map_err(|error| format!("{}: {error}", path().display()))?;
    serde_json::from_str(&kept).map_err(|error| format!("kept.json: {error}"))
}

fn path() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/kept.json"))
}

impl Kept {
    pub(crate) fn of_this_build(figures: BTreeMap<String, f64>) -> Self {
        let rounded = figures.into_iter().map(|(stage, figure)| (stage, (figure * 10.0).round() / 10.0)).collect();
        Self { build: build(), instructions_per_event: rounded }
    }

    pub(crate) fn keep(self) -> Result<(), String> {
        self.print(None);
        let mut all = read_all().unwrap_or_default();
        all.insert(PROFILE.to_owned(), self);
        let text = serde_json::to_string_pretty(&all).map_err(|error| error.to_string())? + "\n";
        fs::write(path(), text).map_err(|error| format!("{}: {error}", path().display()))?;
        println!("kept in benches/instructions/kept.json: commit it with the change");
        Ok(())
    }

    /// # Errors
    /// A stage takes more than is kept and tolerated, or has no kept figure.
    pub(crate) fn compare(&self) -> Result<(), String> {
        let kept = read_all()?.remove(PROFILE);
        let kept = kept.ok_or_else(|| format!("nothing is kept for the profile `{PROFILE}`: {UPDATE}"))?;
        if kept.build != self.build {
            self.print(None);
            println!("not compared: the figures are kept for {}, and this is {}", kept.build, self.build);
            return Ok(());
        }
        self.print(Some(&kept));
        self.judge(&kept)
    }

    fn judge(&self, kept: &Self) -> Result<(), String> {
        let (mut more, mut fewer) = (Vec::new(), Vec::new());
        for (stage, figure) in &self.instructions_per_event {
            let Some(before) = kept.instructions_per_event.get(stage) else {
                return Err(format!("nothing is kept for `{stage}`: {UPDATE}"));
            };
            let tolerated = (before * TOLERANCE).max(SLACK);
            if figure - before > tolerated {
                more.push(stage.as_str());
            } else if before - figure > tolerated {
                fewer.push(stage.as_str());
            }
        }
        if !fewer.is_empty() {
            println!("{} got cheaper. To keep it so: {UPDATE}", fewer.join(", "));
        }
        if more.is_empty() {
            return Ok(());
        }
        Err(format!(
            "{} took more instructions than kept. Look at what the change does there (callgrind_annotate on \
             target/instructions/callgrind.*); if it is worth that: {UPDATE}",
            more.join(", ")
        ))
    }

    fn print(&self, kept: Option<&Self>) {
        println!("{:10} {:>18} {:>12} {:>9}", "stage", "instructions/event", "kept", "change");
        for stage in crate::stages::NAMES {
            let figure = self.instructions_per_event.get(stage).copied().unwrap_or_default();
            match kept.and_then(|kept| kept.instructions_per_event.get(stage)) {
                Some(before) => {
                    println!("{stage:10} {figure:18.1} {before:12.1} {:+8.1} %", (figure / before - 1.0) * 100.0);
                }
                None => println!("{stage:10} {figure:18.1} {:>12} {:>9}", "-", "-"),
            }
        }
    }
}

/// Libraries choose code by what the processor has; wide registers make the largest difference.
fn build() -> String {
    #[cfg(target_arch = "x86_64")]
    let wide = if std::is_x86_feature_detected!("avx2") { " with AVX2" } else { "" };
    #[cfg(not(target_arch = "x86_64"))]
    let wide = "";
    format!("{} on {}{wide}", env!("ONLOOKER_RUSTC"), std::env::consts::ARCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(read: f64, decide: f64) -> Kept {
        let figures = [("read".to_owned(), read), ("decide".to_owned(), decide)];
        Kept::of_this_build(figures.into_iter().collect())
    }

    #[test]
    fn a_stage_that_takes_more_fails_and_one_that_takes_fewer_does_not() {
        let before = kept(1000.0, 100.0);
        assert!(kept(1049.0, 119.0).judge(&before).is_ok());
        assert!(kept(1051.0, 100.0).judge(&before).is_err_and(|error| error.starts_with("read took more")));
        assert!(kept(1000.0, 121.0).judge(&before).is_err_and(|error| error.starts_with("decide took more")));
        assert!(kept(500.0, 10.0).judge(&before).is_ok());
    }

    #[test]
    fn a_stage_that_was_never_kept_is_no_pass() {
        let mut before = kept(1000.0, 100.0);
        before.instructions_per_event.remove("read");
        assert!(kept(1000.0, 100.0).judge(&before).is_err());
    }
}
