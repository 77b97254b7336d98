//! What the form's pages say. Everything that came from outside is text in them, never markup.

use onlooker_protocol::view::{Field, GuardrailKind, GuardrailView};

use crate::chat::card;

const PAGE: &str = include_str!("../../../dashboard/form/page.html");

/// Names of the form's own members; those of the values follow the places of their fields.
pub(super) const SEAL: &str = "seal";
pub(super) const ACTION: &str = "action";
pub(super) const CHOICE: &str = "choice";
pub(super) const TEXT: &str = "text";

/// The name of the nth field's value.
pub(super) fn value_name(nth: usize) -> String {
    format!("value-{nth}")
}

/// What was sent and did not fit: what may be shown again, and what is wrong with it. Nothing secret.
#[derive(Default)]
pub(super) struct Again {
    /// By the place of the field.
    pub(super) values: Vec<Option<String>>,
    pub(super) choice: Option<String>,
    pub(super) text: Option<String>,
    pub(super) wrong: Wrong,
}

#[derive(Default)]
pub(super) struct Wrong {
    pub(super) fields: Vec<(usize, &'static str)>,
    pub(super) choice: Option<&'static str>,
    pub(super) text: Option<&'static str>,
}

impl Wrong {
    pub(super) fn is_empty(&self) -> bool {
        self.fields.is_empty() && self.choice.is_none() && self.text.is_none()
    }

    fn of(&self, nth: usize) -> Option<&'static str> {
        self.fields.iter().find(|(at, _)| *at == nth).map(|(_, wrong)| *wrong)
    }
}

/// A page that says one thing.
pub(super) fn notice(title: &str, text: &str) -> String {
    let main = format!("<h1>{}</h1>\n<p role=\"status\">{}</p>", escaped(title), escaped(text));
    page(title, &main)
}

/// The form itself. `session` is its name for people.
pub(super) fn form(view: &GuardrailView, session: &str, seal: &str, again: &Again) -> String {
    let title = card::heading_of(Some(view.kind));
    let mut main = format!("<h1>{}</h1>\n", escaped(title));
    main += "<dl>";
    fact(&mut main, "Site", view.domain.as_deref());
    fact(&mut main, "Session", Some(session));
    fact(&mut main, "Answer until", until(&view.expires_at).as_deref());
    main += "</dl>\n";
    main += &format!("<p class=\"question\" dir=\"auto\">{}</p>\n", escaped(&view.value));
    if let Some(said) = &view.website_error {
        main += &format!("<p class=\"site-says\" dir=\"auto\">The site says: {}</p>\n", escaped(said));
    }
    if !again.wrong.is_empty() {
        main += "<p class=\"error\" role=\"alert\">Something is missing or does not fit; see below.</p>\n";
    }
    main += "<form method=\"post\" accept-charset=\"utf-8\">\n";
    main += &format!("<input type=\"hidden\" name=\"{SEAL}\" value=\"{}\">\n", escaped(seal));
    if !view.choices.is_empty() {
        choices(&mut main, view, again);
    }
    for (nth, asked) in view.fields.iter().enumerate() {
        field(&mut main, view.kind, (nth, asked), again);
    }
    if view.choices.is_empty() && view.fields.is_empty() {
        words(&mut main, view.kind, again);
    }
    main += "<div class=\"actions\">\n";
    main += &format!("<button class=\"primary\" name=\"{ACTION}\" value=\"submit\">Submit</button>\n");
    main += &format!("<button class=\"reject\" name=\"{ACTION}\" value=\"decline\" formnovalidate>Reject</button>\n");
    main += "</div>\n</form>\n<p class=\"hint\">What you type goes to this session alone and is shown in no chat.</p>";
    page(title, &main)
}

fn page(title: &str, main: &str) -> String {
    // Cut apart and not replaced: what is put in may look like a place itself.
    let (before, rest) = PAGE.split_once("{{title}}").expect("the page has a title");
    let (between, after) = rest.split_once("{{main}}").expect("the page has a middle");
    [before, &escaped(title), between, main, after].concat()
}

/// The day and minute of an RFC 3339 time.
fn until(time: &str) -> Option<String> {
    Some(format!("{} {} UTC", time.get(..10)?, time.get(11..16)?))
}

fn fact(main: &mut String, name: &str, value: Option<&str>) {
    if let Some(value) = value {
        *main += &format!("<dt>{name}</dt><dd><bdi>{}</bdi></dd>", escaped(value));
    }
}

fn choices(main: &mut String, view: &GuardrailView, again: &Again) {
    let wrong = again.wrong.choice;
    *main += &format!("<fieldset{}><legend>Choose one</legend>\n", described("choice", false, wrong.is_some()));
    for (nth, choice) in view.choices.iter().enumerate() {
        let checked = if again.choice.as_ref() == Some(&choice.id) { " checked" } else { "" };
        *main += &format!(
            "<label class=\"choice\"><input type=\"radio\" name=\"{CHOICE}\" value=\"{nth}\" required{checked}>\
             <span dir=\"auto\">{}</span></label>\n",
            escaped(choice.label.as_deref().unwrap_or(&choice.id))
        );
    }
    error(main, "choice", wrong);
    *main += "</fieldset>\n";
}

fn field(main: &mut String, kind: GuardrailKind, (nth, asked): (usize, &Field), again: &Again) {
    let (id, wrong) = (value_name(nth), again.wrong.of(nth));
    let input = Input::of(asked, kind);
    let label = escaped(asked.label.as_deref().unwrap_or(&asked.id));
    let optional = if asked.required { "" } else { " <span class=\"optional\">(optional)</span>" };
    let required = if asked.required { " required" } else { "" };
    let value = again.values.get(nth).cloned().flatten().filter(|_| !asked.secret).unwrap_or_default();
    *main += &format!(
        "<div class=\"field\"><label for=\"{id}\"><bdi>{label}</bdi>{optional}</label>\n\
         <input id=\"{id}\" name=\"{id}\" type=\"{}\" autocomplete=\"{}\"{} autocapitalize=\"none\" autocorrect=\"off\" \
         spellcheck=\"false\" value=\"{}\"{required}{}>\n",
        input.kind,
        input.autocomplete,
        input.mode.map(|mode| format!(" inputmode=\"{mode}\"")).unwrap_or_default(),
        escaped(&value),
        described(&id, asked.hint.is_some(), wrong.is_some()),
    );
    if let Some(hint) = &asked.hint {
        *main += &format!("<p class=\"hint\" id=\"{id}-hint\" dir=\"auto\">{}</p>\n", escaped(hint));
    }
    error(main, &id, wrong);
    *main += "</div>\n";
}

fn words(main: &mut String, kind: GuardrailKind, again: &Again) {
    let needed = card::wants_words(Some(kind));
    let (label, required) =
        if needed { ("Your answer", " required") } else { ("Your answer, if there is more to say than yes", "") };
    *main += &format!(
        "<div class=\"field\"><label for=\"{TEXT}\">{label}</label>\n\
         <textarea id=\"{TEXT}\" name=\"{TEXT}\" rows=\"3\" autocomplete=\"off\" dir=\"auto\"{required}{}>\n{}</textarea>\n",
        described(TEXT, false, again.wrong.text.is_some()),
        escaped(again.text.as_deref().unwrap_or_default()),
    );
    error(main, TEXT, again.wrong.text);
    *main += "</div>\n";
}

/// What screen readers say with an input.
fn described(id: &str, hint: bool, wrong: bool) -> String {
    let by = match (hint, wrong) {
        (false, false) => return String::new(),
        (true, false) => return format!(" aria-describedby=\"{id}-hint\""),
        (false, true) => format!("{id}-error"),
        (true, true) => format!("{id}-error {id}-hint"),
    };
    format!(" aria-invalid=\"true\" aria-describedby=\"{by}\"")
}

fn error(main: &mut String, id: &str, wrong: Option<&str>) {
    if let Some(wrong) = wrong {
        *main += &format!("<p class=\"error\" id=\"{id}-error\">{}</p>\n", escaped(wrong));
    }
}

/// How a field is typed on a phone, and what its keyboard and password manager may fill in.
#[derive(Debug, PartialEq, Eq)]
struct Input {
    kind: &'static str,
    autocomplete: &'static str,
    mode: Option<&'static str>,
}

impl Input {
    fn of(asked: &Field, kind: GuardrailKind) -> Self {
        let login = kind == GuardrailKind::Login;
        let input = |kind, autocomplete, mode| Self { kind, autocomplete, mode };
        match asked.kind.as_deref() {
            Some("password") => input("password", "current-password", None),
            Some("email") => input("email", if login { "username" } else { "email" }, Some("email")),
            Some("username") => input("text", "username", None),
            Some("tel") => input("tel", "tel", Some("tel")),
            Some("url") => input("url", "url", Some("url")),
            Some("number") => input("text", "off", Some("decimal")),
            Some("totp") => input("text", "one-time-code", Some("numeric")),
            // May have letters, which a keyboard of digits would not give.
            Some("code") => input("text", "one-time-code", None),
            _ if login && is_user_name(&asked.id) => input("text", "username", None),
            _ if asked.secret => input("password", "off", None),
            _ => input("text", "off", None),
        }
    }
}

fn is_user_name(id: &str) -> bool {
    ["username", "user", "login", "email", "user_name", "user-name"].iter().any(|name| id.eq_ignore_ascii_case(name))
}

/// A text inside of an element or of an attribute in double quotes. What would turn the direction of the text around it
/// is left out.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {}
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn view(more: &serde_json::Value) -> GuardrailView {
        let mut view = json!({
            "session": "s", "guardrailId": "g", "revision": 1, "asked": 1, "kind": "login", "value": "Log in",
            "state": "open", "openedAt": "2026-03-01T03:00:00.000Z", "expiresAt": "2026-03-02T03:00:00.000Z",
            "onTimeout": "keep_waiting", "position": "aaaaaaaa:4",
        });
        for (name, value) in more.as_object().unwrap() {
            view[name] = value.clone();
        }
        serde_json::from_value(view).unwrap()
    }

    #[test]
    fn nothing_from_outside_becomes_markup_or_a_place_of_the_page() {
        let evil = "</title><script>{{main}}{{title}}\" onfocus='x' \u{202e}&";
        let view = view(&json!({
            "value": evil, "domain": evil, "websiteError": evil,
            "fields": [{ "id": evil, "label": evil, "hint": evil, "type": evil, "secret": false }],
            "choices": [{ "id": evil, "label": evil }],
        }));
        let again = Again { values: vec![Some(evil.to_owned())], ..Again::default() };
        let page = form(&view, evil, evil, &again);
        assert!(!page.contains("<script") && !page.contains("\u{202e}") && !page.contains(" onfocus='"), "{page}");
        assert_eq!(page.matches("<main>").count(), 1);
        assert_eq!(page.matches("<title>").count(), 1);
    }

    #[test]
    fn keyboards_and_password_managers_know_what_is_asked() {
        let of = |id: &str, kind: Option<&str>, secret: bool, login: bool| {
            let kind_of = if login { GuardrailKind::Login } else { GuardrailKind::TwoFactor };
            let field = json!({ "id": id, "type": kind, "secret": secret });
            let input = Input::of(&serde_json::from_value(field).unwrap(), kind_of);
            (input.kind, input.autocomplete, input.mode)
        };
        assert_eq!(of("x", Some("password"), true, true), ("password", "current-password", None));
        assert_eq!(of("x", Some("email"), true, true), ("email", "username", Some("email")));
        assert_eq!(of("x", Some("totp"), true, false), ("text", "one-time-code", Some("numeric")));
        assert_eq!(of("x", Some("code"), true, false), ("text", "one-time-code", None));
        assert_eq!(of("username", None, true, true), ("text", "username", None));
        assert_eq!(of("pin", None, true, false), ("password", "off", None));
        assert_eq!(of("pin", Some("unheard"), false, false), ("text", "off", None));
    }

    #[test]
    fn what_was_typed_is_shown_again_unless_it_is_secret() {
        let view = view(&json!({ "fields": [{ "id": "user", "secret": false }, { "id": "password" }] }));
        let wrong = Wrong { fields: vec![(1, "This is needed.")], ..Wrong::default() };
        let values = vec![Some("ann".to_owned()), Some("hunter2".to_owned())];
        let page = form(&view, "s", "seal", &Again { values, wrong, ..Again::default() });
        assert!(page.contains("value=\"ann\"") && !page.contains("hunter2"));
        assert!(page.contains("aria-invalid=\"true\" aria-describedby=\"value-1-error\""));
        assert!(page.contains("id=\"value-1-error\">This is needed."));
    }
}
