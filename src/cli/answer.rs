//! `onlooker answer`: answers a guardrail.
//!
//! Secret values need not stand in the command line, where other users and the shell's history see them: `FIELD=-`
//! reads one from the terminal without echo, or a line from standard input.

use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, IsTerminal as _, Write as _},
};

use clap::Args;
use onlooker_protocol::{
    subscriber::{Answer, AnswerAction},
    view::GuardrailView,
};
use rustix::termios::{self, LocalModes, OptionalActions, Termios};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    failure::Failure,
    line::{plain, word},
    remote::{At, Remote},
    say,
};

const EXAMPLES: &str = "\
Examples:
  onlooker answer 4k2m9x0c7b1t8q3z5w6y --field email=ada@example.com --field password=-
  pass show shop | onlooker answer login-1 --field password=-
  onlooker answer buy-1 --choice approve
  onlooker answer buy-1 --session k3v9x0aab2c4d6e8f0g1 --decline

The first answer wins. `onlooker guardrails` lists what can be answered, with its fields and choices.";

/// Answers a guardrail
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct AnswerOne {
    #[command(flatten)]
    at: At,
    /// The guardrail's id
    guardrail: String,
    /// Its session, when several sessions use that id
    #[arg(long)]
    session: Option<String>,
    /// A field's value; `NAME=-` reads it from the terminal without echo, or from a line of standard input
    #[arg(long = "field", value_name = "NAME=VALUE", value_parser = field)]
    fields: Vec<(String, Value)>,
    /// The id of one of its choices
    #[arg(long, value_name = "ID")]
    choice: Option<String>,
    /// An answer in words; `-` reads it as a field's
    #[arg(long)]
    text: Option<String>,
    /// Say no
    #[arg(long, conflicts_with_all = ["fields", "choice", "text"])]
    decline: bool,
}

/// The value is `null` where it is to be read.
fn field(text: &str) -> Result<(String, Value), &'static str> {
    match text.split_once('=') {
        Some((name, "-")) if !name.is_empty() => Ok((name.to_owned(), Value::Null)),
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.into())),
        _ => Err("it is written NAME=VALUE"),
    }
}

#[derive(Deserialize)]
struct Found {
    guardrail: GuardrailView,
}

impl AnswerOne {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        if !self.decline && self.fields.is_empty() && self.choice.is_none() && self.text.is_none() {
            return Err(Failure::usage("nothing to answer with: give --field, --choice, --text or --decline"));
        }
        let remote = Remote::new(self.at)?;
        let query: Vec<_> = self.session.as_deref().map(|session| ("session", session)).into_iter().collect();
        let view = remote.get::<Found>(&["v1", "guardrails", &self.guardrail], &query).await?.guardrail;
        let read_text = |text: String| if text == "-" { read_hidden("answer") } else { Ok(text) };
        let mut values = BTreeMap::new();
        for (name, value) in self.fields {
            let value = match value {
                Value::String(value) => value,
                _ => read_hidden(&name)?,
            };
            values.insert(name, value);
        }
        let answer = Answer {
            revision: view.revision,
            idempotency_key: uuid::Uuid::now_v7().to_string(),
            action: if self.decline { AnswerAction::Decline } else { AnswerAction::Submit },
            text: self.text.map(read_text).transpose()?,
            choice: self.choice,
            values,
        };
        let mut body = serde_json::to_value(&answer).expect("an answer is plain data");
        body["session"] = json!(view.session);
        let won: Found = remote.post(&["v1", "guardrails", &self.guardrail, "answer"], &body).await?;
        let won = won.guardrail;
        say(format_args!("{} {} {} [{}]", plain(&won.guardrail_id), won.session, word(&won.state), word(&won.kind)))
    }
}

/// Reads one line: without echo from a terminal, as it comes from anything else.
fn read_hidden(name: &str) -> Result<String, Failure> {
    let stdin = io::stdin();
    let unreadable = |error: io::Error| Failure::failed(format!("cannot read {}: {error}", plain(name)));
    let quiet = if stdin.is_terminal() {
        // Where nobody sees the question, it is still answered.
        let _ = write!(io::stderr(), "{} (not shown): ", plain(name)).and_then(|()| io::stderr().flush());
        Some(Quiet::begin().map_err(unreadable)?)
    } else {
        None
    };
    let mut text = String::new();
    let read = stdin.lock().read_line(&mut text);
    if quiet.is_some() {
        drop(quiet);
        let _ = writeln!(io::stderr());
    }
    match read {
        Ok(0) => Err(Failure::usage(format!("standard input ended before the value of {}", plain(name)))),
        Ok(_) => Ok(text.trim_end_matches(['\n', '\r']).to_owned()),
        Err(error) => Err(unreadable(error)),
    }
}

/// While it lives the terminal does not show what is typed.
struct Quiet {
    before: Termios,
}

impl Quiet {
    fn begin() -> io::Result<Self> {
        let before = termios::tcgetattr(io::stdin())?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        termios::tcsetattr(io::stdin(), OptionalActions::Flush, &quiet)?;
        Ok(Self { before })
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // Fails only when the terminal is gone.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Flush, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_keeps_every_sign_of_its_value() {
        assert_eq!(field("password=a=b - c"), Ok(("password".to_owned(), "a=b - c".into())));
        assert_eq!(field("password=-"), Ok(("password".to_owned(), Value::Null)));
        assert_eq!(field("empty="), Ok(("empty".to_owned(), "".into())));
        assert!(field("password").is_err() && field("=x").is_err());
    }
}
