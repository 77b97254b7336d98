//! What is told to the bot itself: codes that link, and what somebody is linked to.

use tokio::time::Instant;

use super::{ChatDesk, Heard, words};
use crate::{
    chat::{Reply, Said},
    links::{
        LinkError,
        codes::{Code, Wrong},
    },
};

/// What a text means.
enum Meaning {
    Code(Code),
    List,
    Unlink,
    Nothing,
}

impl Meaning {
    fn of(text: &str) -> Self {
        if let Some(code) = Code::find(text) {
            return Self::Code(code);
        }
        // `/links@OurBot` in a group; some chats put who is addressed before it.
        let mut parts = text.split_whitespace().skip_while(|part| part.starts_with(['@', '<']));
        let command = parts.next().unwrap_or_default().trim_start_matches('/');
        let command = command.split('@').next().unwrap_or_default();
        match (command.to_ascii_lowercase().as_str(), parts.next()) {
            ("links" | "status", None) => Self::List,
            ("unlink" | "stop", None) => Self::Unlink,
            _ => Self::Nothing,
        }
    }
}

impl ChatDesk {
    pub(super) async fn told(&self, said: &Said, text: &str) -> Heard {
        match Meaning::of(text) {
            Meaning::Code(code) => self.link(said, &code).await,
            Meaning::Unlink => self.unlink(said).await,
            Meaning::List => Ok(self.unless_asked_too_often(said, |desk| {
                let links = desk.links().of_person(said.connector, &said.by);
                if links.is_empty() { words::HELP.to_owned() } else { words::list(&links, &super::target_of(said)) }
            })),
            Meaning::Nothing => Ok(self.unless_asked_too_often(said, |desk| {
                let linked = desk.links().knows(said.connector, &said.by);
                if linked { words::HELP_LINKED } else { words::HELP }.to_owned()
            })),
        }
    }

    fn unless_asked_too_often(&self, said: &Said, text: impl Fn(&Self) -> String) -> Reply {
        match self.helps.take(super::target_of(said), Instant::now()) {
            Ok(()) => Reply::text(text(self)),
            Err(_) => Reply::default(),
        }
    }

    async fn link(&self, said: &Said, code: &Code) -> Heard {
        let codes = &self.links().codes;
        let taken = codes.take(code, (said.connector, &said.by.id), Instant::now()).map_err(|wrong| match wrong {
            Wrong::Unknown => self.refuse(said, "wrong_code", words::WRONG_CODE),
            Wrong::TooMany(_) => self.refuse(said, "too_many_codes", words::TOO_MANY_CODES),
        })?;
        match self.links().add(taken.scope(), (said.connector, &said.address), &said.by).await {
            Ok(linked) => {
                tracing::info!(
                    link.id = linked.link.id,
                    chat = said.connector,
                    project = linked.link.project,
                    "linked"
                );
                Ok(Reply::text(words::linked(&linked.link, linked.again)))
            }
            Err(error) => {
                codes.put_back(taken);
                Err(self.not_changed(said, &error))
            }
        }
    }

    async fn unlink(&self, said: &Said) -> Heard {
        match self.links().remove_person(said.connector, &said.by).await {
            Ok(removed) if removed.is_empty() => {
                Ok(self.unless_asked_too_often(said, |_| words::WAS_NOT_LINKED.to_owned()))
            }
            Ok(removed) => {
                tracing::info!(links = removed.len(), chat = said.connector, "unlinked");
                Ok(Reply::text(words::UNLINKED))
            }
            Err(error) => Err(self.not_changed(said, &error)),
        }
    }

    fn not_changed(&self, said: &Said, error: &LinkError) -> Reply {
        tracing::warn!(%error, chat = said.connector, "links could not be changed");
        match error {
            LinkError::Full => self.refuse(said, "too_many_links", words::FULL),
            LinkError::Unreadable | LinkError::Engine(_) => self.refuse(said, "unavailable", words::NOT_CHANGED),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_understood_however_they_are_sent() {
        for list in ["/links", "links", "Status", "/links@OurBot", " /status ", "@our_bot links", "<@U1> links"] {
            assert!(matches!(Meaning::of(list), Meaning::List), "{list}");
        }
        for unlink in ["/unlink", "Unlink", "/unlink@OurBot", "/stop"] {
            assert!(matches!(Meaning::of(unlink), Meaning::Unlink), "{unlink}");
        }
        for nothing in ["", "/start", "/help", "hello there", "unlink everybody", "stop the task"] {
            assert!(matches!(Meaning::of(nothing), Meaning::Nothing), "{nothing}");
        }
        for code in ["/start tofuk-tofuk-tofuk-tofuk", "/link TOFUK tofuk tofuk tofuk", "tofuktofuktofuktofuk"] {
            assert!(matches!(Meaning::of(code), Meaning::Code(_)), "{code}");
        }
    }
}
