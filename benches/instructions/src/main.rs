//! How many instructions the path of one event takes, stage by stage, compared with kept figures.
//!
//! `make instructions` builds this program and runs it; it then runs itself twice under callgrind, with few events and
//! with many, so that what is done once cancels out. What is counted stands in [`stages`], what goes through it in
//! [`work`]: no sockets, one thread, fixed inputs. Instructions are steady where seconds are not, so this runs beside
//! the tests; what they cost in time is for the benchmarks to say.
//!
//! Figures are kept in `kept.json` for one compiler on one architecture. By another one they are printed, and not
//! compared. A stage that takes more than [`kept::TOLERANCE`] more than is kept fails the run; where that is wanted,
//! `make instructions UPDATE=1` keeps the new figures, to be committed with the change.
//!
//! Figures are kept for two builds. That of the profile `instructions`, which is that of releases without optimisation
//! across crates, is for people. That of the tests is not optimised, but is there when the tests have run, so each push is
//! compared by it. Neither is a promise about the released program; both move when the code does.

mod callgrind;
mod kept;
mod stages;
mod work;

use std::process::ExitCode;

use kept::Kept;

/// Events of the two runs: whole numbers of batches, and more than the log keeps. Far apart, because the allocator's
/// habits differ a little between runs, and the shorter one's difference counts by its share.
const SHORTER: u64 = 2_048;
const LONGER: u64 = 16_384;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match *arguments.as_slice() {
        ["work", events] => events.parse().map(work::run).map_err(|_| format!("`{events}` is no number")),
        [] => measure().and_then(|measured| measured.compare()),
        ["--update"] => measure().and_then(|measured| measured.keep()),
        _ => Err("usage: instructions [--update]".to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<Kept, String> {
    let (shorter, longer) = (callgrind::count(SHORTER)?, callgrind::count(LONGER)?);
    let per_event = |stage: &&'static str| {
        let missing = || format!("no stage `{stage}` was called");
        let (shorter, longer) = (shorter.get(*stage).ok_or_else(missing)?, longer.get(*stage).ok_or_else(missing)?);
        Ok(((*stage).to_owned(), (longer - shorter) as f64 / (LONGER - SHORTER) as f64))
    };
    Ok(Kept::of_this_build(stages::NAMES.iter().map(per_event).collect::<Result<_, String>>()?))
}
