//! Where Chromium is.

use std::{
    env,
    path::{Path, PathBuf},
};

/// Names under which Chromium and its relatives are installed, the preferred first.
const NAMES: &[&str] = &["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

/// No Chromium was found.
#[derive(Debug, thiserror::Error)]
pub enum NoChromium {
    #[error("there is no program at {}", .0.display())]
    NotThere(PathBuf),
    #[error("no Chromium on the PATH; install one with `apt-get install chromium`, or name it with --chromium PATH")]
    NotInstalled,
}

/// The program at `wanted`, or the first of the usual names on the `PATH`.
pub fn find_chromium(wanted: Option<&Path>) -> Result<PathBuf, NoChromium> {
    if let Some(path) = wanted {
        return if path.is_file() { Ok(path.to_owned()) } else { Err(NoChromium::NotThere(path.to_owned())) };
    }
    let folders: Vec<PathBuf> = env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default();
    NAMES
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)))
        .find(|path| path.is_file())
        .ok_or(NoChromium::NotInstalled)
}
