//! Runs the work under callgrind and reads from its output what each stage took, with what it called.

use std::{collections::HashMap, fs, process::Command};

use crate::stages;

/// Instructions by stage, of so many events.
pub(crate) fn count(events: u64) -> Result<HashMap<&'static str, u64>, String> {
    let program = std::env::current_exe().map_err(|error| format!("where this program is, is unknown: {error}"))?;
    let out = program.with_file_name(format!("callgrind.{events}"));
    let ran = Command::new("valgrind")
        .args(["--quiet", "--tool=callgrind", "--compress-strings=no", "--compress-pos=no"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .args(["work", &events.to_string()])
        .status();
    let ran = ran.map_err(|error| format!("valgrind does not start: {error}"))?;
    if !ran.success() {
        return Err(format!("the work failed under valgrind: {ran}"));
    }
    let profile = fs::read_to_string(&out).map_err(|error| format!("{}: {error}", out.display()))?;
    Ok(by_stage(&profile))
}

/// Sums what calls of the stages cost. A call is written as `cfn=NAME`, `calls=…`, and then a line that ends in what
/// it cost, inclusive of everything below it.
fn by_stage(profile: &str) -> HashMap<&'static str, u64> {
    let mut costs = HashMap::new();
    let mut called = None;
    let mut lines = profile.lines();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("cfn=") {
            called = stage(name);
        } else if line.starts_with("calls=")
            && let (Some(stage), Some(cost)) = (called, lines.next().and_then(last_number))
        {
            *costs.entry(stage).or_default() += cost;
        }
    }
    costs
}

/// The stage that a symbol is, demangled as `instructions::stages::read` or with a hash behind it.
fn stage(symbol: &str) -> Option<&'static str> {
    let path = symbol.strip_prefix("instructions::stages::").or(symbol.strip_prefix("instructions::work::"))?;
    let name = path.split("::").next()?;
    stages::NAMES.into_iter().find(|stage| *stage == name && !path.contains("{{"))
}

fn last_number(line: &str) -> Option<u64> {
    line.rsplit(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_a_stage_are_summed_wherever_they_come_from() {
        let profile = "\
fn=instructions::work::all
12 100
cfn=instructions::stages::read
calls=32 7
13 5000
cfn=malloc
calls=1 1
14 90
fn=instructions::other
cfn=instructions::stages::read::h0123456789abcdef
calls=1 7
3 70
cfn=instructions::stages::read::{{closure}}
calls=1 7
3 7
";
        assert_eq!(by_stage(profile), HashMap::from([("read", 5070)]));
    }
}
