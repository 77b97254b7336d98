//! A network namespace of the test's own, and a pair of devices between it and the test: packets on the way can be
//! lost in earnest, so that nothing acknowledges them.

use std::{
    net::{IpAddr, Ipv4Addr},
    process::Command,
};

use rand::RngExt as _;

/// Nobody's address on any link.
const NOBODY: &str = "02:00:00:00:00:fe";

pub struct Namespace {
    pub name: String,
    /// The address at this end, which the other end reaches.
    pub near: IpAddr,
    far: IpAddr,
    near_device: String,
    far_device: String,
}

impl Namespace {
    /// `Err` says what is not permitted here, or not there.
    pub fn make() -> Result<Self, String> {
        let id: u16 = rand::rng().random();
        let [high, low] = id.to_be_bytes();
        let at = |last: u8| IpAddr::from(Ipv4Addr::new(10, 213, high, (low & !3) | last));
        let device = |end: char| format!("onl{id:04x}{}{end}", std::process::id() % 10_000);
        let made = Self {
            name: format!("onlooker-{id:04x}-{}", std::process::id()),
            near: at(1),
            far: at(2),
            near_device: device('n'),
            far_device: device('f'),
        };
        let Self { name, near, far, near_device, far_device } = &made;
        run(&format!("netns add {name}"))?;
        run(&format!("link add {near_device} type veth peer name {far_device} netns {name}"))?;
        run(&format!("addr add {near}/30 dev {near_device}"))?;
        run(&format!("link set {near_device} up"))?;
        run(&format!("-n {name} addr add {far}/30 dev {far_device}"))?;
        run(&format!("-n {name} link set {far_device} up"))?;
        run(&format!("-n {name} link set lo up"))?;
        Ok(made)
    }

    /// From here on everything that either end sends goes to nobody, without a word to either.
    pub fn lose_everything(&self) {
        let Self { name, near, far, near_device, far_device } = self;
        run(&format!("neigh replace {far} lladdr {NOBODY} dev {near_device} nud permanent")).unwrap();
        run(&format!("-n {name} neigh replace {near} lladdr {NOBODY} dev {far_device} nud permanent")).unwrap();
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The devices go with it.
        let _ = run(&format!("netns del {}", self.name));
    }
}

fn run(words: &str) -> Result<(), String> {
    let output = Command::new("ip").args(words.split_whitespace()).output().map_err(|error| format!("ip: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(format!("ip {words}: {said}")) }
}
