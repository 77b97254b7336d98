//! Payloads of long-polling: packets joined by a separator, binary ones as `b` and base64.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{BufMut, Bytes, BytesMut};

use super::{
    forms::Item,
    packet::{Malformed, SEPARATOR},
};

/// Packets that one request may bring.
const PACKETS: usize = 256;

/// A packet of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    Text(&'a str),
    Binary(Bytes),
}

/// Takes a request's body apart.
///
/// # Errors
/// It is not UTF-8, has too many packets, or one of them is neither text nor base64.
pub(super) fn split(body: &[u8]) -> Result<Vec<Part<'_>>, Malformed> {
    let text = std::str::from_utf8(body).map_err(|_| Malformed)?;
    if text.matches(SEPARATOR).count() >= PACKETS {
        return Err(Malformed);
    }
    let part = |text| match str::strip_prefix(text, "b") {
        Some(base64) => STANDARD.decode(base64).map(|bytes| Part::Binary(bytes.into())).map_err(|_| Malformed),
        None => Ok(Part::Text(text)),
    };
    text.split(SEPARATOR).map(part).collect()
}

/// Puts what waits into one body.
pub(super) fn join(items: Vec<Item>) -> Bytes {
    let one: Result<[Item; 1], Vec<Item>> = items.try_into();
    let items = match one {
        Ok([Item::Text(text)]) => return text.into(),
        Ok(one) => one.into(),
        Err(items) => items,
    };
    let mut body = BytesMut::with_capacity(items.iter().map(|item| item.size() * 4 / 3 + 8).sum());
    for item in items {
        if !body.is_empty() {
            body.put_u8(SEPARATOR as u8);
        }
        match item {
            Item::Text(text) => body.put_slice(text.as_bytes()),
            Item::Picture(picture) => {
                body.put_slice(picture.header.as_bytes());
                body.put_u8(SEPARATOR as u8);
                body.put_slice(picture.base64());
            }
        }
    }
    body.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_taken_apart() {
        let parts = split("4hello\u{1e}2\u{1e}bAQIDBA==\u{1e}4ü".as_bytes()).unwrap();
        let binary = Part::Binary(Bytes::from_static(&[1, 2, 3, 4]));
        assert_eq!(parts, [Part::Text("4hello"), Part::Text("2"), binary, Part::Text("4ü")]);
        assert_eq!(split(&[0xff]), Err(Malformed));
        assert_eq!(split("b?".as_bytes()), Err(Malformed));
        assert_eq!(split("b\u{fc}".as_bytes()), Err(Malformed));
        assert_eq!(split("\u{1e}".repeat(PACKETS).as_bytes()), Err(Malformed));
        assert_eq!(split("\u{1e}".repeat(PACKETS - 1).as_bytes()).map(|parts| parts.len()), Ok(PACKETS));
    }

    #[test]
    fn a_payload_is_put_together() {
        let items = vec![Item::Text("42[]".into()), Item::Text("2".into())];
        assert_eq!(join(items), "42[]\u{1e}2");
        assert_eq!(join(vec![Item::Text("2".into())]), "2");
    }

    proptest::proptest! {
        #[test]
        fn no_body_makes_it_panic(body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..64)) {
            let _ = split(&body);
        }
    }
}
