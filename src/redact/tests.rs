use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD},
};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn knowing(secrets: &[&str]) -> Redactor {
    let mut redactor = Redactor::default();
    for secret in secrets {
        redactor.register(secret, Nature::Credential).unwrap();
    }
    redactor
}

fn knowing_text(text: &str) -> Redactor {
    let mut redactor = Redactor::default();
    redactor.register(text, Nature::FreeText).unwrap();
    redactor
}

#[track_caller]
fn assert_redacts(redactor: &Redactor, cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        assert_eq!(redactor.redact_str(text), *expected, "{text}");
    }
}

#[test]
fn an_empty_redactor_gives_the_text_back() {
    let redactor = Redactor::default();
    assert!(redactor.is_empty());
    assert!(matches!(redactor.redact_str("anything"), Cow::Borrowed("anything")));
    assert!(!redactor.redact_value(&mut json!({"a": ["b"]})));
}

#[test]
fn a_value_goes_wherever_it_stands_in_a_string() {
    let redactor = knowing(&["hunter2"]);
    assert_redacts(
        &redactor,
        &[
            ("hunter2", "[redacted]"),
            ("xhunter2y hunter2", "x[redacted]y [redacted]"),
            ("Hunter2 hunter", "Hunter2 hunter"),
            ("hunter2hunter2", "[redacted]"),
            ("https://a:hunter2@x.com/", "https://a:[redacted]@x.com/"),
        ],
    );
}

#[test]
fn every_encoding_of_a_value_goes() {
    let redactor = knowing(&["p\"a\\s/s é?>~ÿ"]);
    assert_redacts(
        &redactor,
        &[
            (r#"{"p": "p\"a\\s/s é?>~ÿ"}"#, r#"{"p": "[redacted]"}"#),
            (r#"{"p": "p\"a\\s\/s \u00e9?>~\u00ff"}"#, r#"{"p": "[redacted]"}"#),
            (r#"{"p": "p\u0022a\u005Cs/s \u00E9?\u003e~ÿ"}"#, r#"{"p": "[redacted]"}"#),
            (r#""{\"p\": \"p\\\"a\\\\s/s é?>~ÿ\"}""#, r#""{\"p\": \"[redacted]\"}""#),
            ("q=p%22a%5Cs%2Fs%20%C3%A9%3F%3E~%C3%BF&r", "q=[redacted]&r"),
            ("q=p%22a%5cs%2fs+%c3%a9%3f%3e%7E%c3%bf&r", "q=[redacted]&r"),
            ("q=p%22a%5Cs/s%20%C3%A9?%3E~%C3%bf&r", "q=[redacted]&r"),
            ("q=%7B%22p%22:%22p%5C%22a%5C%5Cs/s%20%C3%A9%3F%3E~%C3%BF%22%7D", "q=%7B%22p%22:%22[redacted]%22%7D"),
        ],
    );
}

#[test]
fn base64_goes_in_both_alphabets_with_the_characters_that_hold_its_last_bits() {
    let redactor = knowing(&["secret>?>?"]);
    for around in ["", "a", "ab", "abc", "user:"] {
        for engine in [&STANDARD, &URL_SAFE, &STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
            let plain = format!("{around}secret>?>?");
            let clean = redactor.redact_str(&format!("Basic {}", engine.encode(&plain))).into_owned();
            let kept = 8 * around.len() / 6;
            assert_eq!(clean, format!("Basic {}[redacted]", &engine.encode(&plain)[..kept]), "{plain}");
        }
    }
    assert_eq!(redactor.redact_str("c2VjcmV0Pj8%2BPw%3D%3D&x"), "[redacted]&x");
    assert_eq!(redactor.redact_str(r"c2VjcmV0Pj8\u002bPw=="), "[redacted]");
}

#[test]
fn nothing_of_overlapping_values_is_left() {
    assert_redacts(
        &knowing(&["abcd", "abcdefgh", "cdef", "ghij", "bcde1"]),
        &[
            ("abcdefgh", "[redacted]"),
            ("xabcdefx", "x[redacted]x"),
            ("abcdefghij", "[redacted]"),
            ("abcde1", "[redacted]"),
            ("ab cdef", "ab [redacted]"),
        ],
    );
}

#[test]
fn a_short_value_goes_only_as_a_whole_string() {
    let redactor = knowing(&["123", "é✓x"]);
    assert_redacts(
        &redactor,
        &[
            ("123", "[redacted]"),
            (" 123\n", "[redacted]"),
            ("1234", "1234"),
            ("x 123", "x 123"),
            ("MTIz", "[redacted]"),
            ("%31%32%33", "[redacted]"),
            (r"\u00e9✓x", "[redacted]"),
            ("aé✓x", "aé✓x"),
        ],
    );
    let mut value = json!({"123": 123});
    assert!(redactor.redact_value(&mut value));
    assert_eq!(value, json!({"[redacted]": 123}));
}

#[test]
fn a_word_of_free_text_goes_only_as_a_whole_string_and_never_as_a_key() {
    assert_redacts(
        &knowing_text("yes please"),
        &[("yes please", "[redacted]"), ("oh yes please", "oh yes please"), ("eWVzIHBsZWFzZQ==", "[redacted]")],
    );
    assert_redacts(&knowing_text("room 4"), &[("in room 4!", "in [redacted]!")]);
    assert_redacts(&knowing_text("my dog's name"), &[("it was my dog's name?", "it was [redacted]?")]);
    let mut value = json!({"name": "name", "x": "a name"});
    assert!(knowing_text("name").redact_value(&mut value));
    assert_eq!(value, json!({"name": "[redacted]", "x": "a name"}));
}

#[test]
fn the_wider_of_two_registrations_holds() {
    for natures in [[Nature::FreeText, Nature::Credential], [Nature::Credential, Nature::FreeText]] {
        let mut redactor = Redactor::default();
        for nature in natures {
            redactor.register("swordfish", nature).unwrap();
            redactor.redact_str("makes the search");
        }
        assert_eq!(redactor.redact_str("my swordfish"), "my [redacted]");
    }
}

#[test]
fn white_space_around_a_value_is_no_part_of_it() {
    assert_redacts(&knowing(&["  pass word\r\n"]), &[("a pass word b", "a [redacted] b")]);
    assert!(knowing(&[" \n\t ", ""]).is_empty());
}

#[test]
fn keys_stay_different_and_in_order() {
    let redactor = knowing(&["aaaa1", "bbbb2", "cccc3"]);
    let mut value = json!({"aaaa1": 1, "k": 2, "[redacted]": 3, "bbbb2": 4, "xcccc3": [{"cccc3": "aaaa1"}]});
    assert!(redactor.redact_value(&mut value));
    let expected =
        r#"{"[redacted] (2)":1,"k":2,"[redacted]":3,"[redacted] (3)":4,"x[redacted]":[{"[redacted]":"[redacted]"}]}"#;
    assert_eq!(value.to_string(), expected);
}

#[test]
fn kept_members_are_left_alone() {
    let redactor = knowing(&["click", "name"]);
    let mut value = json!({"name": "click", "text": "click", "deep": {"name": "x"}});
    assert!(redactor.redact_members(value.as_object_mut().unwrap(), &["name"]));
    assert_eq!(value, json!({"name": "click", "text": "[redacted]", "deep": {"[redacted]": "x"}}));
}

#[test]
fn redacting_twice_is_redacting_once() {
    let redactor = knowing(&["redacted", "acted"]);
    let once = redactor.redact_str("a redacted text").into_owned();
    assert_eq!(once, "a [redacted] text");
    assert!(matches!(redactor.redact_str(&once), Cow::Borrowed(_)));
}

#[test]
fn registering_stops_at_the_limits() {
    let mut redactor = Redactor::default();
    assert_eq!(redactor.register(&"x".repeat(VALUE_BYTES_MAX + 1), Nature::Credential), Err(NotRegistered::TooLong));
    for number in 0..VALUES_MAX {
        redactor.register(&format!("secret{number}"), Nature::Credential).unwrap();
    }
    assert_eq!(redactor.register("one more", Nature::Credential), Err(NotRegistered::TooMany));
    assert_eq!(redactor.register("secret9", Nature::Credential), Ok(()));

    let mut redactor = Redactor::default();
    for number in 0..BYTES_MAX / VALUE_BYTES_MAX {
        redactor.register(&format!("{number:0>VALUE_BYTES_MAX$}"), Nature::Credential).unwrap();
    }
    assert_eq!(redactor.register("one more", Nature::Credential), Err(NotRegistered::TooMuch));
}

#[test]
fn clearing_forgets_everything() {
    let mut redactor = knowing(&["hunter2"]);
    redactor.clear();
    assert!(redactor.is_empty());
    assert_eq!(redactor.redact_str("hunter2"), "hunter2");
    redactor.register("other3", Nature::Credential).unwrap();
    assert_eq!(redactor.redact_str("hunter2 other3"), "hunter2 [redacted]");
}

#[test]
fn debug_shows_a_count_and_no_value() {
    let redactor = knowing(&["hunter2", "abcd"]);
    redactor.redact_str("x");
    assert_eq!(format!("{redactor:?}"), "Redactor { values: 2, .. }");
}

#[test]
fn many_values_that_overlap_everywhere_do_not_multiply_the_work() {
    let values: Vec<String> = (4..500).map(|length| "a".repeat(length)).collect();
    let redactor = knowing(&values.iter().map(String::as_str).collect::<Vec<_>>());
    let text = format!("x{}x", "a".repeat(200_000));
    assert_eq!(redactor.redact_str(&text), "x[redacted]x");
}

/// Python's `json.dumps`, between the quotes.
fn ensure_ascii(text: &str) -> String {
    let quoted = serde_json::to_string(text).unwrap();
    let mut ascii = String::new();
    for c in quoted[1..quoted.len() - 1].chars() {
        if (' '..='~').contains(&c) {
            ascii.push(c);
        } else {
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| ascii.push_str(&format!("\\u{unit:04x}")));
        }
    }
    ascii
}

fn json_form(text: &str) -> String {
    let quoted = serde_json::to_string(text).unwrap();
    quoted[1..quoted.len() - 1].to_owned()
}

/// What all base64 texts with this value at this alignment have in common.
fn base64_core(value: &str, shift: usize, url: bool) -> String {
    let engine = if url { &URL_SAFE_NO_PAD } else { &STANDARD_NO_PAD };
    let [low, high] = [0_u8, 0xff].map(|fill| {
        let around = [fill; 3];
        engine.encode([&around[..shift], value.as_bytes(), &around].concat())
    });
    let start = low.bytes().zip(high.bytes()).take_while(|(a, b)| a != b).count();
    let same = low.bytes().zip(high.bytes()).skip(start).take_while(|(a, b)| a == b).count();
    low[start..start + same].to_owned()
}

/// Every other `%XX` in lower case.
fn mixed_case(percent: &str) -> String {
    let mut parts = percent.split('%');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for (number, part) in parts.enumerate() {
        let (digits, rest) = part.split_at(2);
        let digits = if number % 2 == 0 { digits.to_ascii_lowercase() } else { digits.to_owned() };
        text.push_str(&format!("%{digits}{rest}"));
    }
    text
}

fn every_form(value: &str) -> Vec<String> {
    let percent = percent_encode(value.as_bytes(), NON_ALPHANUMERIC).to_string();
    let kept = [("%2D", "-"), ("%2E", "."), ("%5F", "_"), ("%7E", "~")];
    let unreserved = kept.iter().fold(percent.clone(), |text, (hex, c)| text.replace(hex, c));
    let mut all = vec![
        value.to_owned(),
        json_form(value),
        json_form(value).replace('/', "\\/"),
        ensure_ascii(value),
        json_form(&json_form(value)),
        unreserved.replace("%20", "+"),
        unreserved,
        mixed_case(&percent),
    ];
    all.extend((0..3).flat_map(|shift| [base64_core(value, shift, false), base64_core(value, shift, true)]));
    all
}

fn secret() -> impl Strategy<Value = String> {
    let any = prop_oneof!["[a-zA-Z0-9]{4,24}", r#"[a-z"\\/\n\r\t %+=&é✓😀\x01\x7f]{4,16}"#, "\\PC{4,12}"];
    any.prop_map(|value| value.trim().to_owned())
        .prop_filter("at least 4 characters", |value| value.chars().count() >= INSIDE_CHARS_MIN)
}

/// Its end is no part of an escape, of which it would take more along, and it is not found in the JSON around it.
fn plain_ended_secret() -> impl Strategy<Value = String> {
    secret().prop_filter("plain at its ends", |secret| {
        !secret.starts_with(['"', '\\']) && !secret.ends_with(['"', '\\']) && !r#"{"value":"#.contains(secret)
    })
}

fn surroundings() -> impl Strategy<Value = String> {
    prop_oneof!["[ -~]{0,20}", r#"[\\%+"/u0-9a-f]{0,12}"#, "\\PC{0,12}"]
}

/// Whether any of the secret's forms is left between the markers.
fn shows(clean: &str, secret: &str) -> Option<String> {
    let forms = every_form(secret);
    clean.split(MARKER).find_map(|part| forms.iter().find(|form| part.contains(form.as_str())).cloned())
}

proptest! {
    #[test]
    fn no_form_of_a_secret_is_left_in_any_text(
        secret in secret(), before in surroundings(), after in surroundings(), as_key: bool,
    ) {
        let redactor = knowing(&[&secret]);
        for form in every_form(&secret) {
            // A stray percent sign before an unusual spelling makes it another text.
            if form == mixed_case(&percent_encode(secret.as_bytes(), NON_ALPHANUMERIC).to_string())
                && before.trim_end_matches(|c: char| c.is_ascii_hexdigit()).ends_with('%')
            {
                continue;
            }
            let text = format!("{before}{form}{after}");
            let mut value = if as_key { json!([{&text: 1}]) } else { json!({"a": [text]}) };
            prop_assert!(redactor.redact_value(&mut value), "{form:?} was not found");
            let clean = if as_key { value[0].as_object().unwrap().keys().next() } else { None }
                .map_or_else(|| value["a"][0].as_str().unwrap(), String::as_str);
            prop_assert_eq!(shows(clean, &secret), None, "in {:?} from {:?}", clean, text);
        }
    }

    #[test]
    fn no_base64_of_a_text_with_a_secret_shows_it(secret in secret(), before in surroundings(), after in surroundings()) {
        let redactor = knowing(&[&secret]);
        let json = json!({"n": before, "p": secret}).to_string();
        for text in [format!("{before}{secret}{after}"), json] {
            for engine in [&STANDARD, &STANDARD_NO_PAD, &URL_SAFE, &URL_SAFE_NO_PAD] {
                let clean = redactor.redact_str(&engine.encode(&text)).into_owned();
                prop_assert!(clean.contains(MARKER), "{text:?}");
                prop_assert_eq!(shows(&clean, &secret), None);
            }
        }
    }

    #[test]
    fn json_inside_json_keeps_its_shape(secret in plain_ended_secret(), depth in 1_usize..3) {
        let redactor = knowing(&[&secret]);
        let mut text = secret.clone();
        let mut expected = MARKER.to_owned();
        for _ in 0..depth {
            text = json!({"value": text}).to_string();
            expected = json!({"value": expected}).to_string();
        }
        prop_assert_eq!(redactor.redact_str(&text), expected);
    }

    #[test]
    fn a_text_without_the_secret_is_unchanged(text in r#"[a-z%+\\ "/\n=]{0,200}"#, secret in "[α-ω0-9]{6,12}") {
        let redactor = knowing(&[&secret]);
        prop_assert!(matches!(redactor.redact_str(&text), Cow::Borrowed(same) if same == text));
        let mut value = json!({&text: [text.clone(), 1, null, {"x": text}]});
        let before = value.to_string();
        prop_assert!(!redactor.redact_value(&mut value));
        prop_assert_eq!(value.to_string(), before);
    }

    #[test]
    fn exactly_what_any_match_covers_goes(
        secrets in prop::collection::vec("[ab]{4,7}", 1..5), text in "[abx]{0,60}",
    ) {
        let mut gone = vec![false; text.len()];
        for secret in &secrets {
            for at in (0..text.len()).filter(|at| text[*at..].starts_with(secret.as_str())) {
                gone[at..at + secret.len()].fill(true);
            }
        }
        let mut expected = String::new();
        for (at, c) in text.chars().enumerate() {
            match (gone[at], at > 0 && gone[at - 1]) {
                (false, _) => expected.push(c),
                (true, false) => expected.push_str(MARKER),
                (true, true) => {}
            }
        }
        let redactor = knowing(&secrets.iter().map(String::as_str).collect::<Vec<_>>());
        prop_assert_eq!(redactor.redact_str(&text), expected);
    }
}

/// The worst that a session can register: values that share nothing and have a long spelling in every form.
#[test]
fn the_automaton_of_a_full_redactor_stays_within_the_memory_that_its_limit_promises() {
    let mut redactor = Redactor::default();
    let mut seed = 1_u64;
    while redactor.bytes + 400 <= BYTES_MAX {
        let noise = (0..100).map(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from_u32(0x4e00 + (seed >> 40) as u32 % 0x5000).unwrap()
        });
        redactor.register(&noise.collect::<String>(), Nature::Credential).unwrap();
    }
    redactor.redact_str("makes the search");
    let bytes = redactor.search.get().and_then(|search| search.automaton.as_ref()).unwrap().memory_usage();
    assert!(bytes < 64 * 1024 * 1024, "{bytes}");

    let usual =
        knowing(&["jane.doe@example.com", "correct horse battery", "JBSWY3DPEHPK3PXP", "4111111111111111", "0042"]);
    usual.redact_str("makes the search");
    let bytes = usual.search.get().and_then(|search| search.automaton.as_ref()).unwrap().memory_usage();
    assert!(bytes < 32 * 1024, "{bytes}");
}
