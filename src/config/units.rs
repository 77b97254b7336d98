//! Times and sizes as people write them: `5s`, `1.5h`, `64KiB`.

use std::time::Duration;

/// Parts of a time in nanoseconds.
const TIMES: &[(&str, u64)] = &[
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("min", 60_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];

const SIZES: &[(&str, u64)] = &[
    ("B", 1),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
];

/// The longest time that can be set: monotonic clocks of all platforms can add it without overflow.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

pub(super) fn time(text: &str) -> Result<Duration, String> {
    let nanos =
        amount(text, TIMES).ok_or("must be a time with a unit, such as \"500ms\", \"5s\", \"15min\" or \"24h\"")?;
    let time = Duration::from_nanos(nanos);
    if time > LONGEST { Err("must be at most 366d".to_owned()) } else { Ok(time) }
}

pub(super) fn bytes(text: &str) -> Result<usize, String> {
    let wanted = "must be a size, such as \"64KiB\", \"8MiB\" or a number of bytes";
    let number = match text.trim().parse::<u64>() {
        Ok(number) => number,
        Err(_) => amount(text, SIZES).ok_or(wanted)?,
    };
    usize::try_from(number).ok().filter(|n| *n <= isize::MAX as usize).ok_or_else(|| wanted.to_owned())
}

/// Reads `<digits>[.<digits>]<unit>` exactly, without floating point; `None` also when it overflows.
fn amount(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(end);
    let (_, scale) = *units.iter().find(|(name, _)| *name == unit.trim_start())?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let whole = whole.parse::<u64>().ok()?.checked_mul(scale)?;
    let digits = u32::try_from(fraction.len()).ok().filter(|n| *n <= 9)?;
    let part = u128::from(fraction.parse::<u64>().ok()?) * u128::from(scale) / 10u128.pow(digits);
    whole.checked_add(u64::try_from(part).ok()?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_and_sizes_are_read_as_people_write_them() {
        assert_eq!(time("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(time("1.5 h"), Ok(Duration::from_secs(5400)));
        assert_eq!(time("15min"), Ok(Duration::from_secs(900)));
        assert_eq!(time("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(bytes("64KiB"), Ok(65_536));
        assert_eq!(bytes("1.5MB"), Ok(1_500_000));
        assert_eq!(bytes("4096"), Ok(4096));
        for wrong in ["", "5", "s", "-5s", "5 parsecs", "1.2.3s", "99999999999999d", ".s", "367d", "é"] {
            assert!(time(wrong).is_err(), "{wrong:?}");
        }
        for wrong in ["", "KiB", "-1", "1.5", "12 monkeys", "99999999999999999GiB"] {
            assert!(bytes(wrong).is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in ".*") {
            let _ = (time(&text), bytes(&text));
        }
    }
}
