//! Recordings: a folder with `recording.jsonl`, one event a line, and the images that it names.
//!
//! `{"at": 1.25, "type": "action", "data": {"name": "click"}}`: `at` in seconds from the start of the task. A
//! `screenshot` line names its image in `file`. The last line, and no other, is the `task_completed` or `error` that
//! ends the task. A [`Recording`] that exists has been checked: times never go back, files are plain names in the
//! folder and are there, and everything is bounded. Reading and writing block; they belong to start-up and to tools.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use onlooker_protocol::event::kind;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The name of the file with the lines.
pub const LINES_FILE: &str = "recording.jsonl";
/// Bytes of the file with the lines, and lines in it.
const TEXT_MAX: u64 = 64 << 20;
const LINES_MAX: usize = 100_000;
/// A gateway's limit for one frame, and what one process may well hold of images.
const PICTURE_MAX: u64 = 8 << 20;
const PICTURES_MAX: u64 = 256 << 20;
/// A day: what lasts longer is a mistake in `at`.
const AT_MAX: f64 = 86_400.0;

/// One event of a recording.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Seconds from the start of the task.
    pub at: f64,
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub data: Value,
    /// The image of a `screenshot`, a plain name in the recording's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

/// A checked recording in memory. Its images are shared by everything that plays it.
#[derive(Clone, Debug, PartialEq)]
pub struct Recording {
    lines: Vec<Line>,
    pictures: BTreeMap<String, Bytes>,
}

/// Why a folder is no recording.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    #[error("{}: cannot be read or written", .path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{} exists: a recording is not written over another", .0.display())]
    Exists(PathBuf),
    #[error("line {line}: no line of a recording")]
    Json { line: usize, source: serde_json::Error },
    #[error("line {line}: {wrong}")]
    Line { line: usize, wrong: String },
    #[error("{0}")]
    Whole(String),
}

impl Recording {
    /// Checks lines and the images that they name.
    ///
    /// # Errors
    /// The number of the first line that is wrong, counted from 1, and what is wrong with it.
    pub fn new(lines: Vec<Line>, pictures: BTreeMap<String, Bytes>) -> Result<Self, RecordingError> {
        check_lines(&lines)?;
        for (index, line) in lines.iter().enumerate() {
            let file = line.file.as_deref().unwrap_or_default();
            if line.file.is_some() && !pictures.contains_key(file) {
                return Err(wrong(index, format!("there is no image {file}")));
            }
        }
        let sizes = pictures.values().map(|bytes| bytes.len() as u64);
        if let Some(large) = sizes.clone().find(|size| *size > PICTURE_MAX) {
            return Err(RecordingError::Whole(format!("an image has {large} bytes, more than {PICTURE_MAX}")));
        }
        check_total(sizes.sum())?;
        Ok(Self { lines, pictures })
    }

    /// Reads a folder.
    ///
    /// # Errors
    /// When a file cannot be read, or a line is wrong; the error names it.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, RecordingError> {
        let folder = folder.as_ref();
        let lines = read_lines(&folder.join(LINES_FILE))?;
        check_lines(&lines)?;
        let mut pictures = BTreeMap::new();
        let mut total = 0;
        for (index, line) in lines.iter().enumerate() {
            let Some(file) = line.file.as_ref().filter(|file| !pictures.contains_key(*file)) else { continue };
            let path = folder.join(file);
            let size = fs::metadata(&path).map_err(|error| wrong(index, format!("{file}: {error}")))?.len();
            if size > PICTURE_MAX {
                return Err(wrong(index, format!("{file} has {size} bytes, more than {PICTURE_MAX}")));
            }
            total += size;
            check_total(total)?;
            let bytes = fs::read(&path).map_err(|source| RecordingError::File { path, source })?;
            pictures.insert(file.clone(), bytes.into());
        }
        Ok(Self { lines, pictures })
    }

    /// Writes it as a folder, which is made when it is not there.
    ///
    /// # Errors
    /// When the folder holds a recording already, or a file cannot be written.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<(), RecordingError> {
        let writer = Writer::create(folder)?;
        for (name, bytes) in &self.pictures {
            writer.picture(name, bytes)?;
        }
        writer.finish(&self.lines)
    }

    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// The media type and bytes of an image that a line names.
    pub fn picture(&self, file: &str) -> Option<(&'static str, Bytes)> {
        Some((media_of(file)?, self.pictures.get(file)?.clone()))
    }

    /// Seconds from the start to the line that ends the task, at the recorded speed, without waits for answers.
    pub fn length(&self) -> f64 {
        self.lines.last().map_or(0.0, |line| line.at)
    }
}

/// Writes a recording as it comes: images first, the lines at the end.
pub(crate) struct Writer {
    folder: PathBuf,
}

impl Writer {
    pub(crate) fn create(folder: impl AsRef<Path>) -> Result<Self, RecordingError> {
        let folder = folder.as_ref().to_owned();
        fs::create_dir_all(&folder).map_err(|source| RecordingError::File { path: folder.clone(), source })?;
        let lines = folder.join(LINES_FILE);
        if lines.exists() {
            return Err(RecordingError::Exists(lines));
        }
        Ok(Self { folder })
    }

    pub(crate) fn picture(&self, name: &str, bytes: &[u8]) -> Result<(), RecordingError> {
        let path = self.folder.join(name);
        fs::write(&path, bytes).map_err(|source| RecordingError::File { path, source })
    }

    /// Checks and writes the lines: under another name first, so that a folder with `recording.jsonl` is complete.
    pub(crate) fn finish(self, lines: &[Line]) -> Result<(), RecordingError> {
        check_lines(lines)?;
        let mut text = String::new();
        for (index, line) in lines.iter().enumerate() {
            let json =
                serde_json::to_string(line).map_err(|source| RecordingError::Json { line: index + 1, source })?;
            text.push_str(&json);
            text.push('\n');
        }
        let (unfinished, path) = (self.folder.join("recording.jsonl.part"), self.folder.join(LINES_FILE));
        let written = fs::write(&unfinished, text).and_then(|()| fs::rename(&unfinished, &path));
        written.map_err(|source| RecordingError::File { path, source })
    }
}

/// The media type that an image's name says, or `None`.
pub(crate) fn media_of(file: &str) -> Option<&'static str> {
    match file.rsplit_once('.')?.1 {
        "jpg" | "jpeg" => Some("image/jpeg"),
        "png" => Some("image/png"),
        "webp" => Some("image/webp"),
        _ => None,
    }
}

/// The end of an image's name that says its media type.
pub(crate) fn extension_of(media: &str) -> Option<&'static str> {
    match media {
        "image/jpeg" => Some("jpg"),
        "image/png" => Some("png"),
        "image/webp" => Some("webp"),
        _ => None,
    }
}

fn read_lines(path: &Path) -> Result<Vec<Line>, RecordingError> {
    let unreadable = |source| RecordingError::File { path: path.to_owned(), source };
    if fs::metadata(path).map_err(unreadable)?.len() > TEXT_MAX {
        return Err(RecordingError::Whole(format!("{LINES_FILE} has more than {TEXT_MAX} bytes")));
    }
    let text = fs::read_to_string(path).map_err(unreadable)?;
    let numbered = text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty());
    numbered
        .map(|(index, text)| {
            serde_json::from_str(text).map_err(|source| RecordingError::Json { line: index + 1, source })
        })
        .collect()
}

fn check_lines(lines: &[Line]) -> Result<(), RecordingError> {
    if lines.len() > LINES_MAX {
        return Err(RecordingError::Whole(format!("a recording has at most {LINES_MAX} lines")));
    }
    let mut before = 0.0;
    for (index, line) in lines.iter().enumerate() {
        check_line(line, before).map_err(|text| wrong(index, text))?;
        if kind::is_result(&line.kind) && index + 1 < lines.len() {
            return Err(wrong(index, format!("{} ends the task, but lines follow", line.kind)));
        }
        before = line.at;
    }
    match lines.last() {
        Some(last) if kind::is_result(&last.kind) => Ok(()),
        Some(_) => Err(wrong(lines.len() - 1, "the last line must be a task_completed or an error")),
        None => Err(RecordingError::Whole(format!("{LINES_FILE} has no lines"))),
    }
}

fn check_line(line: &Line, before: f64) -> Result<(), String> {
    if !(0.0..=AT_MAX).contains(&line.at) {
        return Err(format!("at is {}, but goes from 0 to {AT_MAX} seconds", line.at));
    }
    if line.at < before {
        return Err(format!("at is {}, before the line above ({before})", line.at));
    }
    if !kind::PUBLISHED.contains(&line.kind.as_str()) && !line.kind.starts_with("x.") {
        return Err(format!("{} is no type that a runtime publishes (types of your own begin with x.)", line.kind));
    }
    if !matches!(line.data, Value::Null | Value::Object(_)) {
        return Err("data is an object".to_owned());
    }
    match &line.file {
        Some(file) if line.kind == kind::SCREENSHOT => check_name(file),
        Some(_) => Err(format!("a {} has no file, only a screenshot has", line.kind)),
        None if line.kind == kind::SCREENSHOT => Err("a screenshot names its image in file".to_owned()),
        None => Ok(()),
    }
}

/// A name that cannot lead out of the folder on any system.
fn check_name(file: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if file.is_empty() || file.len() > 128 || !file.chars().all(plain) || file.starts_with('.') || file.contains("..") {
        return Err("file is a plain name: letters, digits, '-', '_' and single dots".to_owned());
    }
    media_of(file).map(|_| ()).ok_or_else(|| format!("{file} ends in none of .jpg, .jpeg, .png, .webp"))
}

fn check_total(bytes: u64) -> Result<(), RecordingError> {
    if bytes <= PICTURES_MAX {
        return Ok(());
    }
    Err(RecordingError::Whole(format!("the images have more than {PICTURES_MAX} bytes together")))
}

fn wrong(index: usize, wrong: impl Into<String>) -> RecordingError {
    RecordingError::Line { line: index + 1, wrong: wrong.into() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(at: f64, kind: &str) -> Line {
        Line { at, kind: kind.to_owned(), data: json!({}), file: None }
    }

    fn picture(file: &str) -> Line {
        Line { file: Some(file.to_owned()), ..line(0.0, "screenshot") }
    }

    fn refusal(lines: Vec<Line>) -> String {
        Recording::new(lines, BTreeMap::new()).unwrap_err().to_string()
    }

    #[test]
    fn a_wrong_line_is_named() {
        let end = || line(2.0, "task_completed");
        assert!(refusal(vec![line(1.0, "action"), line(0.5, "action"), end()]).starts_with("line 2: at is 0.5"));
        assert!(refusal(vec![line(f64::NAN, "action"), end()]).starts_with("line 1: at is NaN"));
        assert!(refusal(vec![line(0.0, "session_ended"), end()]).starts_with("line 1: session_ended"));
        assert!(refusal(vec![line(0.0, "screenshot"), end()]).starts_with("line 1: a screenshot names"));
        assert!(refusal(vec![end(), line(3.0, "error")]).starts_with("line 1: task_completed ends"));
        assert!(refusal(vec![line(0.0, "action")]).starts_with("line 1: the last line"));
        assert!(refusal(Vec::new()).contains("no lines"));
    }

    #[test]
    fn a_file_leads_nowhere_else() {
        for file in
            ["../a.png", "/etc/a.png", "a/b.png", "a\\b.png", "..png", ".a.png", "a..png", "", "a.txt", "a\0.png"]
        {
            let text = refusal(vec![picture(file), line(0.0, "error")]);
            assert!(text.starts_with("line 1: ") && !text.contains("no image"), "{file}: {text}");
        }
        assert!(refusal(vec![picture("0007.jpg"), line(0.0, "error")]).contains("no image 0007.jpg"));
    }
}
