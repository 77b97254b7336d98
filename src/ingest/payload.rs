//! Reads a JSON text that came from outside, once and strictly.
//!
//! What passes is a value that every later reader understands the same way: no object has a member twice, nothing is
//! nested deeper than the limit, every number is finite, and nothing follows the value. Errors name a place by its
//! JSON Pointer (RFC 6901) and never show a value.
//!
//! Members whose names begin with `$serde_json::private::` are refused: serde_json gives them a meaning of their own
//! when it reads a stored text back, so that one could hide a value from the redactor or make an event unreadable.

use std::{borrow::Cow, cell::RefCell, fmt};

use onlooker_protocol::code::{Code, Refusal};
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value, map::Entry};

use crate::redact::Redactor;

/// Below serde_json's own limit of 127, so that the refusal is ours and says what is wrong.
const DEPTH_CEILING: usize = 126;
/// How much of one member's name an error shows, in characters.
const SHOWN_KEY_CHARS: usize = 64;
/// Members for which an event and its data have room before they grow: most have no more. What is nested deeper may be
/// many small objects.
const USUAL_MEMBERS: usize = 7;
const ROOMY_DEPTH: usize = 2;
const RESERVED_PREFIX: &str = "$serde_json::private::";

/// How much a JSON text may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PayloadLimits {
    /// Objects and arrays inside one another; a bare string has depth 0. At most 126.
    pub(crate) depth: usize,
    /// Bytes of the text, white space included.
    pub(crate) bytes: usize,
}

impl Default for PayloadLimits {
    fn default() -> Self {
        Self { depth: 32, bytes: 256 * 1024 }
    }
}

/// Why a JSON text was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PayloadError {
    #[error("not valid JSON at line {line}, column {column}")]
    NotJson { line: usize, column: usize },
    #[error("the member {path} is there twice")]
    DuplicateKey { path: KeyPath },
    #[error("the name of the member {path} is reserved")]
    ReservedKey { path: KeyPath },
    #[error("nested deeper than {limit} levels")]
    TooDeep { limit: usize },
    #[error("{size} bytes, where {limit} are allowed")]
    TooLarge { size: usize, limit: usize },
}

impl PayloadError {
    /// Takes secrets out of the names in the path. Must be done before the error is shown: `Display` shortens names,
    /// and a shortened secret is one that no redactor recognises.
    #[must_use]
    pub(crate) fn redacted(self, redactor: &Redactor) -> Self {
        match self {
            Self::DuplicateKey { path } => Self::DuplicateKey { path: path.redacted(redactor) },
            Self::ReservedKey { path } => Self::ReservedKey { path: path.redacted(redactor) },
            other => other,
        }
    }

    pub(crate) fn refusal(&self) -> Refusal {
        let code = match self {
            Self::NotJson { .. } => Code::BadFrame,
            Self::DuplicateKey { .. } => Code::DuplicateKey,
            Self::ReservedKey { .. } => Code::Invalid,
            Self::TooDeep { .. } => Code::TooDeep,
            Self::TooLarge { .. } => Code::TooLarge,
        };
        Refusal::new(code, self.to_string())
    }
}

/// The names and indexes that lead to a member. Shown as a JSON Pointer, each name shortened to 64 characters.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct KeyPath(Vec<String>);

impl KeyPath {
    fn redacted(self, redactor: &Redactor) -> Self {
        Self(self.0.into_iter().map(|step| redactor.redact_str(&step).into_owned()).collect())
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.0 {
            let mut chars = step.chars();
            let shown: String = chars.by_ref().take(SHOWN_KEY_CHARS).collect();
            // Control characters are escaped, so that a name cannot begin a line of its own in a log.
            write!(f, "/{}", shown.replace('~', "~0").replace('/', "~1").escape_debug())?;
            if chars.next().is_some() {
                f.write_str("…")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Reads one JSON value, which must be all that the text holds beside white space.
pub(crate) fn parse(text: &str, limits: &PayloadLimits) -> Result<Value, PayloadError> {
    check_size(text.len(), limits)?;
    let reading = Reading { depth_limit: limits.depth.min(DEPTH_CEILING), refused: RefCell::new(None) };
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let place = Place { reading: &reading, step: Step::Root, depth: 0 };
    let read = place.deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value));
    read.map_err(|error| {
        let position = PayloadError::NotJson { line: error.line(), column: error.column() };
        reading.refused.take().unwrap_or(position)
    })
}

fn check_size(size: usize, limits: &PayloadLimits) -> Result<(), PayloadError> {
    if size > limits.bytes { Err(PayloadError::TooLarge { size, limit: limits.bytes }) } else { Ok(()) }
}

/// What the whole reading shares. serde's errors carry text only, so the kind of ours is left here.
struct Reading {
    depth_limit: usize,
    refused: RefCell<Option<PayloadError>>,
}

impl Reading {
    fn refuse<E: de::Error>(&self, why: PayloadError) -> E {
        self.refused.replace(Some(why));
        E::custom("refused")
    }
}

/// Where in the text a value stands: a list that lives on the stack, so that a good text costs no path.
#[derive(Clone, Copy)]
struct Place<'a> {
    reading: &'a Reading,
    step: Step<'a>,
    /// How many objects and arrays are around this value.
    depth: usize,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Member(&'a Place<'a>, &'a str),
    Element(&'a Place<'a>, usize),
}

impl<'a> Place<'a> {
    fn enter<E: de::Error>(&self) -> Result<(), E> {
        let limit = self.reading.depth_limit;
        if self.depth >= limit { Err(self.reading.refuse(PayloadError::TooDeep { limit })) } else { Ok(()) }
    }

    fn member(&'a self, name: &'a str) -> Place<'a> {
        Place { reading: self.reading, step: Step::Member(self, name), depth: self.depth + 1 }
    }

    fn element(&'a self, index: usize) -> Place<'a> {
        Place { reading: self.reading, step: Step::Element(self, index), depth: self.depth + 1 }
    }

    fn path(&self) -> KeyPath {
        let mut steps = Vec::with_capacity(self.depth);
        let mut place = self;
        loop {
            place = match place.step {
                Step::Root => break,
                Step::Member(parent, name) => {
                    steps.push(name.to_owned());
                    parent
                }
                Step::Element(parent, index) => {
                    steps.push(index.to_string());
                    parent
                }
            };
        }
        steps.reverse();
        KeyPath(steps)
    }
}

impl<'de> DeserializeSeed<'de> for Place<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Place<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        self.enter()?;
        let mut values = Vec::new();
        while let Some(value) = elements.next_element_seed(self.element(values.len()))? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        self.enter()?;
        let mut map = Map::new();
        while let Some(name) = members.next_key::<Cow<'de, str>>()? {
            if name.starts_with(RESERVED_PREFIX) {
                return Err(self.reading.refuse(PayloadError::ReservedKey { path: self.member(&name).path() }));
            }
            if map.is_empty() && self.depth < ROOMY_DEPTH {
                map = Map::with_capacity(USUAL_MEMBERS);
            }
            match map.entry(name) {
                Entry::Occupied(there) => {
                    let path = self.member(there.key()).path();
                    return Err(self.reading.refuse(PayloadError::DuplicateKey { path }));
                }
                Entry::Vacant(free) => {
                    let value = members.next_value_seed(self.member(free.key()))?;
                    free.insert(value);
                }
            }
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::redact::Nature;

    fn read(text: &str) -> Result<Value, PayloadError> {
        parse(text, &PayloadLimits::default())
    }

    fn nested(depth: usize) -> String {
        format!("{}{}", "[".repeat(depth), "]".repeat(depth))
    }

    #[test]
    fn every_kind_of_value_is_read_as_serde_json_reads_it() {
        for text in [
            "null",
            "true",
            "-1",
            "18446744073709551615",
            "1.5e3",
            "-0",
            "1e-400",
            "\"\"",
            r#""é😀\n""#,
            "[]",
            "{}",
            " [1, {\"a\": [null]}] ",
            r#"{"b":1,"a":2}"#,
        ] {
            let expected: Value = serde_json::from_str(text).unwrap();
            assert_eq!(read(text).unwrap(), expected, "{text}");
            assert_eq!(read(text).unwrap().to_string(), expected.to_string(), "{text}");
        }
    }

    #[test]
    fn text_that_is_no_json_is_refused_with_its_place() {
        for text in ["", "{", "{\"a\":1}x", "1 2", "1e999", "NaN", "\"\\ud800\"", "\u{feff}1", "[1,]", "\"a\nb\""] {
            assert!(matches!(read(text), Err(PayloadError::NotJson { .. })), "{text:?}");
        }
        assert_eq!(read("{\n \"a\": x}"), Err(PayloadError::NotJson { line: 2, column: 7 }));
    }

    #[test]
    fn a_member_that_is_there_twice_is_refused_at_any_depth_and_named_without_values() {
        let text = r#"{"a":{"b/c":[0,{"x":"old","y":1,"\u0078":"new"}]}}"#;
        let error = read(text).unwrap_err();
        assert_eq!(error.to_string(), "the member /a/b~1c/1/x is there twice");
        assert_eq!(error.refusal().code, Code::DuplicateKey);
        assert_eq!(read(r#"{"a":{"x":1},"b":{"x":2}}"#).unwrap(), json!({"a": {"x": 1}, "b": {"x": 2}}));
    }

    #[test]
    fn the_name_in_an_error_is_short_and_stays_on_one_line() {
        let name = format!("é\\n{}", "k".repeat(100));
        let error = read(&format!(r#"{{"{name}":1,"{name}":2}}"#)).unwrap_err();
        assert_eq!(error.to_string(), format!("the member /é\\n{}… is there twice", "k".repeat(62)));
        assert_eq!(format!("{error:?}"), format!("DuplicateKey {{ path: /é\\n{}… }}", "k".repeat(62)));
    }

    #[test]
    fn a_secret_that_is_a_name_is_taken_out_before_it_is_shortened() {
        let secret = "s3cret".repeat(20);
        let mut redactor = Redactor::default();
        redactor.register(&secret, Nature::Credential).unwrap();
        let error = read(&format!(r#"{{"{secret}":1,"{secret}":2}}"#)).unwrap_err().redacted(&redactor);
        assert_eq!(error.refusal().message, "the member /[redacted] is there twice");
    }

    #[test]
    fn depth_counts_objects_and_arrays_and_ends_at_the_limit() {
        assert!(read(&nested(32)).is_ok());
        assert_eq!(read(&nested(33)), Err(PayloadError::TooDeep { limit: 32 }));
        assert_eq!(read(&"{\"a\":[".repeat(17)), Err(PayloadError::TooDeep { limit: 32 }));
        let flat = PayloadLimits { depth: 0, ..PayloadLimits::default() };
        assert!(parse("1", &flat).is_ok());
        assert_eq!(parse("[]", &flat), Err(PayloadError::TooDeep { limit: 0 }));
        let boundless = PayloadLimits { depth: usize::MAX, ..PayloadLimits::default() };
        assert!(parse(&nested(126), &boundless).is_ok());
        assert_eq!(parse(&nested(50_000), &boundless), Err(PayloadError::TooDeep { limit: 126 }));
    }

    #[test]
    fn size_is_checked_before_anything_is_read() {
        let limits = PayloadLimits { bytes: 4, ..PayloadLimits::default() };
        assert!(parse("1234", &limits).is_ok());
        assert_eq!(parse("12345", &limits), Err(PayloadError::TooLarge { size: 5, limit: 4 }));
        assert_eq!(parse("xxxxx", &limits), Err(PayloadError::TooLarge { size: 5, limit: 4 }));
        assert_eq!(parse("true", &limits), Ok(json!(true)));
    }

    #[test]
    fn a_name_with_a_meaning_to_serde_json_is_refused() {
        let error = read(r#"{"a":{"$serde_json::private::RawValue":"{"}}"#).unwrap_err();
        assert!(matches!(error, PayloadError::ReservedKey { .. }));
        assert_eq!(error.refusal().code, Code::Invalid);
    }

    /// Numbers are integers or halves, because serde_json without `float_roundtrip` may read a long fraction one unit
    /// in the last place beside what it wrote.
    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<i32>().prop_map(|n| Value::from(f64::from(n) / 2.0)),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::vec((any::<String>(), inner), 0..5)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_value_written_and_read_again_is_the_same(value in any_json(), pretty: bool) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            let read = read(&text).unwrap();
            prop_assert_eq!(&read, &value);
            prop_assert_eq!(read.to_string(), value.to_string());
        }

        #[test]
        fn texts_without_names_are_accepted_exactly_when_serde_json_accepts_them(
            text in r#"[\[\]{}0-9eE.+\-, \n\ttruefalsn"\\]{0,12}"#,
        ) {
            let theirs = serde_json::from_str::<Value>(&text).ok();
            match read(&text) {
                Ok(value) => prop_assert_eq!(Some(value), theirs),
                Err(PayloadError::NotJson { .. }) => prop_assert_eq!(None, theirs),
                Err(other) => prop_assert!(false, "{other}"),
            }
        }

        #[test]
        fn a_member_repeated_anywhere_is_refused(
            value in any_json(), depth in 0_usize..20, name in "[a-z\"\\\\é]{1,8}",
        ) {
            let quoted = serde_json::to_string(&name).unwrap();
            let object = format!("{{{quoted}:{value},\"other/\":0,{quoted}:null}}");
            let text = format!("{}{object}{}", "[0,".repeat(depth), "]".repeat(depth));
            prop_assert!(serde_json::from_str::<Value>(&text).is_ok());
            let refused = matches!(read(&text), Err(PayloadError::DuplicateKey { .. } | PayloadError::TooDeep { .. }));
            prop_assert!(refused);
        }
    }
}
