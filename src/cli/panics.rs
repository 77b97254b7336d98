//! What a panic leaves on standard error: where it was, and its text only when the text stands in the source. A text
//! made at run time repeats what the code was working on ("byte index 1 is not a char boundary; it is inside …"), and
//! that could be somebody's password.

use std::{any::Any, backtrace::Backtrace, panic};

/// Replaces the standard hook of this process.
pub(crate) fn keep_quiet() {
    panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("unnamed");
        // Shows names of functions only, and only when RUST_BACKTRACE asks for it.
        let trace = Backtrace::capture();
        eprintln!("thread '{name}' panicked at {place}: {}\n{trace}", text(panic.payload()));
    }));
}

fn text(payload: &(dyn Any + Send)) -> &'static str {
    payload.downcast_ref::<&'static str>().copied().unwrap_or("the message is withheld: it could hold a secret")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload_of(panicking: fn(&str)) -> Box<dyn Any + Send> {
        let secret = "pässword".to_owned();
        panic::catch_unwind(|| panicking(&secret)).expect_err("it panics")
    }

    #[test]
    fn a_text_made_at_run_time_is_withheld() {
        let made: [fn(&str); 3] = [
            |secret| drop(secret[..2].to_owned()),
            |secret| panic!("cannot log in with {secret}"),
            |secret| {
                let number: Result<u32, String> = secret.parse().map_err(|_| secret.to_owned());
                let _ = number.expect("digits");
            },
        ];
        for panicking in made {
            let payload = payload_of(panicking);
            let said = payload.downcast_ref::<String>().expect("made at run time");
            assert!(said.contains("pässword"), "else this shows nothing: {said}");
            assert!(!text(&*payload).contains("pässword"));
        }
    }

    #[test]
    fn a_text_of_the_source_is_shown() {
        assert_eq!(text(&*payload_of(|_| panic!("the owner is gone"))), "the owner is gone");
    }
}
