//! Every error and close code, in one table.
//!
//! The range says what to do, so that a client needs no list: `1000–1999` come back now (look again, then repeat),
//! `2000–2999` come back later (with backoff, or after `retryAfter`), `3000–3999` never (the request itself is wrong).
//! Close codes: `4000–4499` reconnect and resume, `4500–4999` do not.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// When to come back after a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComeBack {
    Now,
    Later,
    Never,
}

impl ComeBack {
    /// The advice of a number by its range alone, also of numbers that this version does not know.
    pub fn of(number: u16) -> Self {
        match number {
            1000..=1999 | 4000..=4099 => Self::Now,
            2000..=2999 | 4100..=4499 => Self::Later,
            _ => Self::Never,
        }
    }
}

macro_rules! codes {
    ($($(#[doc = $doc:expr])+ $variant:ident $number:literal $name:literal $http:literal;)+) => {
        /// An error or close code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code {
            $($(#[doc = $doc])+ $variant,)+
            /// A code of a later version; its range still says when to come back.
            Unknown(u16),
        }

        impl Code {
            /// Every code of this version.
            pub const ALL: &'static [Code] = &[$(Code::$variant,)+];

            pub fn number(self) -> u16 {
                match self {
                    $(Self::$variant => $number,)+
                    Self::Unknown(number) => number,
                }
            }

            /// The code's name in frames, logs and metrics.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                    Self::Unknown(_) => "unknown",
                }
            }

            /// The HTTP status of a refusal with this code; 0 for close codes.
            pub fn http_status(self) -> u16 {
                match self {
                    $(Self::$variant => $http,)+
                    Self::Unknown(_) => 500,
                }
            }

            /// What it means, in one line.
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($doc),+).trim_ascii(),)+
                    Self::Unknown(_) => "a code of a later version",
                }
            }

            pub fn from_number(number: u16) -> Self {
                match number {
                    $($number => Self::$variant,)+
                    other => Self::Unknown(other),
                }
            }

            pub fn from_name(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }
    };
}

codes! {
    /// The events do not begin with the number expected; `details.expected` says which to send.
    NumberExpected 1001 "number_expected" 409;
    /// Another connection owns the session by now.
    Fenced 1002 "fenced" 409;
    /// Two sessions use that guardrail id; name the session.
    Ambiguous 1003 "ambiguous" 409;
    /// The guardrail was asked anew under a higher revision; look at it and answer that one.
    StaleRevision 1004 "stale_revision" 409;
    /// The session's secrets must be announced again before its events are accepted.
    SecretsExpected 1005 "secrets_expected" 409;

    /// The gateway cannot do this now; nothing was accepted.
    Unavailable 2001 "unavailable" 503;
    /// A limit of the whole gateway is reached.
    OverCapacity 2002 "over_capacity" 503;
    /// No runtime with room may serve this project.
    NoRuntime 2003 "no_runtime" 503;
    /// Too many requests; see `retryAfter`.
    RateLimited 2004 "rate_limited" 429;
    /// The session's runtime is away.
    RuntimeAway 2005 "runtime_away" 503;
    /// Somebody else holds control; `details.holder` says who.
    ControlHeld 2006 "control_held" 409;
    /// Somebody else has claimed this guardrail; `details.by` says who.
    Claimed 2007 "claimed" 409;
    /// An error of the gateway's own; its log has the details.
    Internal 2008 "internal" 500;
    /// Too many tasks wait in this session.
    TooManyTasks 2009 "too_many_tasks" 429;
    /// Too many guardrails are open in this session.
    TooManyGuardrails 2010 "too_many_guardrails" 429;
    /// Too many commands wait for this session's runtime.
    TooManyCommands 2011 "too_many_commands" 429;
    /// The gateway is stopping.
    Stopping 2012 "stopping" 503;

    /// A value is missing or not allowed; the message names it.
    Invalid 3000 "invalid" 400;
    /// The frame or body is not the JSON expected.
    BadFrame 3001 "bad_frame" 400;
    /// A JSON object has a member twice.
    DuplicateKey 3002 "duplicate_key" 400;
    /// JSON is nested deeper than allowed.
    TooDeep 3003 "too_deep" 400;
    /// A frame, body, payload or batch is larger than allowed.
    TooLarge 3004 "too_large" 413;
    /// Text is not UTF-8.
    NotUtf8 3005 "not_utf8" 400;
    /// The content type is not the one that this path takes.
    UnsupportedMedia 3006 "unsupported_media" 415;
    /// A key or token is missing, unknown or expired.
    Unauthorized 3010 "unauthorized" 401;
    /// The key or token does not allow this.
    Forbidden 3011 "forbidden" 403;
    /// Requests from this origin are refused.
    OriginRefused 3012 "origin_refused" 403;
    /// Requests for this host are refused.
    HostRefused 3013 "host_refused" 403;
    /// The key's account is switched off in the operator's configuration.
    Deactivated 3014 "deactivated" 403;
    /// The key's account has no means, by the operator's configuration.
    InsufficientBalance 3015 "insufficient_balance" 402;
    /// No such session.
    UnknownSession 3020 "unknown_session" 404;
    /// No such task in this session.
    UnknownTask 3021 "unknown_task" 404;
    /// No such guardrail.
    UnknownGuardrail 3022 "unknown_guardrail" 404;
    /// No such picture, or it may not be shown.
    UnknownPicture 3023 "unknown_picture" 404;
    /// No such path.
    NotFound 3024 "not_found" 404;
    /// The path does not take this method.
    WrongMethod 3025 "wrong_method" 405;
    /// No such subscriber.
    UnknownSubscriber 3026 "unknown_subscriber" 404;
    /// No such file.
    UnknownFile 3027 "unknown_file" 404;
    /// The session has ended.
    SessionEnded 3030 "session_ended" 409;
    /// Somebody else's answer won; `details` says whose and by what channel.
    AlreadyAnswered 3031 "already_answered" 409;
    /// The guardrail is closed; `details.state` says how.
    GuardrailClosed 3032 "guardrail_closed" 409;
    /// The claim token is not the session's.
    WrongClaim 3033 "wrong_claim" 403;
    /// The revision is lower than the last one raised.
    LowerRevision 3034 "lower_revision" 409;
    /// That id is in use with another content.
    Conflict 3035 "conflict" 409;
    /// Nothing was ever asked here that could be answered.
    NoOpenGuardrail 3036 "no_open_guardrail" 409;
    /// Control is not yours, or its token is old.
    NotInControl 3040 "not_in_control" 409;
    /// This connection follows that session already.
    AlreadySubscribed 3050 "already_subscribed" 409;
    /// This connection does not follow that session.
    NotSubscribed 3051 "not_subscribed" 409;
    /// Too many subscriptions on one connection.
    TooManySubscriptions 3052 "too_many_subscriptions" 429;
    /// A `default_answer` for a purchase, security or policy guardrail needs the operator's permission.
    DefaultAnswerRefused 3060 "default_answer_refused" 403;
    /// The session's secrets are lost and its runtime cannot announce them.
    SecretsLost 3061 "secrets_lost" 410;

    /// The gateway goes away; resume elsewhere or here after the delay of `goaway`.
    GoingAway 4000 "going_away" 0;
    /// The subscriber read too slowly; resume.
    TooSlow 4001 "too_slow" 0;
    /// No pong came within the window.
    NoPong 4002 "no_pong" 0;
    /// The place in the log was lost; resume.
    PositionLost 4003 "position_lost" 0;
    /// The token has expired; get a new one, then resume.
    TokenExpired 4004 "token_expired" 0;
    /// Too many frames.
    TooManyFrames 4105 "too_many_frames" 0;
    /// An error of the gateway's own.
    GatewayError 4106 "gateway_error" 0;
    /// All places for connections are taken.
    TooManyConnections 4107 "too_many_connections" 0;
    /// The key or token was refused.
    AuthFailed 4500 "auth_failed" 0;
    /// A frame could not be read.
    UnreadableFrame 4501 "unreadable_frame" 0;
    /// No authentication in time.
    AuthTimeout 4502 "auth_timeout" 0;
    /// Not allowed.
    NotAllowed 4503 "not_allowed" 0;
    /// A frame was larger than allowed.
    FrameTooLarge 4504 "frame_too_large" 0;
    /// The version of the protocol is not spoken here.
    UnsupportedVersion 4505 "unsupported_version" 0;
    /// An operator closed the connection.
    Kicked 4506 "kicked" 0;
    /// Another connection of the same runtime took its place.
    Replaced 4507 "replaced" 0;
}

impl Code {
    pub fn come_back(self) -> ComeBack {
        ComeBack::of(self.number())
    }

    /// Whether it closes a connection rather than refusing a request.
    pub fn closes(self) -> bool {
        self.number() >= 4000
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u16(self.number())
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u16::deserialize(deserializer).map(Self::from_number)
    }
}

/// A refusal as frames and HTTP bodies carry it. `code` is the number, `error` its name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    pub code: Code,
    pub error: String,
    /// What is wrong and what to do next, for people. Never holds a secret.
    pub message: String,
    /// When to try again, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub details: serde_json::Value,
}

impl Refusal {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            error: code.name().to_owned(),
            message: message.into(),
            retry_after: None,
            details: serde_json::Value::Null,
        }
    }

    /// A refusal whose message is the code's own meaning.
    pub fn plain(code: Code) -> Self {
        Self::new(code, code.meaning())
    }

    #[must_use]
    pub fn with_details(mut self, details: serde_json::Value) -> Self {
        self.details = details;
        self
    }

    #[must_use]
    pub fn with_retry_after(mut self, milliseconds: u64) -> Self {
        self.retry_after = Some(milliseconds);
        self
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}): {}", self.error, self.code.number(), self.message)
    }
}

impl std::error::Error for Refusal {}
