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
