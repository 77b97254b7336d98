//! Puts the recording in `demo/recording/` into the binary, so that `onlooker demo` needs nothing beside it.

use std::{env, fmt::Write as _, fs, path::PathBuf};

fn main() {
    let folder = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("demo/recording");
    println!("cargo:rerun-if-changed={}", folder.display());
    let entries = fs::read_dir(&folder).expect("demo/recording is part of the sources");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("a readable folder").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let mut code = "&[\n".to_owned();
    for name in names.iter().filter(|name| !name.starts_with('.')) {
        let path = folder.join(name);
        writeln!(code, "    ({name:?}, include_bytes!({:?}).as_slice()),", path.display().to_string())
            .expect("a string takes everything");
    }
    code.push(']');
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("demo_recording.rs");
    fs::write(out, code).expect("cargo's own folder can be written");
}
