//! A quick look at whether a text can hold any of the forms that are searched for: most texts hold none.
//!
//! It looks at two bytes of the text at a time and goes on by as far as no form can lie, given these two (the bad block
//! rule of Wu and Manber, "A fast algorithm for multi-pattern searching", 1994). So it may take for a form what is none,
//! and never passes one over.

/// Of each form, how many bytes are looked at.
const WINDOW: usize = 16;
/// Two bytes are told apart by so many bits at least, and at most.
const BITS: (u32, u32) = (8, 13);
/// With more forms there is hardly anything to pass over.
const MOST_FORMS: usize = 1024;

pub(super) struct Sieve {
    /// Bytes of each form that count; no form is shorter.
    window: usize,
    shifts: Shifts,
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
        let mut shifts = Shifts::new(forms.len() * (window - 1), window - 1);
        let mut ends: Vec<u64> = Vec::with_capacity(forms.len());
        for form in forms {
            let form = &form[..window];
            for (at, two) in form.windows(2).enumerate() {
                shifts.lower(two[0], two[1], window - at - 2);
            }
            ends.push(end_of(form));
        }
        ends.sort_unstable();
        Some(Self { window, shifts, ends: ends.into() })
    }

    pub(super) fn may_hold(&self, text: &[u8]) -> bool {
        let mut end = self.window;
        while end <= text.len() {
            let shift = self.shifts.behind(text[end - 2], text[end - 1]);
            if shift > 0 {
                end += shift;
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

/// How far to go on behind two bytes; 0: a form may end its window here.
///
/// Sessions are many and each has its own, so it is not in the processor's cache when its session's next event comes. It
/// is kept small: two shifts share a byte.
struct Shifts {
    bits: u32,
    halves: Box<[u8]>,
}

impl Shifts {
    /// For about so many pairs of bytes. Behind all others one may go on by `most`, which is below 16.
    fn new(pairs: usize, most: usize) -> Self {
        let bits = (pairs.next_power_of_two().ilog2() + 1).clamp(BITS.0, BITS.1);
        Self { bits, halves: vec![(most | most << 4) as u8; 1 << (bits - 1)].into() }
    }

    fn behind(&self, first: u8, second: u8) -> usize {
        let (byte, half) = self.place(first, second);
        usize::from(self.halves[byte] >> half & 0xf)
    }

    fn lower(&mut self, first: u8, second: u8, shift: usize) {
        let (byte, half) = self.place(first, second);
        let lower = self.behind(first, second).min(shift) as u8;
        self.halves[byte] = self.halves[byte] & !(0xf << half) | lower << half;
    }

    /// Which byte, and by how many bits its half is shifted there.
    fn place(&self, first: u8, second: u8) -> (usize, usize) {
        let two = u32::from(u16::from_le_bytes([first, second]));
        let place = (two.wrapping_mul(0x9e37_79b1) >> (32 - self.bits)) as usize;
        (place / 2, place % 2 * 4)
    }
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
