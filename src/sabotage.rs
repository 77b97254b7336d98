//! Safety checks that a test build can switch off, to show that the test which guards each of them then fails.
//!
//! Without the feature `sabotage` every check is on and this module is a constant.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    Redactor,
    Recheck,
    CompareAndSet,
    Fence,
    ByteBound,
}

/// Whether the check is switched off by `ONLOOKER_SABOTAGE`, a list of names separated by commas.
#[cfg(feature = "sabotage")]
pub fn is_off(guard: Guard) -> bool {
    static OFF: std::sync::LazyLock<String> =
        std::sync::LazyLock::new(|| std::env::var("ONLOOKER_SABOTAGE").unwrap_or_default());
    let name = match guard {
        Guard::Redactor => "redactor",
        Guard::Recheck => "recheck",
        Guard::CompareAndSet => "compare_and_set",
        Guard::Fence => "fence",
        Guard::ByteBound => "byte_bound",
    };
    OFF.split(',').any(|word| word == name)
}

/// Every check is on.
#[cfg(not(feature = "sabotage"))]
pub const fn is_off(_guard: Guard) -> bool {
    false
}
