use super::*;

fn entry(matches: &str, fields: &[(&str, &str)]) -> SecretEntry {
    let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    SecretEntry { matches: matches.to_owned(), fields }
}

fn secrets(entries: &[SecretEntry]) -> SessionSecrets {
    SessionSecrets::new(entries.to_vec()).unwrap()
}

fn field(id: &str, kind: Option<&str>, required: bool) -> Field {
    Field { id: id.to_owned(), label: None, kind: kind.map(str::to_owned), required, secret: true, hint: None }
}

fn login<'a>(domain: &'a str, fields: &'a [Field]) -> Ask<'a> {
    Ask { kind: GuardrailKind::Login, domain: Some(domain), fields }
}

fn pairs(filling: &Filling) -> Vec<(&str, &str)> {
    filling.values.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

fn missing(filling: &Filling) -> Vec<&str> {
    filling.missing.iter().map(|field| field.id.as_str()).collect()
}

#[test]
fn one_entry_is_selected_exact_then_the_longest_ending_then_all() {
    let all = [
        entry("all", &[("user", "all")]),
        entry("*.com", &[("user", "com")]),
        entry("*.x.com", &[("user", "x")]),
        entry("*.b.x.com", &[("user", "b"), ("pin", "1")]),
        entry("a.x.com", &[("user", "exact")]),
    ];
    let mut reversed = all.clone();
    reversed.reverse();
    for secrets in [secrets(&all), secrets(&reversed)] {
        for (domain, expected) in [
            ("a.x.com", "exact"),
            ("https://A.X.com:8443/login", "exact"),
            ("c.x.com", "x"),
            ("a.b.x.com", "b"),
            ("b.x.com", "x"),
            ("x.com", "com"),
            ("evilx.com", "com"),
            ("x.org", "all"),
            ("127.0.0.1", "all"),
        ] {
            assert_eq!(secrets.fill(&login(domain, &[])).values["user"], expected, "{domain}");
        }
    }
    let both = [field("user", None, true), field("pin", None, true)];
    let filling = secrets(&all).fill(&login("a.x.com", &both));
    assert_eq!(missing(&filling), ["pin"], "fields of two entries are never mixed");
}

#[test]
fn without_a_domain_only_all_fits_and_an_unreadable_one_gets_nothing() {
    let secrets = secrets(&[entry("all", &[("user", "u")]), entry("x.com", &[("user", "x")])]);
    assert_eq!(pairs(&secrets.fill(&Ask { domain: None, ..login("", &[]) })), [("user", "u")]);
    for domain in ["", "a b", "javascript://x.com", "me@x.com"] {
        assert_eq!(secrets.fill(&login(domain, &[])), Filling::default(), "{domain}");
    }
}

#[test]
fn only_logins_and_second_factors_are_filled() {
    use GuardrailKind::{Ambiguous, Captcha, Login, Other, Policy, Purchase, Security, TwoFactor};

    let secrets = secrets(&[entry("all", &[("code", "123456")])]);
    let fields = [field("code", None, true)];
    for kind in [Login, TwoFactor] {
        assert!(secrets.fill(&Ask { kind, domain: Some("x.com"), fields: &fields }).is_complete(), "{kind:?}");
    }
    for kind in [Captcha, Purchase, Ambiguous, Security, Policy, Other] {
        let filling = secrets.fill(&Ask { kind, domain: Some("x.com"), fields: &fields });
        assert!(filling.values.is_empty() && missing(&filling) == ["code"], "{kind:?}");
    }
}

#[test]
fn a_field_is_filled_by_its_id_else_by_its_type_whatever_the_case() {
    let secrets = secrets(&[entry("x.com", &[("Email", "e@x"), ("PASSWORD", "p"), ("otp", ""), ("Straße", "s")])]);
    let fields = [
        field("email", Some("text"), true),
        field("pw", Some("Password"), true),
        field("otp", Some("code"), false),
        field("STRASSE", None, false),
        field("straßE", None, false),
    ];
    let filling = secrets.fill(&login("x.com", &fields));
    assert_eq!(pairs(&filling), [("email", "e@x"), ("pw", "p"), ("straßE", "s")]);
    assert_eq!(missing(&filling), ["otp", "STRASSE"]);
    assert!(filling.is_complete(), "what is optional keeps nobody");

    let both = super::SessionSecrets::new(vec![entry("x.com", &[("User", "A"), ("user", "b")])]).unwrap();
    assert_eq!(pairs(&both.fill(&login("x.com", &[field("user", None, true)]))), [("user", "b")]);
}

#[test]
fn a_login_without_fields_takes_the_whole_entry_and_a_second_factor_takes_nothing() {
    let secrets = secrets(&[entry("x.com", &[("username", "u"), ("password", "p"), ("empty", "")])]);
    let filling = secrets.fill(&login("x.com", &[]));
    assert_eq!(pairs(&filling), [("password", "p"), ("username", "u")]);
    assert!(filling.is_complete());
    let second = secrets.fill(&Ask { kind: GuardrailKind::TwoFactor, ..login("x.com", &[]) });
    assert!(!second.is_complete() && second.values.is_empty());
}

#[test]
fn a_filling_is_incomplete_while_a_required_field_or_everything_is_missing() {
    let secrets = secrets(&[entry("x.com", &[("user", "u")])]);
    let some = [field("user", None, true), field("code", None, true), field("note", None, false)];
    let filling = secrets.fill(&login("x.com", &some));
    assert_eq!((pairs(&filling), missing(&filling)), (vec![("user", "u")], vec!["code", "note"]));
    assert!(!filling.is_complete());
    assert!(!secrets.fill(&login("x.com", &[field("note", None, false)])).is_complete());
    assert!(!secrets.fill(&login("y.com", &some)).is_complete());
}

#[test]
fn fillers_are_asked_in_order_and_the_first_value_wins() {
    let first = secrets(&[entry("x.com", &[("user", "first")])]);
    let second = secrets(&[entry("x.com", &[("user", "second"), ("code", "2")])]);
    let mut fillers = Fillers::new(vec![Box::new(first), Box::new(second)]);
    let filling = fillers.fill("g1", &login("x.com", &[field("user", None, true), field("code", None, true)]));
    assert_eq!(pairs(&filling), [("code", "2"), ("user", "first")]);
    assert!(filling.is_complete());
    assert_eq!(pairs(&fillers.fill("g2", &login("x.com", &[]))), [("user", "first")], "one login from one source");
}

#[test]
fn values_are_never_tried_twice_for_one_guardrail() {
    let mut fillers = Fillers::new(vec![Box::new(secrets(&[entry("x.com", &[("user", "u")])]))]);
    let fields = [field("user", None, true)];
    assert!(fillers.fill("g1", &login("y.com", &fields)).values.is_empty());
    assert!(fillers.fill("g1", &login("x.com", &fields)).is_complete(), "nothing had been tried");
    let again = fillers.fill("g1", &login("x.com", &fields));
    assert_eq!((again.values.len(), missing(&again)), (0, vec!["user"]));
    fillers.mark_tried("g2");
    assert!(!fillers.fill("g2", &login("x.com", &fields)).is_complete());
    assert!(fillers.fill("g3", &login("x.com", &fields)).is_complete());
}

#[test]
fn a_session_that_has_tried_too_often_asks_a_person() {
    let mut fillers = Fillers::new(vec![Box::new(secrets(&[entry("all", &[("user", "u")])]))]);
    for number in 0..TRIED_MAX {
        assert!(fillers.fill(&format!("g{number}"), &login("x.com", &[])).is_complete());
    }
    assert!(!fillers.fill("one more", &login("x.com", &[])).is_complete());
}

#[test]
fn a_later_entry_takes_the_place_of_an_earlier_one_for_the_same_hosts() {
    let mut secrets = secrets(&[entry("x.com", &[("user", "old"), ("pin", "1")])]);
    secrets.add(vec![entry("X.com.", &[("user", "new")])]).unwrap();
    assert_eq!(pairs(&secrets.fill(&login("x.com", &[]))), [("user", "new")]);
    assert_eq!(secrets.values().collect::<Vec<_>>(), ["new"]);
    let many: Vec<SecretEntry> = (0..100).map(|n| entry(&format!("h{n}.com"), &[("user", "u")])).collect();
    assert!(secrets.add(many.clone()).is_err());
    assert_eq!(secrets.values().count(), 1, "none is added when one is refused");
    assert!(secrets.add(many[..99].to_vec()).is_ok());
    assert!(secrets.add(many[..99].to_vec()).is_ok());
}

#[test]
fn check_names_the_place_and_never_a_value() {
    let long = "hunter2".repeat(3_000);
    let wide: Vec<(String, String)> = (0..101).map(|n| (format!("f{n}"), "hunter2".to_owned())).collect();
    let wide = SecretEntry { matches: "x.com".to_owned(), fields: wide.into_iter().collect() };
    for (bad, place) in [
        (entry("", &[("a", "hunter2")]), ".match is empty"),
        (entry("hunter2 x", &[("a", "hunter2")]), ".match is neither"),
        (entry("https://hunter2@x.com", &[("a", "hunter2")]), ".match is neither"),
        (entry("x.com", &[]), ".fields is empty"),
        (wide, ".fields has more than 100"),
        (entry("x.com", &[(" ", "hunter2")]), ".fields has a name"),
        (entry("x.com", &[("a", &long)]), ".fields has a value"),
    ] {
        let message = check(&[entry("all", &[("a", "hunter2")]), bad]).unwrap_err();
        assert!(message.starts_with(&format!("secrets[1]{place}")), "{message}");
        assert!(!message.contains("hunter2"), "{message}");
    }
    let many = vec![entry("x.com", &[("a", "hunter2")]); 101];
    assert_eq!(check(&many).unwrap_err(), "secrets has more than 100 entries");
    assert_eq!(check(&many[1..]), Ok(()));
}

#[test]
fn debug_shows_no_value() {
    let secrets = secrets(&[entry("x.com", &[("user", "hunter2")])]);
    let filling = secrets.fill(&login("x.com", &[]));
    let fillers = Fillers::new(vec![Box::new(super::SessionSecrets::default())]);
    let shown = format!("{secrets:?} {filling:?} {fillers:?}");
    assert!(!shown.contains("hunter2"), "{shown}");
    assert!(shown.contains("user"), "{shown}");
}
