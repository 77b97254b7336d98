//! Switches that turn one safety check off, so that a test can show that the test which guards it would fail.
//!
//! Without the feature `sabotage`, which no release has, every check is on and the switch compiles to nothing. With
//! it, `ONLOOKER_SABOTAGE` names the checks to turn off, separated by commas; it is read once, at the first question.

/// A safety check that a test may turn off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// Secrets are replaced at the way in and on the way out.
    Redactor,
    /// A reach-out decision is taken again, with fresh inputs, at the moment of sending.
    Recheck,
    /// Only who had the question leaves a grace and moves the time for a first look.
    GraceOrigin,
    /// Each revision of a question has notices of its own.
    KeyRevision,
    /// The first answer wins by compare-and-set.
    CompareAndSet,
    /// An append under an old term is refused.
    Fence,
    /// What is kept for one subscriber is bounded in bytes.
    ByteBound,
    /// Dependencies log nothing finer than `info`.
    LogCap,
    /// A task's webhook goes to no address inside the operator's network.
    AddressCheck,
    /// A notice whose repeat may have arrived is not sent once more.
    OneRepeat,
}

/// Whether this check is turned off.
#[cfg(not(any(test, feature = "sabotage")))]
pub const fn is_off(_guard: Guard) -> bool {
    false
}

/// Whether this check is turned off, for the whole process or for what this thread does now.
#[cfg(any(test, feature = "sabotage"))]
pub fn is_off(guard: Guard) -> bool {
    #[cfg(test)]
    if OFF_HERE.get() == Some(guard) {
        return true;
    }
    #[cfg(feature = "sabotage")]
    return is_off_everywhere(guard);
    #[cfg(not(feature = "sabotage"))]
    false
}

#[cfg(test)]
thread_local! {
    static OFF_HERE: std::cell::Cell<Option<Guard>> = const { std::cell::Cell::new(None) };
}

/// Does something on this thread without one check.
#[cfg(test)]
pub fn without<T>(guard: Option<Guard>, act: impl FnOnce() -> T) -> T {
    OFF_HERE.set(guard);
    let done = act();
    OFF_HERE.set(None);
    done
}

#[cfg(feature = "sabotage")]
fn is_off_everywhere(guard: Guard) -> bool {
    static OFF: std::sync::OnceLock<Vec<Guard>> = std::sync::OnceLock::new();
    OFF.get_or_init(|| parse(&std::env::var("ONLOOKER_SABOTAGE").unwrap_or_default())).contains(&guard)
}

/// A name that is no guard's is a mistake in a test's setup, which would otherwise pass for the wrong reason.
#[cfg(feature = "sabotage")]
fn parse(list: &str) -> Vec<Guard> {
    let named = list.split(',').map(str::trim).filter(|name| !name.is_empty());
    named
        .map(|name| match name {
            "redactor" => Guard::Redactor,
            "recheck" => Guard::Recheck,
            "grace_origin" => Guard::GraceOrigin,
            "key_revision" => Guard::KeyRevision,
            "compare_and_set" => Guard::CompareAndSet,
            "fence" => Guard::Fence,
            "byte_bound" => Guard::ByteBound,
            "log_cap" => Guard::LogCap,
            "address_check" => Guard::AddressCheck,
            "one_repeat" => Guard::OneRepeat,
            other => panic!("ONLOOKER_SABOTAGE names no guard: {other}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #[cfg(not(feature = "sabotage"))]
    #[test]
    fn every_guard_is_on_without_the_feature() {
        use super::{Guard, is_off};

        let guards = [
            Guard::Redactor,
            Guard::Recheck,
            Guard::GraceOrigin,
            Guard::KeyRevision,
            Guard::CompareAndSet,
            Guard::Fence,
            Guard::ByteBound,
            Guard::LogCap,
            Guard::AddressCheck,
            Guard::OneRepeat,
        ];
        for guard in guards {
            assert!(!is_off(guard), "{guard:?}");
        }
    }

    #[cfg(feature = "sabotage")]
    #[test]
    fn the_list_names_guards_separated_by_commas() {
        use super::{Guard, parse};

        assert_eq!(parse(""), []);
        assert_eq!(parse("redactor, compare_and_set"), [Guard::Redactor, Guard::CompareAndSet]);
        assert_eq!(parse("recheck,fence,byte_bound"), [Guard::Recheck, Guard::Fence, Guard::ByteBound]);
    }
}
