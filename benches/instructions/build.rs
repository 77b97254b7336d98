//! Tells the program by which compiler it was made: figures of another one are not compared.

use std::{env, process::Command};

fn main() {
    let rustc = env::var_os("RUSTC").expect("cargo sets it");
    let version = Command::new(rustc).arg("--version").output().expect("rustc runs");
    let version = String::from_utf8(version.stdout).expect("rustc writes UTF-8");
    println!("cargo:rustc-env=ONLOOKER_RUSTC={}", version.trim());
    println!("cargo:rerun-if-changed=build.rs");
}
