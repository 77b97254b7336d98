//! Holds the crate, `fixtures/` and `PROTOCOL.md` to one another, so that a client written from the last two speaks to
//! a gateway written from the first.

#![allow(clippy::unwrap_used, reason = "every function of this file is part of a test")]

use std::{collections::BTreeSet, fs, path::PathBuf};

use onlooker_protocol::{
    Code,
    code::ComeBack,
    notice::{Notice, NoticeType},
    picture::{self, PublishedPicture, ShownPicture},
    runtime::{GatewayToRuntime, RuntimeToGateway},
    subscriber::{GatewayToSubscriber, SubscriberToGateway},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// Members below which every name has a meaning to somebody else: an added one is content, not an unknown member.
const OPEN_MEMBERS: &[&str] =
    &["action", "data", "details", "labels", "parameters", "positions", "result", "task", "values"];

/// The names of a direction's frame types: a list for the tests, and an exhaustive match, so that a new variant does
/// not compile before it is named here, and then fails the tests until a fixture and the document show it.
macro_rules! frame_types {
    ($list:ident $name_of:ident $frame:ident $($variant:ident $name:literal),+) => {
        const $list: &[&str] = &[$($name),+];

        fn $name_of(frame: &$frame) -> Option<&'static str> {
            match frame {
                $($frame::$variant { .. } => Some($name),)+
                $frame::Unknown => None,
            }
        }
    };
}

frame_types! { SUBSCRIBER_TO_GATEWAY from_subscriber SubscriberToGateway
    Ack "ack", Answer "answer", Attention "attention", Auth "auth", Claim "claim", Command "command", Pong "pong",
    Release "release", Subscribe "subscribe", Unsubscribe "unsubscribe"
}
frame_types! { GATEWAY_TO_SUBSCRIBER to_subscriber GatewayToSubscriber
    Claims "claims", Error "error", Event "event", Gap "gap", Goaway "goaway", Hello "hello", Live "live", Ok "ok", Ping "ping",
    Ready "ready", Replay "replay", Snapshot "snapshot", Summaries "summaries", Summary "summary",
    Unsubscribed "unsubscribed", Watchers "watchers"
}
frame_types! { RUNTIME_TO_GATEWAY from_runtime RuntimeToGateway
    Auth "auth", Claim "claim", CommandsDone "commands_done", Decline "decline", End "end", Events "events",
    NLost "n_lost", Open "open", Pong "pong", Register "register", Secrets "secrets"
}
frame_types! { GATEWAY_TO_RUNTIME to_runtime GatewayToRuntime
    Accepted "accepted", Assigned "assigned", Claimed "claimed", Command "command", Error "error",
    EventRefused "event_refused", Goaway "goaway", Hello "hello", Opened "opened", Ping "ping",
    Registered "registered", Released "released", Watchers "watchers"
}

fn read(path: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn fixtures(name: &str) -> Vec<Value> {
    serde_json::from_str(&read(&format!("fixtures/{name}.json"))).unwrap()
}

/// Checks one direction: every frame decodes, encodes back to itself and survives added members, every type occurs.
fn check_direction<F: Serialize + DeserializeOwned + PartialEq>(
    file: &str,
    types: &[&'static str],
    name_of: fn(&F) -> Option<&'static str>,
) {
    let mut seen = BTreeSet::new();
    for fixture in fixtures(file) {
        let frame: F = serde_json::from_value(fixture.clone()).unwrap_or_else(|e| panic!("{file}: {fixture}: {e}"));
        assert_eq!(name_of(&frame), fixture["type"].as_str(), "{file}: {fixture} decoded to another type");
        assert_eq!(serde_json::to_value(&frame).unwrap(), fixture, "{file}: a frame changed on its way");

        let text = fixture.to_string();
        let from_text: F = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{file}: {text}: {e}"));
        assert!(from_text == frame, "{file}: {text} reads differently as text");

        let mut extended = fixture.clone();
        add_unknown_members(&mut extended);
        let survived: F = serde_json::from_value(extended).unwrap_or_else(|e| panic!("{file}: {fixture}: {e}"));
        assert!(survived == frame, "{file}: an unknown member changed {fixture}");
        seen.extend(name_of(&frame));
    }
    assert_eq!(seen, types.iter().copied().collect(), "{file}: types without a fixture");

    let later: F = serde_json::from_value(json!({"type": "of_a_later_version", "session": "s", "more": [1]})).unwrap();
    assert_eq!(name_of(&later), None, "{file}: a type of a later version is not Unknown");
}

fn add_unknown_members(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(add_unknown_members),
        Value::Object(members) => {
            for (name, member) in members.iter_mut() {
                let is_map_of_values = name == "fields" && member.is_object();
                // A replayed event stays the JSON that the log holds.
                if !OPEN_MEMBERS.contains(&name.as_str()) && !is_map_of_values && name != "events" {
                    add_unknown_members(member);
                }
            }
            members.insert("memberOfALaterVersion".to_owned(), json!({"any": ["thing", null]}));
        }
        _ => {}
    }
}

#[test]
fn frames_of_subscribers_are_as_the_fixtures_say() {
    check_direction("subscriber_to_gateway", SUBSCRIBER_TO_GATEWAY, from_subscriber);
}

#[test]
fn frames_to_subscribers_are_as_the_fixtures_say() {
    check_direction("gateway_to_subscriber", GATEWAY_TO_SUBSCRIBER, to_subscriber);
}

#[test]
fn frames_of_runtimes_are_as_the_fixtures_say() {
    check_direction("runtime_to_gateway", RUNTIME_TO_GATEWAY, from_runtime);
}

#[test]
fn frames_to_runtimes_are_as_the_fixtures_say() {
    check_direction("gateway_to_runtime", GATEWAY_TO_RUNTIME, to_runtime);
}

#[test]
fn absent_members_have_the_defaults_of_the_document() {
    let short: SubscriberToGateway = serde_json::from_value(json!({"type": "subscribe", "session": "s"})).unwrap();
    let long = json!({
        "type": "subscribe", "session": "s", "since": "latest", "pictures": "none", "role": "watcher",
        "attention": "idle",
    });
    assert_eq!(serde_json::to_value(short).unwrap(), long);

    let short: RuntimeToGateway =
        serde_json::from_value(json!({"type": "claim", "session": "s", "claim": "c"})).unwrap();
    assert_eq!(serde_json::to_value(short).unwrap()["commands"], 0);
}

#[test]
fn a_command_of_a_later_version_reaches_a_runtime_as_unknown() {
    let frame = json!({"type": "command", "session": "s", "number": 3, "command": "of_a_later_version", "more": {}});
    let GatewayToRuntime::Command { command, .. } = serde_json::from_value(frame).unwrap() else {
        panic!("no command");
    };
    assert_eq!(command.number, 3);
    assert!(command.command == onlooker_protocol::runtime::RuntimeCommand::Unknown);
}

#[test]
fn pictures_are_a_length_a_header_and_bytes() {
    for fixture in fixtures("picture") {
        let frame = unhex(fixture["frame"].as_str().unwrap());
        let header = match fixture["direction"].as_str().unwrap() {
            "runtime_to_gateway" => check_picture::<PublishedPicture>(&frame, &fixture),
            _ => check_picture::<ShownPicture>(&frame, &fixture),
        };
        assert_eq!(header, fixture["header"]);
    }
    assert!(picture::decode::<ShownPicture>(&[0, 0, 0]).is_err(), "cut within the length");
    assert!(picture::decode::<ShownPicture>(&[0, 0, 0, 9, b'{', b'}']).is_err(), "cut within the header");
    assert!(picture::decode::<ShownPicture>(&[0, 0, 0, 2, b'{', b'}', 1]).is_err(), "a header without its members");
}

fn check_picture<H: Serialize + DeserializeOwned>(frame: &[u8], fixture: &Value) -> Value {
    let (header, bytes) = picture::decode::<H>(frame).unwrap();
    assert_eq!(bytes, unhex(fixture["picture"].as_str().unwrap()));
    assert_eq!(picture::encode(&header, bytes), frame);
    serde_json::to_value(header).unwrap()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

#[test]
fn notices_are_as_the_fixtures_say_and_every_type_is_in_the_document() {
    let kind_of = |notice: &Notice| match notice.kind {
        NoticeType::GuardrailOpened => "guardrail.opened",
        NoticeType::GuardrailUpdated => "guardrail.updated",
        NoticeType::GuardrailResolved => "guardrail.resolved",
        NoticeType::TaskCompleted => "task.completed",
        NoticeType::TaskFailed => "task.failed",
        NoticeType::Test => "test",
    };
    let document = read("PROTOCOL.md");
    let mut seen = BTreeSet::new();
    for fixture in fixtures("notices") {
        let notice: Notice = serde_json::from_value(fixture.clone()).unwrap_or_else(|e| panic!("{fixture}: {e}"));
        assert_eq!(serde_json::to_value(&notice).unwrap(), fixture, "a notice changed on its way");
        assert_eq!(fixture["type"], kind_of(&notice));
        assert!(document.contains(&format!("| `{}` |", kind_of(&notice))), "{fixture}: not in the document");
        let mut extended = fixture.clone();
        add_unknown_members(&mut extended);
        let survived: Notice = serde_json::from_value(extended).unwrap_or_else(|e| panic!("{fixture}: {e}"));
        assert_eq!(Notice { result: None, ..survived }, Notice { result: None, ..notice.clone() });
        seen.insert(kind_of(&notice));
    }
    assert_eq!(seen.len(), 6, "types without a fixture");
}

#[test]
fn the_codes_of_the_fixtures_are_the_table() {
    let table: Vec<Value> = Code::ALL
        .iter()
        .map(|code| {
            json!({
                "number": code.number(), "name": code.name(), "http": code.http_status(),
                "come_back": word(code.come_back()), "meaning": code.meaning(),
            })
        })
        .collect();
    assert_eq!(fixtures("codes"), table);
}

fn word(come_back: ComeBack) -> &'static str {
    match come_back {
        ComeBack::Now => "now",
        ComeBack::Later => "later",
        ComeBack::Never => "never",
    }
}

#[test]
fn every_code_stands_in_the_document() {
    let document = read("PROTOCOL.md");
    for code in Code::ALL {
        let third = if code.closes() { word(code.come_back()).to_owned() } else { code.http_status().to_string() };
        let row = format!("| {} | `{}` | {third} | {} |", code.number(), code.name(), code.meaning());
        assert!(document.lines().any(|line| line == row), "PROTOCOL.md lacks the row {row}");
    }
    let is_row_of_a_code = |line: &&str| {
        let mut cells = line.split(" | ");
        let number = cells.next().and_then(|cell| cell.strip_prefix("| ")).map(str::parse::<u16>);
        matches!(number, Some(Ok(_))) && cells.next().is_some_and(|name| name.starts_with('`'))
    };
    let rows = document.lines().filter(is_row_of_a_code);
    assert_eq!(rows.count(), Code::ALL.len(), "PROTOCOL.md has a row for a code that does not exist");
}

#[test]
fn every_frame_type_stands_in_the_document() {
    let document = read("PROTOCOL.md");
    let types = [SUBSCRIBER_TO_GATEWAY, GATEWAY_TO_SUBSCRIBER, RUNTIME_TO_GATEWAY, GATEWAY_TO_RUNTIME].concat();
    for name in types {
        assert!(document.contains(&format!("`{name}`")), "PROTOCOL.md does not name the frame `{name}`");
    }
}

#[test]
fn the_range_of_a_code_says_when_to_come_back() {
    let mut numbers = BTreeSet::new();
    let mut names = BTreeSet::new();
    for &code in Code::ALL {
        assert!(numbers.insert(code.number()) && names.insert(code.name()), "{code} is in the table twice");
        assert_eq!(Code::from_number(code.number()), code);
        assert_eq!(Code::from_name(code.name()), Some(code));
        assert_eq!(code.closes(), code.http_status() == 0, "{code}: close codes have no HTTP status, the others have");
        let status = code.http_status();
        match code.come_back() {
            ComeBack::Never if !code.closes() => assert!((400..500).contains(&status), "{code}: {status}"),
            ComeBack::Now if !code.closes() => assert_eq!(status, 409, "{code}: the state has to be looked at first"),
            _ => {}
        }
    }
    for (number, expected) in [
        (1999, ComeBack::Now),
        (2999, ComeBack::Later),
        (3999, ComeBack::Never),
        (4099, ComeBack::Now),
        (4100, ComeBack::Later),
        (4499, ComeBack::Later),
        (4500, ComeBack::Never),
        (4999, ComeBack::Never),
    ] {
        assert_eq!(Code::Unknown(number).come_back(), expected, "{number}");
    }
}

#[test]
fn debug_output_shows_no_secret() {
    for name in ["subscriber_to_gateway", "gateway_to_runtime", "runtime_to_gateway"] {
        let text = serde_json::to_string(&fixtures(name)).unwrap();
        assert!(text.contains("s3cret-value"), "{name}: the fixtures hold no secret to look for");
    }
    for fixture in fixtures("subscriber_to_gateway") {
        match serde_json::from_value(fixture).unwrap() {
            SubscriberToGateway::Answer { answer, .. } => assert!(!format!("{answer:?}").contains("s3cret-value")),
            SubscriberToGateway::Command { command, .. } => assert!(!format!("{command:?}").contains("s3cret-value")),
            _ => {}
        }
    }
    for fixture in fixtures("gateway_to_runtime") {
        match serde_json::from_value(fixture).unwrap() {
            GatewayToRuntime::Command { command, .. } => assert!(!format!("{command:?}").contains("s3cret-value")),
            GatewayToRuntime::Assigned { parameters, .. } => {
                assert!(!format!("{parameters:?}").contains("s3cret-value"));
            }
            _ => {}
        }
    }
}

#[test]
fn replayed_events_are_whole_event_frames() {
    let replayed: Vec<Value> = fixtures("gateway_to_subscriber")
        .into_iter()
        .filter(|frame| frame["type"] == "replay")
        .flat_map(|frame| frame["events"].as_array().unwrap().clone())
        .collect();
    assert!(!replayed.is_empty());
    for event in replayed {
        let frame: GatewayToSubscriber = serde_json::from_value(event.clone()).unwrap();
        assert!(matches!(frame, GatewayToSubscriber::Event(_)), "{event}");
        assert_eq!(serde_json::to_value(frame).unwrap(), event);
    }
}
