//! Compares embedded stores on the workload of the session log. `README.md` says how to run it and what it showed.

mod measure;
mod scenarios;
mod stores;
mod table;
mod workload;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::Duration,
};

use scenarios::{Figures, Run, full_disk::DISK, restart::FILLED};
use serde_json::Value;
use stores::{Durability, Outcome, STORES};

const USAGE: &str =
    "stores [--dir DIR] [--quick] [--json FILE] [--only SCENARIO,...] [--stores STORE[:VARIANT],...] [--tune]

  --dir DIR    where the stores lie while they are measured: an own directory on the disk in question
  --quick      short runs: a look, no figures to decide by
  --json FILE  the figures as JSON too
  --only       some of: batches, eight, one, trim, reads, restart, full
  --stores     some of: redb, fjall, sqlite, each with a variant where wanted
  --tune       every variant of every store instead of the best one of each";

/// The scenarios, with whether they are run without fsync too.
const SCENARIOS: [(&str, bool); 7] = [
    ("batches", true),
    ("eight", true),
    ("one", true),
    ("trim", true),
    ("reads", false),
    ("restart", false),
    ("full", false),
];

struct Options {
    dir: PathBuf,
    quick: bool,
    json: Option<PathBuf>,
    only: Vec<String>,
    stores: Vec<String>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = if arguments.first().is_some_and(|first| first == "child") {
        child(&arguments[1..])
    } else {
        options(arguments.into_iter()).and_then(|options| compare(&options))
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}

fn options(mut arguments: impl Iterator<Item = String>) -> Outcome<Options> {
    let list = |text: String| text.split(',').map(str::to_owned).collect();
    let mut options = Options {
        dir: std::env::temp_dir().join("onlooker-stores"),
        quick: false,
        json: None,
        only: SCENARIOS.map(|(name, _)| name.to_owned()).to_vec(),
        stores: STORES.map(str::to_owned).to_vec(),
    };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value\n\n{USAGE}"));
        match argument.as_str() {
            "--dir" => options.dir = value()?.into(),
            "--quick" => options.quick = true,
            "--json" => options.json = Some(value()?.into()),
            "--only" => options.only = list(value()?),
            "--stores" => options.stores = list(value()?),
            "--tune" => options.stores = stores::variants(),
            _ => return Err(USAGE.into()),
        }
    }
    Ok(options)
}

/// Runs every scenario for every store, each in processes of its own, and prints the table.
fn compare(options: &Options) -> Outcome<()> {
    let mut all = Vec::new();
    for (scenario, without_fsync) in SCENARIOS {
        if !options.only.iter().any(|only| only == scenario) {
            continue;
        }
        let durabilities: &[&str] = if without_fsync { &["fsync", "os"] } else { &["fsync"] };
        for durability in durabilities {
            let mut columns = Vec::new();
            for store in &options.stores {
                eprintln!("{scenario}, {durability}, {store}");
                columns.push(measured(options, scenario, durability, store));
            }
            all.push((format!("{scenario}, {durability}"), columns));
        }
    }
    print!("{}", table::render(&options.stores, &all));
    if let Some(file) = &options.json {
        fs::write(file, serde_json::to_string_pretty(&table::json(&options.stores, &all))?)?;
    }
    Ok(())
}

/// The figures of one scenario, or under `failed` why there are none.
fn measured(options: &Options, scenario: &str, durability: &str, store: &str) -> Figures {
    let dir = options.dir.join(store.replace(':', "-"));
    let outcome = fresh(&dir).and_then(|()| {
        if scenario == "full" {
            return on_small_disk(&dir, &spawn_arguments(options, scenario, durability, store, &dir));
        }
        if scenario == "restart" {
            killed(&spawn_arguments(options, "fill", durability, store, &dir))?;
            figures_of(&spawn_arguments(options, "open", durability, store, &dir))
        } else {
            figures_of(&spawn_arguments(options, scenario, durability, store, &dir))
        }
    });
    let _ = fs::remove_dir_all(&dir);
    outcome.unwrap_or_else(|failure| Figures::from_iter([("failed".to_owned(), Value::from(failure.to_string()))]))
}

fn fresh(dir: &Path) -> Outcome<()> {
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    Ok(fs::create_dir_all(dir)?)
}

fn spawn_arguments(options: &Options, scenario: &str, durability: &str, store: &str, dir: &Path) -> Vec<String> {
    let small = scenario == "one" || scenario == "eight";
    let seconds = match (options.quick, small) {
        (true, _) => 2,
        (false, true) => 5,
        (false, false) => 12,
    };
    let mebibytes = if options.quick { 250 } else { 1500 };
    let text = |part: &str| part.to_owned();
    let dir = dir.to_string_lossy().into_owned();
    vec![text("child"), text(scenario), text(store), text(durability), dir, seconds.to_string(), mebibytes.to_string()]
}

fn spawn(arguments: &[String]) -> Outcome<Child> {
    Ok(Command::new(std::env::current_exe()?).args(arguments).stdout(Stdio::piped()).spawn()?)
}

fn figures_of(arguments: &[String]) -> Outcome<Figures> {
    let output = spawn(arguments)?.wait_with_output()?;
    if !output.status.success() {
        return Err("the scenario failed; the reason is above".into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The figures of a scenario that runs on a small disk of its own, which only a privileged user can mount.
fn on_small_disk(dir: &Path, arguments: &[String]) -> Outcome<Figures> {
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", DISK, "tmpfs"]).arg(dir).output();
    if !mount.is_ok_and(|mount| mount.status.success()) {
        return Err("a tmpfs cannot be mounted here".into());
    }
    let outcome = figures_of(arguments);
    Command::new("umount").arg(dir).status()?;
    outcome
}

/// Lets a process fill the store, and kills it once it has.
fn killed(arguments: &[String]) -> Outcome<()> {
    let mut child = spawn(arguments)?;
    let mut line = String::new();
    let read = child.stdout.take().map(|stdout| BufReader::new(stdout).read_line(&mut line));
    child.kill()?;
    child.wait()?;
    read.transpose()?;
    if line.trim() == FILLED { Ok(()) } else { Err("the store could not be filled".into()) }
}

/// The process of one scenario: prints its figures as JSON.
fn child(arguments: &[String]) -> Outcome<()> {
    let [scenario, store, durability, dir, seconds, mebibytes] = arguments else {
        return Err("a child process of this benchmark was started by hand".into());
    };
    let run = Run {
        store: store.clone(),
        durability: if durability == "fsync" { Durability::Fsync } else { Durability::Os },
        dir: dir.into(),
        time: Duration::from_secs(seconds.parse()?),
        payload: mebibytes.parse::<u64>()? << 20,
    };
    println!("{}", serde_json::to_string(&scenarios::run(scenario, &run)?)?);
    Ok(())
}
