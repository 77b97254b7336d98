//! `onlooker links`.

use clap::{Args, Subcommand};
use onlooker::links::Link;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    failure::Failure,
    line::{join, plain, time},
    remote::{At, Remote},
    say,
};

const EXAMPLES: &str = "\
Examples:
  onlooker links
  onlooker links code
  onlooker links code --environment staging
  onlooker links test 4k2m9x0c7b1t8q3z5w6y
  onlooker links remove 4k2m9x0c7b1t8q3z5w6y

One line a link: id, chat, who, what it is linked to. Needs a key with the scope `admin`.";

/// Lists, makes, tries and removes the links between chats and the project
#[derive(Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub(crate) struct Links {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    list: List,
}

#[derive(Subcommand)]
enum What {
    Code(NewCode),
    Test(Test),
    Remove(Remove),
}

#[derive(Args)]
struct List {
    #[command(flatten)]
    at: At,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

const CODE_EXAMPLES: &str = "\
Examples:
  onlooker links code
  onlooker links code --environment staging

Prints the code, until when it is good, and what to send to the bot in each chat. It links one chat, once.";

/// Makes a one-time code that links whoever sends it to the bot
#[derive(Args)]
#[command(after_help = CODE_EXAMPLES)]
struct NewCode {
    #[command(flatten)]
    at: At,
    /// Only for the sessions of this environment; otherwise the chat is the project's default
    #[arg(long)]
    environment: Option<String>,
    /// The gateway's answer as JSON
    #[arg(long)]
    json: bool,
}

const TEST_EXAMPLES: &str = "\
Examples:
  onlooker links test 4k2m9x0c7b1t8q3z5w6y

Sends a real message to the link's chat. Exit status 0 only when the chat has confirmed it.";

/// Sends a test message to a linked chat
#[derive(Args)]
#[command(after_help = TEST_EXAMPLES)]
struct Test {
    #[command(flatten)]
    at: At,
    /// The link's id, from `onlooker links`
    link: String,
}

const REMOVE_EXAMPLES: &str = "\
Examples:
  onlooker links remove 4k2m9x0c7b1t8q3z5w6y

The person can no longer answer there, also not by buttons of messages that are still open.";

/// Removes a link
#[derive(Args)]
#[command(after_help = REMOVE_EXAMPLES)]
struct Remove {
    #[command(flatten)]
    at: At,
    /// The link's id, from `onlooker links`
    link: String,
}

impl Links {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        match self.what {
            None => self.list.run().await,
            Some(What::Code(code)) => code.run().await,
            Some(What::Test(test)) => test.run().await,
            Some(What::Remove(remove)) => remove.run().await,
        }
    }
}

#[derive(Deserialize)]
struct Listed {
    links: Vec<Value>,
}

impl List {
    async fn run(self) -> Result<(), Failure> {
        let listed: Listed = Remote::new(self.at)?.get(&["v1", "links"], &[]).await?;
        for link in listed.links {
            match serde_json::from_value::<Link>(link.clone()) {
                Ok(of) if !self.json => say(of_link(&of))?,
                _ => say(link)?,
            }
        }
        Ok(())
    }
}

fn of_link(link: &Link) -> String {
    let scope = match &link.environment {
        Some(environment) => format!("environment {}", plain(environment)),
        None => "project default".to_owned(),
    };
    join([plain(&link.id), plain(&link.target()), plain(&link.name), scope, format!("since {}", plain(&link.at))])
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Issued {
    code: String,
    expires_at: String,
    #[serde(default)]
    say: Map<String, Value>,
}

impl NewCode {
    async fn run(self) -> Result<(), Failure> {
        let body = self.environment.map_or_else(|| json!({}), |environment| json!({ "environment": environment }));
        let answer: Value = Remote::new(self.at)?.post(&["v1", "links", "codes"], &body).await?;
        if self.json {
            return say(answer);
        }
        let issued: Issued = serde_json::from_value(answer)
            .map_err(|error| Failure::failed(format!("the gateway's answer cannot be read: {error}; try --json")))?;
        say(format_args!("{}  good once, until {} UTC", plain(&issued.code), time(&issued.expires_at)))?;
        for (chat, text) in &issued.say {
            say(format_args!("{}: send the bot  {}", plain(chat), plain(text.as_str().unwrap_or_default())))?;
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Tested {
    outcome: String,
    target: String,
    error: Option<String>,
}

impl Test {
    async fn run(self) -> Result<(), Failure> {
        let tested: Tested = Remote::new(self.at)?.post(&["v1", "links", &self.link, "test"], &json!({})).await?;
        let error = tested.error.map(|error| format!(": {}", plain(&error))).unwrap_or_default();
        let said = format!("{} to {}{error}", plain(&tested.outcome), plain(&tested.target));
        if tested.outcome == "confirmed" { say(said) } else { Err(Failure::failed(said)) }
    }
}

impl Remove {
    async fn run(self) -> Result<(), Failure> {
        Remote::new(self.at)?.delete(&["v1", "links", &self.link]).await?;
        say(format_args!("removed {}", plain(&self.link)))
    }
}
