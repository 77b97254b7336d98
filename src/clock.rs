//! Wall time as frames and records show it: RFC 3339, UTC, milliseconds.

use time::{OffsetDateTime, format_description::BorrowedFormatItem, macros::format_description};

const MILLISECONDS: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// A time as text.
pub fn text(at: OffsetDateTime) -> String {
    at.to_offset(time::UtcOffset::UTC).format(MILLISECONDS).expect("every time has these parts")
}

/// The present, as text.
pub fn now_text() -> String {
    text(OffsetDateTime::now_utc())
}

/// How long since a time as text; nothing for one that is to come, or is none.
pub fn since(text: &str, wall: OffsetDateTime) -> std::time::Duration {
    parse(text).and_then(|at| std::time::Duration::try_from(wall - at).ok()).unwrap_or_default()
}

/// How long until a time as text; nothing for one that has passed, or is none.
pub fn until(text: &str, wall: OffsetDateTime) -> std::time::Duration {
    parse(text).and_then(|at| std::time::Duration::try_from(at - wall).ok()).unwrap_or_default()
}

/// A time as text; `None` for what is none.
pub fn parse(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).ok()
}

/// Milliseconds since 1970, UTC; 0 before.
pub fn milliseconds(at: OffsetDateTime) -> u64 {
    u64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(0)
}
