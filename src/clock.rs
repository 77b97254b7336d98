//! Wall time as frames and records show it: RFC 3339, UTC, milliseconds.

use time::{OffsetDateTime, format_description::BorrowedFormatItem, macros::format_description};

const MILLISECONDS: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// A time as text.
pub fn text(at: OffsetDateTime) -> String {
    let at = at.to_offset(time::UtcOffset::UTC);
    let Ok(year @ 0..=9999) = u32::try_from(at.year()) else {
        return at.format(MILLISECONDS).expect("every time has these parts");
    };
    // The usual case by hand: each event has its time.
    let mut text = *b"0000-00-00T00:00:00.000Z";
    let parts = [
        (0..4, year),
        (5..7, u8::from(at.month()).into()),
        (8..10, at.day().into()),
        (11..13, at.hour().into()),
        (14..16, at.minute().into()),
        (17..19, at.second().into()),
        (20..23, at.millisecond().into()),
    ];
    for (place, mut number) in parts {
        for digit in text[place].iter_mut().rev() {
            *digit = b'0' + (number % 10) as u8;
            number /= 10;
        }
    }
    String::from_utf8(text.to_vec()).expect("ASCII")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_in_utc_with_milliseconds() {
        for (given, shown) in [
            ("2026-01-02T03:04:05.006999Z", "2026-01-02T03:04:05.006Z"),
            ("0099-12-31T23:59:59.9-00:30", "0100-01-01T00:29:59.900Z"),
            ("2024-02-29T00:00:00+01:00", "2024-02-28T23:00:00.000Z"),
        ] {
            let at = parse(given).unwrap();
            assert_eq!(text(at), shown);
            assert_eq!(text(at), at.to_offset(time::UtcOffset::UTC).format(MILLISECONDS).unwrap());
        }
    }
}
