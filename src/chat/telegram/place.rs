//! Where a message lies in its chat, as receipts say it: its id, behind `t` for a text and `p` for a photo, because
//! the two are edited by different methods.

use crate::notifier::Receipt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) message_id: i64,
    pub(super) form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Text,
    Photo,
}

impl Place {
    pub(super) fn receipt(self) -> Receipt {
        let form = match self.form {
            Form::Text => 't',
            Form::Photo => 'p',
        };
        Receipt(format!("{form}{}", self.message_id))
    }

    /// `None` for a receipt that was not made here.
    pub(super) fn read(receipt: &Receipt) -> Option<Self> {
        let (form, id) = receipt.0.split_at_checked(1)?;
        let form = match form {
            "t" => Form::Text,
            "p" => Form::Photo,
            _ => return None,
        };
        Some(Self { message_id: id.parse().ok()?, form })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_comes_back_from_its_receipt() {
        for form in [Form::Text, Form::Photo] {
            let place = Place { message_id: 815, form };
            assert_eq!(Place::read(&place.receipt()), Some(place));
        }
        for foreign in ["", "t", "x1", "1754.2", "ä1"] {
            assert_eq!(Place::read(&Receipt(foreign.to_owned())), None, "{foreign}");
        }
    }
}
