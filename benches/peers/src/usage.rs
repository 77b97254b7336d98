//! What the kernel says that processes have used.

use std::{fs, path::PathBuf};

use crate::Outcome;

/// All processes of one process group: a server with its children.
#[derive(Clone, Debug)]
pub struct Processes(Vec<u32>);

impl Processes {
    /// Those that the group has at this moment. Fails if it has none.
    pub fn of_group(group: u32) -> Outcome<Self> {
        let mut members = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if group_of(pid) == Some(group) {
                members.push(pid);
            }
        }
        if members.is_empty() { Err("the server is not running".into()) } else { Ok(Self(members)) }
    }

    /// Processor time of all their threads, in ns. What threads used that have ended is not in it.
    pub fn cpu(&self) -> Outcome<u64> {
        self.0.iter().map(|pid| cpu_of(&format!("/proc/{pid}"))).sum()
    }

    /// Resident memory, in bytes.
    pub fn rss(&self) -> Outcome<u64> {
        self.0.iter().map(|pid| field(&format!("/proc/{pid}/smaps_rollup"), "Rss:")).sum()
    }

    /// From here on [`Self::peak`] is the greatest since this call.
    pub fn forget_peak(&self) -> Outcome<()> {
        for pid in &self.0 {
            fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
        }
        Ok(())
    }

    /// The most resident memory so far, in bytes.
    pub fn peak(&self) -> Outcome<u64> {
        self.0.iter().map(|pid| field(&format!("/proc/{pid}/status"), "VmHWM:")).sum()
    }
}

/// Processor time of this process, in ns.
pub fn own_cpu() -> Outcome<u64> {
    cpu_of("/proc/self")
}

fn group_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // A name may hold anything, also a bracket; behind it come state, parent and group.
    stat.rsplit_once(')')?.1.split_whitespace().nth(2)?.parse().ok()
}

fn cpu_of(process: &str) -> Outcome<u64> {
    let mut sum = 0;
    for thread in fs::read_dir(PathBuf::from(process).join("task"))? {
        // A thread may end between the listing and the reading.
        let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        sum += text.split_whitespace().next().and_then(|time| time.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(sum)
}

/// A line of a file of `/proc` that counts kB, in bytes.
fn field(file: &str, name: &str) -> Outcome<u64> {
    let text = fs::read_to_string(file)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number: Option<u64> = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.map(|number| number * 1024).ok_or_else(|| format!("{file} has no {name}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let group = rustix::process::getpgrp().as_raw_nonzero().get();
        let processes = Processes::of_group(u32::try_from(group).unwrap()).unwrap();
        assert!(processes.rss().unwrap() > 100 * 1024);
        assert!(processes.peak().unwrap() > 100 * 1024);
        let before = own_cpu().unwrap();
        let mut sum = 0_u64;
        while own_cpu().unwrap() < before + 2_000_000 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
    }
}
