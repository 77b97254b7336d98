//! Wall time as frames and records show it: RFC 3339, UTC, milliseconds.

use time::{OffsetDateTime, format_description::BorrowedFormatItem, macros::format_description};

const MILLISECONDS: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// A time as text.
pub fn text(at: OffsetDateTime) -> String {
    at.to_offset(time::UtcOffset::UTC).format(MILLISECONDS).expect("every time has these parts")
}

/// The present in wall time: for what is stored or shown. Waiting itself is on the monotonic clock.
pub fn now() -> OffsetDateTime {
    #[cfg(test)]
    if let Some(now) = pretended::now() {
        return now;
    }
    OffsetDateTime::now_utc()
}

/// The present, as text.
pub fn now_text() -> String {
    text(now())
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

/// Wall time that goes with the runtime's paused clock, and jumps when it is told to. One for each thread.
#[cfg(test)]
pub(crate) mod pretended {
    use std::cell::Cell;

    use time::OffsetDateTime;
    use tokio::time::Instant;

    thread_local! {
        static BASE: Cell<Option<(Instant, OffsetDateTime)>> = const { Cell::new(None) };
    }

    pub(super) fn now() -> Option<OffsetDateTime> {
        BASE.get().map(|(since, wall)| wall + since.elapsed())
    }

    /// From now on this thread's wall time is this one.
    pub(crate) fn set(wall: OffsetDateTime) {
        BASE.set(Some((Instant::now(), wall)));
    }

    /// This thread's wall time is the system's again.
    pub(crate) fn end() {
        BASE.set(None);
    }
}
