//! Packets of Engine.IO 4 and Socket.IO 5, as far as a server of JSON events in the default namespace needs them.
//!
//! Sources: "Engine.IO protocol, version 4" and "Socket.IO protocol, version 5" at socket.io/docs. What a peer sends is
//! cut only at ASCII characters that were found in it: text is UTF-8, and a cut elsewhere would panic.

use serde_json::{Map, Value};

/// Attachments that one packet may announce.
const ATTACHMENTS: usize = 8;

/// Between the packets of a payload.
pub(super) const SEPARATOR: char = '\u{1e}';

pub(super) const PING: &str = "2";
pub(super) const PROBE: &str = "2probe";
pub(super) const PROBE_ANSWER: &str = "3probe";
pub(super) const CLOSE: &str = "1";
pub(super) const NOOP: &str = "6";
/// Of Socket.IO: its client leaves, and does not come back by itself.
pub(super) const DISCONNECT: &str = "41";

/// This is no packet of the protocol: its sender is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// An Engine.IO packet of text, from a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EnginePacket<'a> {
    Close,
    Pong,
    Message(&'a str),
    Noop,
}

impl<'a> EnginePacket<'a> {
    /// # Errors
    /// What clients do not send, or not at any time: `open`, `ping`, `upgrade`, and what no version knows.
    pub(super) fn parse(text: &'a str) -> Result<Self, Malformed> {
        match text {
            CLOSE => Ok(Self::Close),
            "3" => Ok(Self::Pong),
            NOOP => Ok(Self::Noop),
            _ => text.strip_prefix('4').map(Self::Message).ok_or(Malformed),
        }
    }
}

/// A Socket.IO packet from a client.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Packet {
    Connect {
        auth: Map<String, Value>,
    },
    Disconnect,
    Event(Event),
    /// Nothing is asked of clients that they could acknowledge.
    Ack {
        attachments: usize,
    },
    /// It is about another namespace than the default one.
    Elsewhere {
        namespace: String,
        connects: bool,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Event {
    pub name: String,
    pub arguments: Vec<Value>,
    /// Its sender wants to know that it was heard.
    pub ack: Option<u64>,
    /// Binary packets that follow.
    pub attachments: usize,
}

impl Packet {
    /// Reads what follows the `4` of an Engine.IO message.
    ///
    /// # Errors
    /// Anything that the protocol has no place for, and more attachments than allowed.
    pub(super) fn parse(text: &str) -> Result<Self, Malformed> {
        let kind = *text.as_bytes().first().ok_or(Malformed)?;
        let rest = text.get(1..).ok_or(Malformed)?;
        let (attachments, rest) = match kind {
            b'5' | b'6' => attachments(rest)?,
            _ => (0, rest),
        };
        let (namespace, rest) = namespace(rest);
        if !matches!(namespace, "" | "/") {
            return match kind {
                b'0'..=b'6' => Ok(Self::Elsewhere { namespace: namespace.to_owned(), connects: kind == b'0' }),
                _ => Err(Malformed),
            };
        }
        let (ack, rest) = ack(rest)?;
        let payload = match rest {
            "" => None,
            json => Some(serde_json::from_str::<Value>(json).map_err(|_| Malformed)?),
        };
        match (kind, payload) {
            (b'0', None) => Ok(Self::Connect { auth: Map::new() }),
            (b'0', Some(Value::Object(auth))) => Ok(Self::Connect { auth }),
            (b'1', None) => Ok(Self::Disconnect),
            (b'2' | b'5', Some(Value::Array(mut arguments))) if !arguments.is_empty() => match arguments.remove(0) {
                Value::String(name) => Ok(Self::Event(Event { name, arguments, ack, attachments })),
                _ => Err(Malformed),
            },
            (b'3' | b'6', Some(Value::Array(_))) if ack.is_some() => Ok(Self::Ack { attachments }),
            _ => Err(Malformed),
        }
    }
}

fn attachments(text: &str) -> Result<(usize, &str), Malformed> {
    let (count, rest) = text.split_once('-').ok_or(Malformed)?;
    if count.is_empty() || !count.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Malformed);
    }
    let count = count.parse().ok().filter(|count| *count <= ATTACHMENTS).ok_or(Malformed)?;
    Ok((count, rest))
}

fn namespace(text: &str) -> (&str, &str) {
    match text.starts_with('/') {
        true => text.split_once(',').unwrap_or((text, "")),
        false => ("", text),
    }
}

fn ack(text: &str) -> Result<(Option<u64>, &str), Malformed> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (id, rest) = text.split_at(digits);
    match id {
        "" => Ok((None, rest)),
        id => id.parse().map(|id| (Some(id), rest)).map_err(|_| Malformed),
    }
}

/// The first packet of a session.
pub(super) fn open(sid: &str, upgrades: &[&str], (interval, timeout): (u64, u64), max_payload: usize) -> String {
    let open = serde_json::json!({
        "sid": sid,
        "upgrades": upgrades,
        "pingInterval": interval,
        "pingTimeout": timeout,
        "maxPayload": max_payload,
    });
    format!("0{open}")
}

/// The answer to CONNECT.
pub(super) fn connected(sid: &str, pid: &str) -> String {
    format!("40{}", serde_json::json!({ "sid": sid, "pid": pid }))
}

/// The refusal of a CONNECT. The namespace is the client's own text; empty for the default one.
pub(super) fn refused(namespace: &str, error: &Value) -> String {
    let separator = if namespace.is_empty() { "" } else { "," };
    format!("44{namespace}{separator}{error}")
}

/// An event with one argument and, behind it, the offset from which its receiver may resume.
pub(super) fn event(name: &str, argument: &Value, offset: Option<&str>) -> String {
    let name = Value::from(name);
    match offset {
        Some(offset) => format!("42[{name},{argument},{}]", Value::from(offset)),
        None => format!("42[{name},{argument}]"),
    }
}

/// The header of an event with one attachment, which follows in a packet of its own.
pub(super) fn event_with_attachment(name: &str, argument: &Value) -> String {
    format!("451-[{},{argument}]", Value::from(name))
}

pub(super) fn acknowledgement(id: u64, argument: &Value) -> String {
    format!("43{id}[{argument}]")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn event_of(text: &str) -> Event {
        match Packet::parse(text) {
            Ok(Packet::Event(event)) => event,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn the_documents_examples_are_read() {
        let auth = Map::from_iter([("token".to_owned(), json!("123"))]);
        assert_eq!(Packet::parse("0"), Ok(Packet::Connect { auth: Map::new() }));
        assert_eq!(Packet::parse(r#"0{"token":"123"}"#), Ok(Packet::Connect { auth: auth.clone() }));
        assert_eq!(Packet::parse(r#"0/,{"token":"123"}"#), Ok(Packet::Connect { auth }));
        assert_eq!(Packet::parse("1"), Ok(Packet::Disconnect));
        let event = event_of(r#"2["foo"]"#);
        assert_eq!((event.name.as_str(), event.ack, event.arguments.len()), ("foo", None, 0));
        let event = event_of(r#"212["foo",{"a":1},"x"]"#);
        assert_eq!((event.ack, event.arguments), (Some(12), vec![json!({ "a": 1 }), json!("x")]));
        let event = event_of(r#"51-["baz",{"_placeholder":true,"num":0}]"#);
        assert_eq!((event.attachments, event.ack), (1, None));
        assert_eq!(Packet::parse(r#"312["bar"]"#), Ok(Packet::Ack { attachments: 0 }));
        for (text, connects) in [("0/admin", true), ("0/admin,{}", true), (r#"2/admin,1["a"]"#, false)] {
            let namespace = "/admin".to_owned();
            assert_eq!(Packet::parse(text), Ok(Packet::Elsewhere { namespace, connects }), "{text}");
        }
    }

    #[test]
    fn what_is_no_packet_is_refused() {
        for text in [
            "",
            "7",
            "9",
            "a",
            "0[]",
            "0 {",
            "0\"x\"",
            "1{}",
            "2",
            "2{}",
            "2[]",
            "2[1]",
            "2a[\"x\"]",
            "2[\"x\"",
            "3[1]",
            "4{}",
            "5[\"x\"]",
            "5-[\"x\"]",
            "5x-[\"x\"]",
            "59-[\"x\"]",
            "599999999999999999999-[\"x\"]",
            "299999999999999999999[\"x\"]",
            "ü",
            "2ü",
            "2/ü",
            "5ü-",
            "😀",
            "2[\"\u{1e}",
            "-1",
            "5--1[\"x\"]",
        ] {
            let got = Packet::parse(text);
            assert!(matches!(got, Err(Malformed) | Ok(Packet::Elsewhere { .. })), "{text}: {got:?}");
        }
        for text in ["", "0", "2", "2probe", "5", "7", "ü", "1x", "3probe", "abc"] {
            assert_eq!(EnginePacket::parse(text), Err(Malformed), "{text}");
        }
    }

    #[test]
    fn what_goes_out_is_as_documented() {
        let got = open("x", &["websocket"], (25000, 20000), 1000);
        let wanted =
            r#"0{"sid":"x","upgrades":["websocket"],"pingInterval":25000,"pingTimeout":20000,"maxPayload":1000}"#;
        assert_eq!(got, wanted);
        assert_eq!(connected("s", "p"), r#"40{"sid":"s","pid":"p"}"#);
        assert_eq!(refused("", &json!({ "message": "no" })), r#"44{"message":"no"}"#);
        assert_eq!(refused("/a", &json!({ "message": "no" })), r#"44/a,{"message":"no"}"#);
        assert_eq!(event("message", &json!({ "a": 1 }), Some("e:1")), r#"42["message",{"a":1},"e:1"]"#);
        assert_eq!(acknowledgement(7, &json!({})), "437[{}]");
    }

    /// Kind, namespace, acknowledgement and JSON, as another implementation reads them.
    fn read_by_another(text: &str) -> Option<(char, String, Option<i64>, Value)> {
        use socketioxide_core::{
            Value::Str,
            packet::PacketData::{Connect, Disconnect, Event, EventAck},
            parser::{Parse, ParserState},
        };

        let read = socketioxide_parser_common::CommonParser
            .decode_str(&ParserState::default(), text.to_owned().into())
            .ok()?;
        let json_of = |value| match value {
            Str(text, _) => serde_json::from_str(&text).unwrap_or(Value::Null),
            _ => Value::Null,
        };
        let (kind, ack, json) = match read.inner {
            // An empty object says as much as none.
            Connect(auth) => ('0', None, auth.map(json_of).filter(|auth| *auth != json!({})).unwrap_or(Value::Null)),
            Disconnect => ('1', None, Value::Null),
            Event(arguments, ack) => ('2', ack, json_of(arguments)),
            EventAck(arguments, ack) => ('3', Some(ack), json_of(arguments)),
            _ => return None,
        };
        Some((kind, read.ns.to_string(), ack, json))
    }

    fn read_here(text: &str) -> Option<(char, String, Option<i64>, Value)> {
        let number = |ack: Option<u64>| ack.map(|id| i64::try_from(id).unwrap());
        match Packet::parse(text).ok()? {
            Packet::Connect { auth } if auth.is_empty() => Some(('0', "/".to_owned(), None, Value::Null)),
            Packet::Connect { auth } => Some(('0', "/".to_owned(), None, auth.into())),
            Packet::Disconnect => Some(('1', "/".to_owned(), None, Value::Null)),
            Packet::Event(Event { name, mut arguments, ack, .. }) => {
                arguments.insert(0, name.into());
                Some(('2', "/".to_owned(), number(ack), arguments.into()))
            }
            Packet::Ack { .. } | Packet::Elsewhere { .. } => None,
        }
    }

    proptest! {
        #[test]
        fn another_implementation_reads_the_same(
            slash in any::<bool>(), ack in any::<Option<u32>>(), name in any::<String>(), text in any::<String>(),
            number in any::<i64>(),
        ) {
            let slash = if slash { "/," } else { "" };
            let id = ack.map(|id| id.to_string()).unwrap_or_default();
            let event = json!([name, { "text": text, "number": number, "list": [null, true, text] }]);
            let auth = json!({ "sessionId": text, "pid": name });
            for packet in [format!("2{slash}{id}{event}"), format!("0{slash}{auth}"), "1".to_owned()] {
                let here = read_here(&packet);
                prop_assert!(here.is_some(), "{}", packet);
                prop_assert_eq!(here, read_by_another(&packet), "{}", packet);
            }
        }

        #[test]
        fn nothing_is_taken_here_that_another_implementation_refuses(
            text in "[0-3](/,)?[0-9]{0,3}(\\[\"[a-zü]{0,3}\"(,[0-9]{1,3})?\\]|\\{\"a\":1\\}|[\\[{\"a1,\\]}]{0,4})",
        ) {
            if let Some(here) = read_here(&text) {
                prop_assert_eq!(Some(here), read_by_another(&text), "{}", text);
            }
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text in any::<String>()) {
            let _ = EnginePacket::parse(&text);
            let _ = Packet::parse(&text);
        }

        #[test]
        fn nothing_like_a_packet_makes_them_panic(text in "[0-9bü😀]{0,3}[0-9-]{0,4}(/[a-zü,]{0,4})?[0-9]{0,22}[\\[{\"a1,\\]}ü]{0,8}") {
            let _ = EnginePacket::parse(&text);
            let _ = Packet::parse(&text);
        }

        #[test]
        fn what_is_written_is_read_again(
            name in any::<String>(), text in any::<String>(), number in any::<i64>(), ack in any::<Option<u64>>(),
        ) {
            let arguments = json!([name, { "text": text, "number": number }, "offset"]);
            let written = format!("2{}{arguments}", ack.map(|id| id.to_string()).unwrap_or_default());
            let Ok(Packet::Event(event)) = Packet::parse(&written) else { panic!("{written}") };
            prop_assert_eq!(&event.name, &name);
            prop_assert_eq!((event.ack, event.attachments), (ack, 0));
            prop_assert_eq!(&event.arguments[0], &arguments[1]);
            let ours = super::event(&name, &arguments[1], Some("offset"));
            let EnginePacket::Message(ours) = EnginePacket::parse(&ours).unwrap() else { panic!("{ours}") };
            prop_assert_eq!(Packet::parse(ours), Ok(Packet::Event(Event { ack: None, ..event })));
        }
    }
}
