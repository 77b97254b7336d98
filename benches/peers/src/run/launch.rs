//! Processes that end when this one does, however it ends.
//!
//! Each program is started through this one ([`become_program`]), which asks the kernel to kill it when its parent dies,
//! and has a process group of its own. Groups are killed whole, and all of them on a signal.

use std::{
    ffi::OsStr,
    io::{Read, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group, set_parent_process_death_signal};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::{
    Outcome, machine,
    spec::{Figures, Spec},
};

/// What [`become_program`] is asked for with.
pub(crate) const WORD: &str = "launch";
/// How long one measurement may take.
const MEASURED_WITHIN: Duration = Duration::from_secs(300);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

static GROUPS: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

fn groups() -> MutexGuard<'static, Vec<Pid>> {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `launch CPUS PROGRAM ARGUMENTS…`
pub(crate) fn become_program(mut words: impl Iterator<Item = String>) -> Outcome<()> {
    let (Some(cpus), Some(program)) = (words.next(), words.next()) else { return Err("launch what?".into()) };
    set_parent_process_death_signal(Some(Signal::KILL))?;
    machine::pin(&cpus.split(',').map(str::parse).collect::<Result<Vec<_>, _>>()?)?;
    machine::raise_open_files()?;
    Err(format!("{program} cannot be run: {}", Command::new(&program).args(words).exec()).into())
}

/// On a signal everything that was started is killed, and this process ends.
pub(crate) fn stop_all_on_signals() -> Outcome<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            // Held to the end: nothing is started any more.
            let groups = groups();
            groups.iter().for_each(|group| kill(*group));
            super::servers::remove_scratch();
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

fn kill(group: Pid) {
    // Where nobody is left, that is what was wanted.
    let _ = kill_process_group(group, Signal::KILL);
}

/// A process with its group, which is killed when this is dropped.
pub(crate) struct Process {
    pub child: Child,
    group: Pid,
}

impl Process {
    /// `prepare` sets what else the command needs: pipes, variables.
    pub fn start(
        cpus: &[usize],
        program: &Path,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
        prepare: impl FnOnce(&mut Command),
    ) -> Outcome<Self> {
        let cpus = cpus.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let mut command = Command::new(std::env::current_exe()?);
        command.args([WORD, &cpus]).arg(program).args(arguments).process_group(0);
        prepare(&mut command);
        let mut groups = groups();
        let child = command.spawn()?;
        let group = Pid::from_child(&child);
        groups.push(group);
        Ok(Self { child, group })
    }

    pub fn group(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        kill(self.group);
        drop(self.child.wait());
        groups().retain(|group| *group != self.group);
    }
}

/// The load generator.
pub(crate) struct Load<'a> {
    pub program: &'a Path,
    pub cpus: &'a [usize],
}

impl Load<'_> {
    pub fn measure(&self, spec: &Spec) -> Outcome<Figures> {
        let mut process = Process::start(self.cpus, self.program, [""; 0], |command| {
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        })?;
        let mut input = process.child.stdin.take().ok_or("no way in")?;
        input.write_all(&serde_json::to_vec(spec)?)?;
        drop(input);
        let began = Instant::now();
        // What it prints fits into a pipe.
        let status = loop {
            match process.child.try_wait()? {
                Some(status) => break status,
                None if began.elapsed() > MEASURED_WITHIN => return Err("the measurement did not end".into()),
                None => std::thread::sleep(LOOK_AGAIN),
            }
        };
        let (mut found, mut failure) = (Vec::new(), String::new());
        process.child.stdout.take().ok_or("no way out")?.read_to_end(&mut found)?;
        process.child.stderr.take().ok_or("no way out")?.read_to_string(&mut failure)?;
        if status.success() { Ok(serde_json::from_slice(&found)?) } else { Err(failure.trim().into()) }
    }
}
