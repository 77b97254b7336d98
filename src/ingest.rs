//! The one way into a log: reads what a runtime publishes, checks it once, and encodes it once.
//!
//! The order is: [`read`] (syntax, size, type, ids), then the owner redacts with [`redact`] and asks its state
//! machines, then [`Frames`] makes the one native frame that log, disk and every subscriber share. Nothing here knows
//! who follows.

pub mod payload;
mod plain;

use std::{
    io::Write as _,
    sync::{Arc, LazyLock},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use onlooker_protocol::{
    Position,
    code::{Code, Refusal},
    event::kind,
};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{ids::is_outside_id, redact::Redactor};

/// What one event may be.
#[derive(Clone, Copy, Debug)]
pub struct IngestLimits {
    /// Bytes of an event's JSON, without an inline picture.
    pub payload: usize,
    pub depth: usize,
    /// Bytes of one picture.
    pub picture: usize,
}

/// A published event: read and checked, not yet redacted.
#[derive(Debug)]
pub struct Published<D = Data> {
    pub n: u64,
    pub kind: Arc<str>,
    pub task: Option<String>,
    pub data: D,
    pub picture: Option<NewPicture>,
}

impl Published {
    /// With its data as a value.
    pub fn read_out(self) -> Published<Value> {
        let Self { n, kind, task, data, picture } = self;
        Published { n, kind, task, data: data.into_value(), picture }
    }
}

/// What an event says.
#[derive(Clone, Debug)]
pub enum Data {
    Value(Value),
    /// An object as it is written without white space, with nothing escaped in it: of events that [`is_plain`].
    Text(Box<str>),
}

impl Data {
    pub fn into_value(self) -> Value {
        match self {
            Self::Value(value) => value,
            Self::Text(text) => serde_json::from_str(&text).expect("it was read as JSON"),
        }
    }

    pub fn is_text(&self) -> bool {
        matches!(self, Self::Text(_))
    }

    /// The value that a state may look at: nothing of an event that changes none.
    pub fn value(&self) -> &Value {
        match self {
            Self::Value(value) => value,
            Self::Text(_) => &Value::Null,
        }
    }
}

impl From<Value> for Data {
    fn from(value: Value) -> Self {
        Self::Value(value)
    }
}

/// Whether events of this type, which runtimes publish, are only to be looked at, so that nobody here reads their data.
fn is_plain(kind: &str) -> bool {
    matches!(kind, kind::AGENT | kind::ACTION | kind::RESPONSE_UPDATE) || is_own(kind)
}

/// The types that everybody knows, made once.
static KINDS: LazyLock<Vec<Arc<str>>> = LazyLock::new(|| kind::PUBLISHED.iter().map(|kind| (*kind).into()).collect());

fn kind_of(text: &str) -> Arc<str> {
    KINDS.iter().find(|kind| ***kind == *text).map_or_else(|| text.into(), Arc::clone)
}

/// Bytes that came beside a `screenshot`.
#[derive(Clone)]
pub struct NewPicture {
    pub media: String,
    pub bytes: Bytes,
}

impl std::fmt::Debug for NewPicture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NewPicture({}, {} bytes)", self.media, self.bytes.len())
    }
}

/// Why an event was refused; the number, where it could be read.
#[derive(Debug)]
pub struct Unreadable {
    pub n: Option<u64>,
    cause: Cause,
}

#[derive(Debug)]
enum Cause {
    Payload(payload::PayloadError),
    Refused(Refusal),
}

impl Unreadable {
    pub fn new(n: Option<u64>, refusal: Refusal) -> Self {
        Self { n, cause: Cause::Refused(refusal) }
    }

    fn payload(text: &str, error: payload::PayloadError) -> Self {
        #[derive(serde::Deserialize)]
        struct Numbered {
            n: u64,
        }
        let n = serde_json::from_str::<Numbered>(text).ok().map(|numbered| numbered.n);
        Self { n, cause: Cause::Payload(error) }
    }

    /// What the runtime is told. Names and words of the event may be in it, and so may secrets until here.
    pub fn refusal(self, redactor: &Redactor) -> Refusal {
        match self.cause {
            Cause::Payload(error) => error.redacted(redactor).refusal(),
            Cause::Refused(mut refusal) => {
                refusal.message = redactor.redact_str(&refusal.message).into_owned();
                refusal
            }
        }
    }
}

/// Media types that a picture may have.
const MEDIA: [&str; 3] = ["image/jpeg", "image/png", "image/webp"];

/// Reads one event from its JSON text.
///
/// # Errors
/// With the code of what is wrong: `duplicate_key`, `too_deep`, `too_large`, `bad_frame`, `invalid`.
pub fn read(text: &str, limits: &IngestLimits) -> Result<Published, Unreadable> {
    if text.len() <= limits.payload
        && let Some(plain) = plain::read(text, limits.depth, is_plain)
    {
        let (kind, task) = (kind_of(plain.kind), plain.task.map(str::to_owned));
        return Ok(Published { n: plain.n, kind, task, data: Data::Text(plain.data), picture: None });
    }
    let inline_picture = limits.picture / 3 * 4 + 1024;
    let bounds = payload::PayloadLimits { depth: limits.depth, bytes: limits.payload + inline_picture };
    let value = payload::parse(text, &bounds).map_err(|error| Unreadable::payload(text, error))?;
    let Value::Object(mut event) = value else {
        return Err(Unreadable::new(None, invalid("an event is a JSON object")));
    };
    let n = event.get("n").and_then(Value::as_u64).filter(|n| *n > 0);
    from_object(&mut event, text.len(), limits).map_err(|refusal| Unreadable::new(n, refusal))
}

fn from_object(event: &mut Map<String, Value>, size: usize, limits: &IngestLimits) -> Result<Published, Refusal> {
    let n = event.get("n").and_then(Value::as_u64).filter(|n| *n > 0);
    let n = n.ok_or_else(|| invalid("an event's `n` counts 1, 2, 3 …"))?;
    let kind = event.get("type").and_then(Value::as_str).ok_or_else(|| invalid("an event has a `type`"))?;
    check_kind(kind)?;
    let kind = kind_of(kind);
    let task = optional_id(event, "task")?;
    let picture = event.remove("picture").filter(|picture| !picture.is_null());
    let picture = picture.map(|picture| inline_picture(&picture, limits)).transpose()?;
    if picture.is_none() && size > limits.payload {
        return Err(too_large(size, limits.payload));
    }
    let data = event.remove("data").unwrap_or_default();
    published(n, kind, task, data, picture)
}

/// Reads the parts of a binary frame: a `screenshot` with its bytes.
///
/// # Errors
/// As for [`read`].
pub fn read_picture(header: &str, bytes: Bytes, limits: &IngestLimits) -> Result<Published, Unreadable> {
    let bounds = payload::PayloadLimits { depth: limits.depth, bytes: limits.payload };
    let value = payload::parse(header, &bounds).map_err(|error| Unreadable::payload(header, error))?;
    let n = value.get("n").and_then(Value::as_u64).filter(|n| *n > 0);
    let refuse = |refusal| Unreadable::new(n, refusal);
    let number = n.ok_or_else(|| refuse(invalid("a picture's `n` counts 1, 2, 3 …")))?;
    let media = value.get("media").and_then(Value::as_str).unwrap_or_default();
    let picture = checked_picture(media, bytes, limits).map_err(refuse)?;
    let task = value.as_object().map(|header| optional_id(header, "task")).transpose().map_err(refuse)?.flatten();
    let data = value.get("data").cloned().unwrap_or_default();
    published(number, kind::SCREENSHOT.into(), task, data, Some(picture)).map_err(refuse)
}

fn published(
    n: u64,
    kind: Arc<str>,
    task: Option<String>,
    data: Value,
    picture: Option<NewPicture>,
) -> Result<Published, Refusal> {
    if !matches!(data, Value::Object(_) | Value::Null) {
        return Err(invalid("an event's `data` is an object"));
    }
    if picture.is_some() && *kind != *kind::SCREENSHOT {
        return Err(invalid("only a `screenshot` has a picture"));
    }
    Ok(Published { n, kind, task, data: data.into(), picture })
}

/// Known types, and types of the runtime's own under `x.`.
fn check_kind(kind: &str) -> Result<(), Refusal> {
    if is_own(kind) || kind::PUBLISHED.contains(&kind) {
        return Ok(());
    }
    let shortened: String = kind.chars().take(64).collect();
    Err(invalid(format!("`{shortened}` is no event type that a runtime publishes; types of your own begin with `x.`")))
}

fn is_own(kind: &str) -> bool {
    kind.strip_prefix("x.").is_some_and(|rest| {
        (1..=62).contains(&rest.len())
            && rest.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'.' | b'-'))
    })
}

fn optional_id(object: &Map<String, Value>, name: &str) -> Result<Option<String>, Refusal> {
    match object.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(id)) if is_outside_id(id) => Ok(Some(id.clone())),
        Some(_) => Err(invalid(format!("`{name}` is 1 to 64 characters of A-Z a-z 0-9 _ -"))),
    }
}

fn inline_picture(value: &Value, limits: &IngestLimits) -> Result<NewPicture, Refusal> {
    let text = |name: &str| value.get(name).and_then(Value::as_str);
    let encoded = text("base64").ok_or_else(|| invalid("a picture has `media` and `base64`"))?;
    let bytes = BASE64_STANDARD.decode(encoded).map_err(|_| invalid("a picture's `base64` is not base64"))?;
    checked_picture(text("media").unwrap_or_default(), bytes.into(), limits)
}

fn checked_picture(media: &str, bytes: Bytes, limits: &IngestLimits) -> Result<NewPicture, Refusal> {
    if !MEDIA.contains(&media) {
        return Err(invalid("a picture's `media` is image/jpeg, image/png or image/webp"));
    }
    if bytes.len() > limits.picture {
        return Err(too_large(bytes.len(), limits.picture));
    }
    Ok(NewPicture { media: media.to_owned(), bytes })
}

/// Members of an event's data that are ids or words of the protocol: they are checked, and never redacted.
const PLAIN_MEMBERS: [&str; 4] = ["taskId", "guardrailId", "type", "id"];

/// Replaces every registered secret in an event's data.
pub fn redact(data: &mut Data, redactor: &Redactor) {
    if let Data::Text(text) = data {
        if redactor.is_clear(text) {
            return;
        }
        *data = std::mem::replace(data, Data::Value(Value::Null)).into_value().into();
    }
    let Data::Value(Value::Object(members)) = data else { return };
    if redactor.is_empty() {
        return;
    }
    let is_plain = |name: &&str| members.get(*name).and_then(Value::as_str).is_some_and(is_outside_id);
    let plain: Vec<&str> = PLAIN_MEMBERS.into_iter().filter(is_plain).collect();
    redactor.redact_members(members, &plain);
}

#[derive(Serialize)]
struct EventFrame<'a> {
    #[serde(rename = "type")]
    frame: &'static str,
    session: &'a str,
    position: Position,
    id: &'a str,
    at: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<&'a str>,
    event: Inner<'a>,
}

#[derive(Serialize)]
struct Inner<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(skip_serializing_if = "Value::is_null")]
    data: &'a Value,
}

/// What an event frame says beside its event.
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'a> {
    pub session: &'a str,
    pub position: Position,
    pub id: &'a str,
    pub at: &'a str,
    pub task: Option<&'a str>,
}

/// Frames share buffers of about this size: few allocations, and a frame that is kept keeps few others with it.
const SHARED_BYTES: usize = 16 << 10;

/// The native frames of events, as they are encoded one after the other. A frame holds nothing that differs between
/// subscribers, and no line break.
pub struct Frames {
    shared: Vec<Bytes>,
    buffer: Vec<u8>,
    /// Where each frame in the buffer ends.
    ends: Vec<usize>,
}

impl Frames {
    pub fn for_events(events: usize) -> Self {
        let bytes = if events > 1 { SHARED_BYTES + SHARED_BYTES / 4 } else { 512 };
        Self { shared: Vec::with_capacity(events), buffer: Vec::with_capacity(bytes), ends: Vec::new() }
    }

    pub fn encode(&mut self, envelope: Envelope<'_>, kind: &str, data: &Data) {
        match data {
            Data::Value(data) => {
                let Envelope { session, position, id, at, task } = envelope;
                let frame = EventFrame { frame: "event", session, position, id, at, task, event: Inner { kind, data } };
                serde_json::to_writer(&mut self.buffer, &frame).expect("an event is plain data");
            }
            Data::Text(data) => put_frame(&mut self.buffer, &envelope, kind, data),
        }
        self.ends.push(self.buffer.len());
        if self.buffer.len() >= SHARED_BYTES {
            self.share();
        }
    }

    /// Every frame, in the order in which they were encoded.
    pub fn finish(mut self) -> Vec<Bytes> {
        self.share();
        self.shared
    }

    fn share(&mut self) {
        let all = Bytes::copy_from_slice(&self.buffer);
        let mut start = 0;
        for end in self.ends.drain(..) {
            self.shared.push(all.slice(start..end));
            start = end;
        }
        self.buffer.clear();
    }
}

/// What [`EventFrame`] says with this data.
fn put_frame(out: &mut Vec<u8>, envelope: &Envelope<'_>, kind: &str, data: &str) {
    let Envelope { session, position, id, at, task } = envelope;
    let mut put = |name: &str, text: &str| {
        out.extend_from_slice(name.as_bytes());
        serde_json::to_writer(&mut *out, text).expect("a text can be written");
    };
    put(r#"{"type":"event","session":"#, session);
    put(r#","position":"#, position.epoch.as_str());
    out.pop();
    write!(out, ":{}", position.offset).expect("a buffer takes everything");
    let mut put = |name: &str, text: &str| {
        out.extend_from_slice(name.as_bytes());
        serde_json::to_writer(&mut *out, text).expect("a text can be written");
    };
    put(r#"","id":"#, id);
    put(r#","at":"#, at);
    if let Some(task) = task {
        put(r#","task":"#, task);
    }
    put(r#","event":{"type":"#, kind);
    out.extend_from_slice(br#","data":"#);
    out.extend_from_slice(data.as_bytes());
    out.extend_from_slice(b"}}");
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(Code::Invalid, message)
}

fn too_large(size: usize, limit: usize) -> Refusal {
    Refusal::new(Code::TooLarge, format!("{size} bytes are more than {limit}"))
        .with_details(json!({ "size": size, "limit": limit }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(payloads: &[Value]) -> Vec<Bytes> {
        let epoch = crate::ids::random_epoch();
        let mut frames = Frames::for_events(payloads.len());
        for (data, offset) in payloads.iter().zip(0..) {
            let position = Position { epoch, offset };
            let envelope = Envelope { session: "q7w3k9d2m5x8c1v4b6n0", position, id: "1", at: "now", task: None };
            frames.encode(envelope, kind::AGENT, &data.clone().into());
        }
        frames.finish()
    }

    #[test]
    fn data_that_is_text_makes_the_same_frame_as_its_value() {
        let text = r#"{"content":"é","list":[1,null]}"#;
        let epoch = crate::ids::random_epoch();
        for task in [None, Some("t\"1")] {
            let position = Position { epoch, offset: 17 };
            let envelope = Envelope { session: "q7w3k9d2m5x8c1v4b6n0", position, id: "1", at: "now", task };
            let mut frames = Frames::for_events(2);
            frames.encode(envelope, "x.a", &Data::Text(text.into()));
            frames.encode(envelope, "x.a", &Data::Text(text.into()).into_value().into());
            let frames = frames.finish();
            assert_eq!(frames[0], frames[1]);
        }
    }

    #[test]
    fn a_secret_in_data_that_is_text_goes_as_from_its_value() {
        let mut redactor = Redactor::default();
        redactor.register("hunter22", crate::redact::Nature::Credential).unwrap();
        let read = |data: &str| {
            let text = format!(r#"{{"n":1,"type":"agent","data":{data}}}"#);
            let limits = IngestLimits { payload: 10_000, depth: 32, picture: 0 };
            read(&text, &limits).unwrap().data
        };
        for (data, clean) in [
            (r#"{"a":"nothing here"}"#, r#"{"a":"nothing here"}"#),
            (r#"{"a":"my hunter22!"}"#, r#"{"a":"my [redacted]!"}"#),
            (r#"{"hunter22":1}"#, r#"{"[redacted]":1}"#),
            // In its other spellings, with escapes of JSON and of URLs, and in base64.
            (r#"{"a":"hunt\u0065r22"}"#, r#"{"a":"[redacted]"}"#),
            (r#"{"a":"?p=hunt%65r22"}"#, r#"{"a":"?p=[redacted]"}"#),
            (r#"{"a":"aHVudGVyMjI="}"#, r#"{"a":"[redacted]"}"#),
            // What only the text of two strings spells is none.
            (r#"{"a":"hunter","b":"22"}"#, r#"{"a":"hunter","b":"22"}"#),
        ] {
            let mut data = read(data);
            redact(&mut data, &redactor);
            assert_eq!(data.into_value().to_string(), clean);
        }
        // A value that counts as a whole string only.
        redactor.register("no", crate::redact::Nature::Credential).unwrap();
        let mut data = read(r#"{"a":"no","b":"not"}"#);
        redact(&mut data, &redactor);
        assert_eq!(data.into_value().to_string(), r#"{"a":"[redacted]","b":"not"}"#);
    }

    #[test]
    fn frames_that_share_buffers_are_each_whole_and_in_order() {
        let payloads: Vec<Value> = (0..300).map(|n| json!({ "content": "é".repeat(n), "n": n })).collect();
        let found = frames(&payloads);
        assert_eq!(found.len(), payloads.len());
        for ((frame, data), offset) in found.iter().zip(&payloads).zip(0..) {
            let frame: onlooker_protocol::event::EventFrame = serde_json::from_slice(frame).unwrap();
            assert_eq!((&frame.event.data, frame.position.offset), (data, offset));
        }
    }
}
