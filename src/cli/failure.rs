//! How a command ends when it does not end well.

use std::{error::Error, io, process::ExitCode};

use onlooker::{
    config::{self, ConfigError},
    gateway::StartError,
};
use onlooker_protocol::code::{Code, Refusal};
use onlooker_runtime::follow::FollowError;

/// The exit status. The numbers from 64 on are those of sysexits.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Status {
    /// Nobody reads the output any more: what was asked for is done.
    Done = 0,
    /// It was tried and failed, or a check did not hold.
    Failed = 1,
    /// Wrong usage or configuration: the same call fails again.
    Usage = config::EXIT_STATUS,
    /// The gateway cannot be reached or cannot do it now.
    Unavailable = 69,
    NotAllowed = 77,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(status as u8)
    }
}

/// What the command says last, and its status.
#[derive(Debug)]
pub(crate) struct Failure {
    status: Status,
    text: String,
}

impl Failure {
    pub(crate) fn new(status: Status, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    pub(crate) fn failed(text: impl Into<String>) -> Self {
        Self::new(Status::Failed, text)
    }

    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::new(Status::Usage, text)
    }

    pub(crate) fn from_output(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::new(Status::Done, ""),
            _ => Self::failed(format!("cannot write the output: {error}")),
        }
    }

    pub(crate) fn status(&self) -> Status {
        self.status
    }

    pub(crate) fn text(&self) -> Option<&str> {
        Some(self.text.as_str()).filter(|text| !text.is_empty())
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::usage(chain(&error))
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let status = match error {
            StartError::Listen { .. }
            | StartError::Data(_)
            | StartError::Restore(_)
            | StartError::Links(_)
            | StartError::Files(_)
            | StartError::SigningKey(_)
            | StartError::Chats(_) => Status::Failed,
            StartError::Config(_) | StartError::Tls(_) | StartError::Webhook(_) => Status::Usage,
        };
        Self::new(status, chain(&error))
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let advice = match refusal.code {
            Code::Unauthorized => "; give a key or token with --token or ONLOOKER_TOKEN",
            Code::NoRuntime => "; start a runtime, for instance `onlooker replay` or onlooker-chromium",
            Code::Ambiguous => "; `onlooker guardrails` lists them with their sessions",
            _ => "",
        };
        Self::new(status_of(refusal.code), format!("the gateway refused: {refusal}{advice}"))
    }
}

impl From<FollowError> for Failure {
    fn from(error: FollowError) -> Self {
        let status = match &error {
            FollowError::Address(_) => Status::Usage,
            FollowError::KeyNeeded => Status::NotAllowed,
            FollowError::Refused { code, .. } => status_of(*code),
            FollowError::NotAGateway { status: 401 | 403, .. } => Status::NotAllowed,
            FollowError::NotAGateway { .. } | FollowError::Lost { .. } => Status::Unavailable,
            FollowError::Version { .. } => Status::Failed,
        };
        Self::new(status, error.to_string())
    }
}

fn status_of(code: Code) -> Status {
    match code {
        Code::Unauthorized
        | Code::Forbidden
        | Code::OriginRefused
        | Code::HostRefused
        | Code::AuthFailed
        | Code::AuthTimeout
        | Code::NotAllowed => Status::NotAllowed,
        Code::Unavailable | Code::OverCapacity | Code::NoRuntime | Code::Stopping | Code::RateLimited => {
            Status::Unavailable
        }
        _ => Status::Failed,
    }
}

/// An error with everything that it came from.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_tells_usage_absence_and_permission_apart() {
        let of = |code| Failure::from(Refusal::plain(code)).status();
        assert_eq!(of(Code::Forbidden), Status::NotAllowed);
        assert_eq!(of(Code::NoRuntime), Status::Unavailable);
        assert_eq!(of(Code::UnknownSession), Status::Failed);
        assert_eq!(Failure::from(FollowError::KeyNeeded).status(), Status::NotAllowed);
        let wrong = ConfigError::DoNotFit("two settings do not fit".to_owned());
        assert_eq!(Failure::from(wrong).status() as u8, 64);
        assert_eq!((Status::Unavailable as u8, Status::NotAllowed as u8), (69, 77));
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure() {
        let gone = Failure::from_output(&io::ErrorKind::BrokenPipe.into());
        assert_eq!((gone.status() as u8, gone.text()), (0, None));
    }
}
