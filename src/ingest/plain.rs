//! Reads the usual event in one pass, without making a value of it: what changes no state is only looked at by people,
//! and its data stays text.
//!
//! What is taken is what [`super::payload`] would take, with the text that writing its value would give. What is not
//! taken is not refused: it is read the long way. A string is taken only without escapes, so that its characters stand
//! in the text as they are, and the redactor can look through the text itself.

use crate::ids::is_outside_id;

/// Objects with more members are read the long way: names are compared one by one.
const MEMBERS: usize = 16;
/// What is nested deeper is read the long way: this recurses.
const DEPTH: usize = 16;
/// Digits of a number: below, it fits 64 bits.
const DIGITS: usize = 18;

pub(super) struct Plain<'a> {
    pub n: u64,
    pub kind: &'a str,
    pub task: Option<&'a str>,
    /// An object, without white space between its parts.
    pub data: Box<str>,
}

/// `takes`: which types of events. `depth`: how deep objects and arrays may be inside one another.
pub(super) fn read(text: &str, depth: usize, takes: impl Fn(&str) -> bool) -> Option<Plain<'_>> {
    let mut scan = Scan { text, at: 0, run: 0, out: String::new(), depth: depth.min(DEPTH) };
    let (mut n, mut kind, mut task, mut data) = (None, None, None, None);
    scan.space();
    scan.take(b'{')?;
    loop {
        scan.space();
        let name = scan.string()?;
        scan.space();
        scan.take(b':')?;
        scan.space();
        match name {
            "n" if n.is_none() => n = Some(scan.number()?.parse::<u64>().ok().filter(|n| *n > 0)?),
            "type" if kind.is_none() => kind = Some(scan.string()?).filter(|kind| takes(kind)),
            "task" if task.is_none() => task = Some(scan.string()?).filter(|task| is_outside_id(task)),
            "data" if data.is_none() => data = Some(scan.compact_object()?),
            _ => return None,
        }
        // A type or task that is not taken.
        if name == "type" && kind.is_none() || name == "task" && task.is_none() {
            return None;
        }
        scan.space();
        match scan.next()? {
            b',' => {}
            b'}' => break,
            _ => return None,
        }
    }
    scan.space();
    if scan.at != text.len() {
        return None;
    }
    Some(Plain { n: n?, kind: kind?, task, data: data? })
}

struct Scan<'a> {
    text: &'a str,
    at: usize,
    /// From here on the text is not in `out` yet.
    run: usize,
    /// The text so far, without white space.
    out: String,
    depth: usize,
}

impl<'a> Scan<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn take(&mut self, expected: u8) -> Option<()> {
        (self.next()? == expected).then_some(())
    }

    fn space(&mut self) {
        let is_space = |byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        if self.peek().is_some_and(is_space) {
            self.out.push_str(&self.text[self.run..self.at]);
            while self.peek().is_some_and(is_space) {
                self.at += 1;
            }
            self.run = self.at;
        }
    }

    fn compact_object(&mut self) -> Option<Box<str>> {
        self.out.clear();
        self.run = self.at;
        self.object(1)?;
        let rest = &self.text[self.run..self.at];
        self.run = self.at;
        if self.out.is_empty() {
            return Some(rest.into());
        }
        self.out.push_str(rest);
        Some(std::mem::take(&mut self.out).into())
    }

    /// `depth`: how many objects and arrays are around it.
    fn value(&mut self, depth: usize) -> Option<()> {
        match self.peek()? {
            b'"' => self.string().map(drop),
            b'{' => self.object(depth),
            b'[' => self.array(depth),
            b'-' | b'0'..=b'9' => self.number().map(drop),
            b't' => self.word("true"),
            b'f' => self.word("false"),
            b'n' => self.word("null"),
            _ => None,
        }
    }

    fn object(&mut self, depth: usize) -> Option<()> {
        self.take(b'{')?;
        if depth >= self.depth {
            return None;
        }
        self.space();
        if self.peek()? == b'}' {
            self.at += 1;
            return Some(());
        }
        let mut names = [""; MEMBERS];
        for known in 0..MEMBERS {
            self.space();
            let name = self.string()?;
            // Names that serde_json gives a meaning begin so.
            if name.starts_with('$') || names[..known].contains(&name) {
                return None;
            }
            names[known] = name;
            self.space();
            self.take(b':')?;
            self.space();
            self.value(depth + 1)?;
            self.space();
            match self.next()? {
                b',' => {}
                b'}' => return Some(()),
                _ => return None,
            }
        }
        None
    }

    fn array(&mut self, depth: usize) -> Option<()> {
        self.take(b'[')?;
        if depth >= self.depth {
            return None;
        }
        self.space();
        if self.peek()? == b']' {
            self.at += 1;
            return Some(());
        }
        loop {
            self.space();
            self.value(depth + 1)?;
            self.space();
            match self.next()? {
                b',' => {}
                b']' => return Some(()),
                _ => return None,
            }
        }
    }

    fn word(&mut self, word: &str) -> Option<()> {
        let found = self.text.as_bytes()[self.at..].starts_with(word.as_bytes());
        self.at += word.len();
        found.then_some(())
    }

    /// An integer as serde_json writes it.
    fn number(&mut self) -> Option<&'a str> {
        let begin = self.at;
        let negative = self.peek()? == b'-';
        self.at += usize::from(negative);
        let digits_at = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        let digits = &self.text.as_bytes()[digits_at..self.at];
        let usual = match digits {
            [] => false,
            [b'0'] => !negative,
            [first, ..] => *first != b'0' && digits.len() <= DIGITS,
        };
        let goes_on = matches!(self.peek(), Some(b'.' | b'e' | b'E'));
        (usual && !goes_on).then_some(&self.text[begin..self.at])
    }

    /// What stands between the quotes, if nothing in it is escaped.
    fn string(&mut self) -> Option<&'a str> {
        self.take(b'"')?;
        let begin = self.at;
        let rest = &self.text.as_bytes()[begin..];
        let ends = |byte: u8| byte == b'"' || byte == b'\\' || byte < b' ';
        // In pieces, which the processor looks at as a whole.
        let (pieces, _) = rest.as_chunks::<32>();
        let plain =
            pieces.iter().take_while(|piece| !piece.iter().fold(false, |found, byte| found | ends(*byte))).count();
        let length = 32 * plain + rest[32 * plain..].iter().position(|byte| ends(*byte))?;
        self.at = begin + length;
        self.take(b'"')?;
        Some(&self.text[begin..begin + length])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::ingest::payload::{self, PayloadLimits};

    fn taken(text: &str) -> Option<Plain<'_>> {
        read(text, 32, |kind| kind == "agent")
    }

    #[test]
    fn the_usual_event_is_taken_and_its_data_written_without_white_space() {
        let text = "{\"n\": 7, \"type\": \"agent\",\n \"task\": \"t_1\", \"data\": {\"a b\": [1, -2, true, null, \"é, x\"], \"c\": {}}} ";
        let plain = taken(text).unwrap();
        assert_eq!((plain.n, plain.kind, plain.task), (7, "agent", Some("t_1")));
        assert_eq!(&*plain.data, r#"{"a b":[1,-2,true,null,"é, x"],"c":{}}"#);
    }

    #[test]
    fn what_the_long_way_reads_otherwise_or_refuses_is_left_to_it() {
        let event = |data: &str| format!(r#"{{"n":1,"type":"agent","data":{data}}}"#);
        assert!(taken(&event(r#"{"a":0}"#)).is_some());
        for data in [
            r#"{"a":"\u0041"}"#,
            r#"{"a":1.0}"#,
            r#"{"a":1e2}"#,
            r#"{"a":-0}"#,
            r#"{"a":01}"#,
            r#"{"a":1,"a":2}"#,
            r#"{"b":{"a":1,"a":2}}"#,
            r#"{"$serde_json::private::RawValue":"{"}"#,
            "{\"a\":\"\n\"}",
            r#"{"a":99999999999999999999}"#,
            r#"{"a":1,}"#,
            r#"{"a":[1,]}"#,
            r#"{"a":tru}"#,
            r#"{"a":"#,
            "[1]",
            "null",
            &format!("{{\"a\":{}{}}}", "[".repeat(40), "]".repeat(40)),
        ] {
            assert!(taken(&event(data)).is_none(), "{data}");
        }
        for text in [
            "",
            "{}",
            r#"{"n":0,"type":"agent","data":{}}"#,
            r#"{"n":1,"type":"error","data":{}}"#,
            r#"{"n":1,"type":"agent"}"#,
            r#"{"n":1,"type":"agent","data":{},"picture":{}}"#,
            r#"{"n":1,"type":"agent","data":{},"task":"a b"}"#,
            r#"{"n":1,"n":2,"type":"agent","data":{}}"#,
            r#"{"n":1,"type":"agent","data":{}}x"#,
        ] {
            assert!(taken(text).is_none(), "{text}");
        }
    }

    fn any_data() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            (0..100_u8).prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[ -~é]{0,70}".prop_map(Value::from),
            "[a-z ]{0,70}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 30, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::vec(("[a-c$\\\\]{1,2}", inner), 0..5)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_taken_reads_and_writes_as_the_long_way_does(
            data in any_data(), pretty: bool, cut in 0..400_usize, put in "[\\\\\"{}\\[\\],:0e. n]{0,1}",
        ) {
            let event = serde_json::json!({ "n": 3, "type": "agent", "task": "t", "data": data });
            let mut text = if pretty { serde_json::to_string_pretty(&event) } else { serde_json::to_string(&event) }.unwrap();
            let place = (0..=cut.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap();
            text.insert_str(place, &put);
            if let Some(plain) = taken(&text) {
                let value = payload::parse(&text, &PayloadLimits::default()).unwrap();
                prop_assert_eq!(&*plain.data, value["data"].to_string());
                prop_assert_eq!(Some(plain.n), value["n"].as_u64());
                prop_assert_eq!(Some(plain.kind), value["type"].as_str());
                prop_assert_eq!(plain.task, value["task"].as_str());
            }
        }
    }
}
