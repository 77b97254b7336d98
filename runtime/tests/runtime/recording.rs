use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use bytes::Bytes;
use onlooker_runtime::{Line, Recording};
use proptest::prelude::*;
use serde_json::{Value, json};

/// A folder of its own for a test, gone with it.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("onlooker-runtime-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self(std::env::temp_dir().join(name))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn line() -> impl Strategy<Value = (u32, Line)> {
    let kind = prop_oneof![Just("action"), Just("agent"), Just("screenshot"), Just("sensitive"), Just("x.own")];
    let data = prop_oneof![
        Just(Value::Null),
        (".*", any::<i64>(), any::<bool>()).prop_map(|(text, n, yes)| json!({"text": text, "n": n, "yes": yes})),
    ];
    let file =
        (0u32..5, prop_oneof![Just("jpg"), Just("png"), Just("webp")]).prop_map(|(n, end)| format!("{n:04}.{end}"));
    (0..100_000u32, kind, data, file).prop_map(|(step_ms, kind, data, file)| {
        let file = (kind == "screenshot").then_some(file);
        (step_ms, Line { at: 0.0, kind: kind.to_owned(), data, file })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_recording_that_is_saved_is_opened_as_it_was(steps in prop::collection::vec(line(), 0..30), image in any::<Vec<u8>>()) {
        // Milliseconds, as a gateway's times have them: text and number then agree exactly.
        let mut at_ms = 0;
        let mut lines: Vec<Line> = steps.into_iter().map(|(step_ms, line)| {
            at_ms += step_ms;
            Line { at: f64::from(at_ms) / 1_000.0, ..line }
        }).collect();
        let at = f64::from(at_ms) / 1_000.0;
        lines.push(Line { at, kind: "task_completed".to_owned(), data: json!({"message": "done"}), file: None });
        let names = lines.iter().filter_map(|line| line.file.clone());
        let pictures: BTreeMap<_, _> = names.map(|name| (name.clone(), Bytes::from([image.as_slice(), name.as_bytes()].concat()))).collect();
        let recording = Recording::new(lines, pictures).unwrap();
        let folder = Folder::new();
        recording.save(folder.path()).unwrap();
        prop_assert_eq!(&Recording::open(folder.path()).unwrap(), &recording);
        prop_assert!(recording.save(folder.path()).is_err(), "a recording was written over another");
    }
}

#[test]
fn an_error_names_the_line_of_the_file() {
    let folder = Folder::new();
    std::fs::create_dir_all(folder.path()).unwrap();
    let open = |text: &str| {
        std::fs::write(folder.path().join("recording.jsonl"), text).unwrap();
        Recording::open(folder.path()).unwrap_err().to_string()
    };
    let good = r#"{"at": 0, "type": "action"}"#;
    assert!(open(&format!("{good}\n{{\"at\": 1\n")).starts_with("line 2: no line"));
    assert!(
        open(&format!("{good}\n\n{{\"at\": 1, \"type\": \"error\", \"tipe\": 1}}\n")).starts_with("line 3: no line")
    );
    let missing = r#"{"at": 1, "type": "screenshot", "file": "gone.png"}"#;
    let end = r#"{"at": 1, "type": "error"}"#;
    assert!(open(&format!("{good}\n{missing}\n{end}\n")).starts_with("line 2: gone.png"));
}
