//! Where the programs are.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use super::{options::Options, servers::Peer};
use crate::Outcome;

/// What `install.sh` unpacks.
const DEBIAN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/installed/debian");
const NODE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/node");

pub(crate) struct Programs {
    pub onlooker: PathBuf,
    pub floor: PathBuf,
    pub load: PathBuf,
    pub nats: Option<PathBuf>,
    pub redis: Option<PathBuf>,
    pub nginx: Option<PathBuf>,
    pub nchan: Option<PathBuf>,
    pub node: Option<PathBuf>,
}

impl Programs {
    pub fn find(options: &Options) -> Outcome<Self> {
        let own = env::current_exe()?;
        let module = "usr/lib/nginx/modules/ngx_nchan_module.so";
        let modules = [Path::new(DEBIAN).join(module), Path::new("/").join(module)];
        Ok(Self {
            onlooker: options.onlooker.clone(),
            floor: own.with_file_name("floor"),
            load: own.with_file_name("load"),
            nats: program("nats-server"),
            redis: program("redis-server"),
            nginx: program("nginx"),
            nchan: modules.into_iter().find(|module| module.exists()),
            node: program("node"),
        })
    }

    /// Why a server cannot run, if it cannot.
    pub fn missing(&self, peer: Peer) -> Option<&'static str> {
        const INSTALL: &str = "it was not found; benches/peers/install.sh brings it where it can";
        let package = |name: &str| Path::new(NODE).join("node_modules").join(name).exists();
        let here = match peer {
            Peer::Limit | Peer::Coalescing | Peer::Onlooker | Peer::OnlookerInMemory => true,
            Peer::Nats => self.nats.is_some(),
            Peer::Nchan => self.nginx.is_some() && self.nchan.is_some(),
            Peer::Ws => self.node.is_some() && package("ws"),
            Peer::SocketIo => self.node.is_some() && package("socket.io"),
            Peer::Redis => self.redis.is_some(),
        };
        (!here).then_some(INSTALL)
    }

    /// What each server says of its own version.
    pub fn versions(&self) -> Vec<(&'static str, String)> {
        let said = |program: &Option<PathBuf>, flag| program.as_ref().and_then(|program| first_line(program, flag));
        let package = |name: &str| version_of_package(&Path::new(NODE).join("node_modules").join(name));
        let all = [
            ("onlooker", first_line(&self.onlooker, "--version")),
            ("commit", commit()),
            ("nats", said(&self.nats, "--version")),
            ("nchan", said(&self.nginx, "-v")),
            ("ws", package("ws")),
            ("socket.io", package("socket.io")),
            ("node", said(&self.node, "--version")),
            ("redis", said(&self.redis, "--version")),
        ];
        all.into_iter().filter_map(|(name, version)| Some((name, version?))).collect()
    }

    pub fn script(name: &str) -> PathBuf {
        Path::new(NODE).join(name)
    }

    /// Lets a program find what was unpacked beside it.
    pub fn prepare(command: &mut Command) {
        let triplet = format!("{}-linux-gnu", env::consts::ARCH);
        let libraries = ["usr/lib", "lib"].map(|directory| format!("{DEBIAN}/{directory}/{triplet}"));
        command.env("LD_LIBRARY_PATH", libraries.join(":"));
    }
}

/// One that was unpacked here comes before one of the machine's.
fn program(name: &str) -> Option<PathBuf> {
    let unpacked = ["usr/sbin", "usr/bin"].map(|directory| Path::new(DEBIAN).join(directory));
    let path = env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
    unpacked
        .into_iter()
        .chain(env::split_paths(&path))
        .chain(sbin)
        .map(|directory| directory.join(name))
        .find(|file| file.exists())
}

fn first_line(program: &Path, flag: &str) -> Option<String> {
    let mut command = Command::new(program);
    Programs::prepare(command.arg(flag));
    let output = command.output().ok()?;
    // nginx says it on the other stream.
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    String::from_utf8_lossy(&text).lines().next().map(str::to_owned)
}

/// Of the tree that this was built in.
fn commit() -> Option<String> {
    let mut git = Command::new("git");
    let output = git.args(["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty"]).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned()).filter(|commit| !commit.is_empty())
}

fn version_of_package(directory: &Path) -> Option<String> {
    let text = std::fs::read(directory.join("package.json")).ok()?;
    let package: serde_json::Value = serde_json::from_slice(&text).ok()?;
    Some(package["version"].as_str()?.to_owned())
}
