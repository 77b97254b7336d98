//! How many instructions the path of one event takes, stage by stage, compared with kept figures.
//!
//! `make instructions` builds this program and runs it; it then runs itself twice under callgrind, with EVENTS events
//! and with twice as many, so that what is done once cancels out. What is counted stands in [`stages`], what goes
//! through it in [`work`]: no sockets, one thread, fixed inputs. Instructions are steady where seconds are not, so this
//! runs beside the tests; what they cost in time is for the benchmarks to say.
//!
//! Figures are kept in `kept.json` for one compiler on one architecture. By another one they are printed, and not
//! compared. A stage that takes more than [`kept::TOLERANCE`] more than is kept fails the run; where that is wanted,
//! `make instructions UPDATE=1` keeps the new figures, to be committed with the change.
//!
//! The profile `instructions` is that of releases without optimisation across crates, so that it builds in time for
//! every push. Figures are therefore no promise about the released program; they move when the code does.

mod callgrind;
mod kept;
mod stages;
mod work;

use std::process::ExitCode;

use kept::Kept;

/// Events of the shorter run: a whole number of batches, and more than the log keeps.
const EVENTS: u64 = 4_096;

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
    let (once, twice) = (callgrind::count(EVENTS)?, callgrind::count(2 * EVENTS)?);
    let per_event = |stage: &&'static str| {
        let missing = || format!("no stage `{stage}` was called");
        let (once, twice) = (once.get(*stage).ok_or_else(missing)?, twice.get(*stage).ok_or_else(missing)?);
        Ok(((*stage).to_owned(), (twice - once) as f64 / EVENTS as f64))
    };
    Ok(Kept::of_this_build(stages::NAMES.iter().map(per_event).collect::<Result<_, String>>()?))
}
