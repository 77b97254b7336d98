//! A quick look at whether a text can hold any of the forms that are searched for: most texts hold none.
//!
//! It looks at two bytes of the text at a time and goes on by as far as no form can lie, given these two (the bad block
//! rule of Wu and Manber, "A fast algorithm for multi-pattern searching", 1994). So it may take for a form what is none,
//! and never passes one over.

/// Of each form, how many bytes are looked at.
const WINDOW: usize = 16;
/// Bytes of two are told apart by so many bits …
const BITS: u32 = 10;
/// … or by so many, where there are many forms.
const MANY_BITS: u32 = 13;
const FEW_FORMS: usize = 64;
/// With more forms there is hardly anything to pass over.
const MOST_FORMS: usize = 1024;

pub(super) struct Sieve {
    /// Bytes of each form that count; no form is shorter.
    window: usize,
    bits: u32,
    /// How far to go on behind two bytes; 0: a form may end its window here.
    shifts: Box<[u8]>,
    /// The last bytes of the forms' windows, in order.
    ends: Box<[u64]>,
}

impl Sieve {
    /// None: it would not be worth it.
    pub(super) fn new<'a>(forms: impl ExactSizeIterator<Item = &'a [u8]> + Clone) -> Option<Self> {
        let window = forms.clone().map(<[u8]>::len).min()?.min(WINDOW);
        if window < 3 || forms.len() > MOST_FORMS {
            return None;
        }
        let bits = if forms.len() > FEW_FORMS { MANY_BITS } else { BITS };
        let mut shifts = vec![(window - 1) as u8; 1 << bits].into_boxed_slice();
        let mut ends: Vec<u64> = Vec::with_capacity(forms.len());
        for form in forms {
            let form = &form[..window];
            for (at, two) in form.windows(2).enumerate() {
                let shift = &mut shifts[place(two[0], two[1], bits)];
                *shift = (*shift).min((window - at - 2) as u8);
            }
            ends.push(end_of(form));
        }
        ends.sort_unstable();
        Some(Self { window, bits, shifts, ends: ends.into() })
    }

    pub(super) fn may_hold(&self, text: &[u8]) -> bool {
        let mut end = self.window;
        while end <= text.len() {
            let shift = self.shifts[place(text[end - 2], text[end - 1], self.bits)];
            if shift > 0 {
                end += usize::from(shift);
                continue;
            }
            if self.ends.binary_search(&end_of(&text[end - self.window..end])).is_ok() {
                return true;
            }
            end += 1;
        }
        false
    }
}

fn place(first: u8, second: u8, bits: u32) -> usize {
    let two = u32::from(u16::from_le_bytes([first, second]));
    (two.wrapping_mul(0x9e37_79b1) >> (32 - bits)) as usize
}

/// Up to eight bytes at the end of a window.
fn end_of(window: &[u8]) -> u64 {
    match window.last_chunk::<8>() {
        Some(eight) => u64::from_le_bytes(*eight),
        None => window.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_form_is_never_passed_over(
            forms in prop::collection::vec("[ab]{3,24}", 1..90), before in "[abc]{0,40}", after in "[abc]{0,40}", which: prop::sample::Index,
        ) {
            let sieve = Sieve::new(forms.iter().map(String::as_bytes)).unwrap();
            let form = &forms[which.index(forms.len())];
            let text = format!("{before}{form}{after}");
            prop_assert!(sieve.may_hold(text.as_bytes()), "{} in {}", form, text);
        }

        #[test]
        fn a_text_without_any_beginning_of_a_form_is_passed_over(text in "[c-z ]{0,200}") {
            let sieve = Sieve::new(["abcabcabcabc".as_bytes(), b"bbaaccabab"].into_iter()).unwrap();
            prop_assert!(!sieve.may_hold(text.as_bytes()));
        }
    }
}
