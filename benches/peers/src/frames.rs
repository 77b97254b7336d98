//! WebSocket frames (RFC 6455): those of a server are read wherever the bytes are cut, those of both sides are written.

pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// Bytes of a frame's payload that are shown together: enough for what has to be answered.
pub const PEEK: usize = 128;
const HEAD: usize = 10;

/// Who hears what a server sends.
pub trait Hearing {
    /// A frame begins: its whole length, and its first bytes, [`PEEK`] of them at most.
    fn frame(&mut self, opcode: u8, length: u64, peek: &[u8]);
    /// The next bytes of its payload, the first ones too.
    fn payload(&mut self, bytes: &[u8]);
}

/// Where one connection's bytes have got to.
pub struct Reader {
    /// Of the present frame's payload.
    left: u64,
    held: u8,
    /// A head, and what is shown with it, until both are whole.
    head: [u8; HEAD + PEEK],
}

impl Default for Reader {
    fn default() -> Self {
        Self { left: 0, held: 0, head: [0; HEAD + PEEK] }
    }
}

struct Head {
    opcode: u8,
    size: usize,
    length: u64,
}

impl Head {
    /// `None`: it is not whole.
    fn read(bytes: &[u8]) -> Result<Option<Self>, &'static str> {
        let [first, second, rest @ ..] = bytes else { return Ok(None) };
        if first & 0x70 != 0 {
            return Err("a frame uses an extension that was not agreed upon");
        }
        if second & 0x80 != 0 {
            return Err("a server masked a frame");
        }
        let (size, length) = match second & 0x7f {
            126 => (4, rest.first_chunk().map(|length| u64::from(u16::from_be_bytes(*length)))),
            127 => (10, rest.first_chunk().map(|length| u64::from_be_bytes(*length))),
            length => (2, Some(u64::from(length))),
        };
        Ok(length.map(|length| Self { opcode: first & 0x0f, size, length }))
    }

    /// With what is shown of the payload.
    fn whole(&self) -> usize {
        self.size + self.length.min(PEEK as u64) as usize
    }
}

impl Reader {
    /// Fails where the bytes are no server's frames; nothing can be read after that.
    pub fn feed(&mut self, mut bytes: &[u8], to: &mut impl Hearing) -> Result<(), &'static str> {
        while !bytes.is_empty() {
            if self.left > 0 {
                let (now, rest) = bytes.split_at(bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX)));
                to.payload(now);
                self.left -= now.len() as u64;
                bytes = rest;
            } else if self.held > 0 {
                bytes = self.complete(bytes, to)?;
            } else {
                match Head::read(bytes)? {
                    Some(head) if bytes.len() >= head.whole() => {
                        to.frame(head.opcode, head.length, &bytes[head.size..head.whole()]);
                        self.left = head.length;
                        bytes = &bytes[head.size..];
                    }
                    _ => bytes = self.hold(bytes, bytes.len()),
                }
            }
        }
        Ok(())
    }

    /// Takes what is missing of a head that was cut, and of what is shown with it. Returns what follows.
    fn complete<'a>(&mut self, mut bytes: &'a [u8], to: &mut impl Hearing) -> Result<&'a [u8], &'static str> {
        loop {
            let held = usize::from(self.held);
            let head = Head::read(&self.head[..held])?;
            let missing = head.as_ref().map_or(1, |head| head.whole() - held);
            match head {
                Some(head) if missing == 0 => {
                    self.finish(&head, to);
                    return Ok(bytes);
                }
                _ if bytes.is_empty() => return Ok(bytes),
                _ => bytes = self.hold(bytes, missing),
            }
        }
    }

    fn finish(&mut self, head: &Head, to: &mut impl Hearing) {
        let shown = &self.head[head.size..head.whole()];
        to.frame(head.opcode, head.length, shown);
        if !shown.is_empty() {
            to.payload(shown);
        }
        self.left = head.length - shown.len() as u64;
        self.held = 0;
    }

    fn hold<'a>(&mut self, bytes: &'a [u8], most: usize) -> &'a [u8] {
        let held = usize::from(self.held);
        let (now, rest) = bytes.split_at(bytes.len().min(most));
        self.head[held..held + now.len()].copy_from_slice(now);
        self.held += now.len() as u8;
        rest
    }
}

/// Appends a server's frame.
pub fn server(opcode: u8, payload: &[u8], out: &mut Vec<u8>) {
    head(opcode, payload.len(), 0, out);
    out.extend_from_slice(payload);
}

/// Appends a client's frame, masked with `key`.
pub fn client(opcode: u8, payload: &[u8], key: u32, out: &mut Vec<u8>) {
    client_with(opcode, payload.len(), key, out, |out| out.extend_from_slice(payload));
}

/// Appends a client's frame whose payload of `length` bytes is appended by `write`.
pub fn client_with(opcode: u8, length: usize, key: u32, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    head(opcode, length, 0x80, out);
    out.extend_from_slice(&key.to_ne_bytes());
    let from = out.len();
    write(out);
    debug_assert_eq!(out.len() - from, length);
    mask(&mut out[from..], key.to_ne_bytes());
}

fn head(opcode: u8, length: usize, mask: u8, out: &mut Vec<u8>) {
    out.push(0x80 | opcode);
    match length {
        0..126 => out.push(mask | length as u8),
        126..0x1_0000 => {
            out.push(mask | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            out.push(mask | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

fn mask(payload: &mut [u8], key: [u8; 4]) {
    let wide = u64::from_ne_bytes([key[0], key[1], key[2], key[3], key[0], key[1], key[2], key[3]]);
    let (eights, rest) = payload.as_chunks_mut::<8>();
    for eight in eights {
        *eight = (u64::from_ne_bytes(*eight) ^ wide).to_ne_bytes();
    }
    rest.iter_mut().zip(key.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default, Debug, PartialEq)]
    struct Heard(Vec<(u8, u64, Vec<u8>, Vec<u8>)>);

    impl Hearing for Heard {
        fn frame(&mut self, opcode: u8, length: u64, peek: &[u8]) {
            self.0.push((opcode, length, peek.to_vec(), Vec::new()));
        }

        fn payload(&mut self, bytes: &[u8]) {
            self.0.last_mut().expect("a frame began").3.extend_from_slice(bytes);
        }
    }

    fn stream() -> (Vec<u8>, Heard) {
        let (mut bytes, mut heard) = (Vec::new(), Heard::default());
        for (number, length) in [0, 1, 5, 125, 126, 127, PEEK, PEEK + 1, 300, 0, 66_000].into_iter().enumerate() {
            let payload: Vec<u8> = (0..length).map(|place| (place + number) as u8).collect();
            let opcode = [TEXT, BINARY, PING][number % 3];
            server(opcode, &payload, &mut bytes);
            heard.0.push((opcode, length as u64, payload[..length.min(PEEK)].to_vec(), payload));
        }
        (bytes, heard)
    }

    #[test]
    fn every_split_is_heard_the_same() {
        let (bytes, right) = stream();
        // Beyond the last head nothing differs from one place to the next.
        for cut in (0..2_000).chain(bytes.len() - 10..bytes.len()) {
            let (mut reader, mut heard) = (Reader::default(), Heard::default());
            reader.feed(&bytes[..cut], &mut heard).unwrap();
            reader.feed(&bytes[cut..], &mut heard).unwrap();
            assert!(heard == right, "cut at {cut}");
        }
    }

    #[test]
    fn pieces_of_every_size_are_heard_the_same() {
        let (bytes, right) = stream();
        for size in (1..300).chain([1_000, 4_096, 65_536]) {
            let (mut reader, mut heard) = (Reader::default(), Heard::default());
            bytes.chunks(size).for_each(|piece| reader.feed(piece, &mut heard).unwrap());
            assert!(heard == right, "pieces of {size}");
        }
    }

    #[test]
    fn what_a_server_may_not_send_is_refused() {
        for wrong in [[0xc1, 1, b'x'], [0x81, 0x81, b'x']] {
            assert!(Reader::default().feed(&wrong, &mut Heard::default()).is_err());
        }
    }

    #[test]
    fn a_masked_frame_says_the_same_as_its_payload() {
        for length in [0, 3, 8, 13, 130, 70_000] {
            let payload: Vec<u8> = (0..length).map(|place| place as u8).collect();
            let (mut masked, mut plain) = (Vec::new(), Vec::new());
            client(TEXT, &payload, 0x1234_5678, &mut masked);
            server(TEXT, &payload, &mut plain);
            let head = plain.len() - payload.len();
            assert_eq!(masked[1], plain[1] | 0x80);
            assert_eq!(masked[2..head], plain[2..head]);
            let key: [u8; 4] = masked[head..head + 4].try_into().unwrap();
            mask(&mut masked[head + 4..], key);
            assert_eq!(masked[head + 4..], payload);
        }
    }
}
