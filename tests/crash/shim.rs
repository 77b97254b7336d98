//! Faults between the gateway and its disk, and of its wall clock: what `shim.c` does, asked for and counted.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    KillBeforeSync,
    KillAfterSync,
    KillBeforeWrite,
    KillAfterWrite,
    TornWrite,
    ShortWrite,
    ShortThenFull,
    Full,
    WriteError,
    SyncError,
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::KillBeforeSync => "kill-before-sync",
            Self::KillAfterSync => "kill-after-sync",
            Self::KillBeforeWrite => "kill-before-write",
            Self::KillAfterWrite => "kill-after-write",
            Self::TornWrite => "torn-write",
            Self::ShortWrite => "short-write",
            Self::ShortThenFull => "short-enospc",
            Self::Full => "enospc",
            Self::WriteError => "eio",
            Self::SyncError => "sync-eio",
        }
    }
}

/// What happens to one process's disk.
#[derive(Clone, Debug)]
pub struct Plan {
    pub fault: Option<Fault>,
    /// The first and the last write or sync that it happens to, counted from 1.
    pub from: u64,
    pub to: u64,
    /// It happens only while this file exists.
    pub only_while: Option<PathBuf>,
    /// The file that says by how much the wall clock is wrong.
    pub clock: Option<PathBuf>,
}

/// Sets a wall clock that runs by this file wrong by so many seconds.
pub fn shift(clock: &Path, seconds: i64) {
    use std::io::Write as _;
    // In place: a process that runs has it mapped.
    let mut file = fs::OpenOptions::new().create(true).write(true).truncate(false).open(clock).unwrap();
    file.write_all(&seconds.to_ne_bytes()).unwrap();
}

impl Plan {
    /// Nothing happens; writes and syncs are counted.
    pub fn count() -> Self {
        Self { fault: None, from: 1, to: u64::MAX, only_while: None, clock: None }
    }

    /// Nothing happens to the disk; the wall clock runs by this file.
    pub fn clock(file: &Path) -> Self {
        Self { clock: Some(file.to_owned()), ..Self::count() }
    }

    pub fn at(fault: Fault, number: u64) -> Self {
        Self { fault: Some(fault), from: number, to: number, only_while: None, clock: None }
    }

    pub fn only_while(fault: Fault, file: &Path) -> Self {
        Self { fault: Some(fault), from: 1, to: u64::MAX, only_while: Some(file.to_owned()), clock: None }
    }

    /// The environment of the process whose data lies in `data`; `counts` is where its writes and syncs are counted.
    pub fn environment(&self, data: &Path, counts: &Path) -> Vec<(&'static str, PathBuf)> {
        let _ = fs::remove_file(counts);
        let mut environment = vec![
            ("LD_PRELOAD", library().to_owned()),
            ("DISK_FAULT_DIR", data.to_owned()),
            ("DISK_FAULT_COUNTS", counts.to_owned()),
            ("DISK_FAULT_FROM", self.from.to_string().into()),
            ("DISK_FAULT_TO", self.to.to_string().into()),
        ];
        environment.extend(self.fault.map(|fault| ("DISK_FAULT_DO", fault.name().into())));
        environment.extend(self.only_while.clone().map(|file| ("DISK_FAULT_WHILE", file)));
        environment.extend(self.clock.clone().map(|file| ("CLOCK_SHIFT", file)));
        environment
    }
}

/// Writes and syncs of the process that was started last with these counts.
pub fn counted(counts: &Path) -> (u64, u64) {
    let bytes = fs::read(counts).unwrap_or_default();
    let number = |at: usize| bytes.get(at..at + 8).map_or(0, |eight| u64::from_ne_bytes(eight.try_into().unwrap()));
    (number(0), number(8))
}

/// The library, built once a test process.
fn library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/crash/shim.c");
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("disk-faults-{}.so", std::process::id()));
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let mut command = Command::new(compiler);
        command.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl");
        let built = command.output().expect("a C compiler is there: the disk's faults are made with it");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        library
    })
}
