//! What the kernel says about this process and a directory, and the percentiles of a list of times.

use std::{
    fs,
    io::{self, Write},
    path::Path,
    time::{Duration, Instant},
};

use rustix::fs::{Advice, fadvise};

/// Clock ticks a second of `/proc/self/stat`; 100 on every Linux that matters here.
const TICKS: f64 = 100.0;

const PLAIN_WRITES: usize = 100;

/// What this process has used so far.
#[derive(Clone, Copy)]
pub struct Usage {
    /// User and system time of all threads, in seconds.
    pub cpu: f64,
    /// Bytes that the kernel has written, or will write, to a disk for this process.
    pub written: f64,
}

pub fn usage() -> io::Result<Usage> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit(')').next().unwrap_or("");
    let ticks: f64 = after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    Ok(Usage { cpu: ticks / TICKS, written: field("/proc/self/io", "write_bytes:")? })
}

/// Resident memory now and at most so far, in MiB.
pub fn memory() -> io::Result<(f64, f64)> {
    Ok((field("/proc/self/status", "VmRSS:")? / 1024.0, field("/proc/self/status", "VmHWM:")? / 1024.0))
}

fn field(file: &str, name: &str) -> io::Result<f64> {
    let text = fs::read_to_string(file)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .ok_or_else(|| io::Error::other(format!("{file} has no {name}")))
}

/// MiB that the files under `dir` take on the disk.
pub fn size_of(dir: &Path) -> io::Result<f64> {
    use std::os::unix::fs::MetadataExt;
    let mut blocks = 0;
    each_file(dir, &mut |path| {
        blocks += fs::metadata(path).map_or(0, |metadata| metadata.blocks());
    })?;
    Ok(blocks as f64 * 512.0 / f64::from(1 << 20))
}

/// Asks the kernel to forget the cached pages of every file under `dir`.
pub fn forget(dir: &Path) -> io::Result<()> {
    each_file(dir, &mut |path| {
        if let Ok(file) = fs::File::open(path) {
            // A file that cannot be synced or forgotten stays warm; the figure is then called cold-ish with reason.
            let _ = file.sync_all();
            let _ = fadvise(&file, 0, None, Advice::DontNeed);
        }
    })
}

/// The median of writing `bytes` to the end of a plain file under `dir` and waiting for the disk, in ms: what a commit
/// of so many bytes costs here and now whatever the store.
pub fn plain_write(dir: &Path, bytes: usize) -> io::Result<f64> {
    let (path, block) = (dir.join("plain"), vec![1; bytes]);
    let mut file = fs::File::create(&path)?;
    let mut times = Times::default();
    for _ in 0..PLAIN_WRITES {
        let start = Instant::now();
        file.write_all(&block)?;
        file.sync_data()?;
        times.add(start.elapsed());
    }
    fs::remove_file(&path)?;
    Ok(times.at([0.5, 0.99, 1.0]).0[0])
}

fn each_file(dir: &Path, each: &mut dyn FnMut(&Path)) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            each_file(&entry.path(), each)?;
        } else {
            each(&entry.path());
        }
    }
    Ok(())
}

#[derive(Default)]
pub struct Times(Vec<Duration>);

impl Times {
    pub fn add(&mut self, time: Duration) {
        self.0.push(time);
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Milliseconds at each of `shares` (0.5 is the median), and the mean last.
    pub fn at(mut self, shares: [f64; 3]) -> ([f64; 3], f64) {
        self.0.sort_unstable();
        let last = self.0.len().saturating_sub(1);
        let at = |share: f64| self.0.get((share * last as f64).round() as usize).map_or(f64::NAN, millis);
        let mean = self.0.iter().map(millis).sum::<f64>() / self.0.len().max(1) as f64;
        (shares.map(at), mean)
    }
}

fn millis(time: &Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
