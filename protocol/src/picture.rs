//! Binary frames: a JSON header and the bytes of one picture.
//!
//! `length of the header (4 bytes, big endian) · header (JSON) · the picture's bytes`. Runtimes send one to publish a
//! `screenshot` event together with its picture; the gateway sends one to subscribers that asked for pictures.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

/// The header of a picture that a runtime publishes: a numbered `screenshot` event.
///
/// It has not passed the redactor yet, so `Debug` does not show its data.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct PublishedPicture {
    pub session: String,
    pub n: u64,
    /// The media type, `image/jpeg`, `image/png` or `image/webp`.
    pub media: String,
    /// The task it belongs to; the running one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub data: Value,
}

impl std::fmt::Debug for PublishedPicture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PublishedPicture").field("session", &self.session).field("n", &self.n).finish_non_exhaustive()
    }
}

/// The header of a picture that a subscriber gets. `id` is the one in the `screenshot` event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShownPicture {
    pub session: String,
    pub id: String,
    pub media: String,
    pub size: u64,
}

/// The bytes are no header followed by a picture.
#[derive(Debug)]
pub struct NotAPicture(pub &'static str);

impl std::fmt::Display for NotAPicture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for NotAPicture {}

/// Puts a header before a picture.
pub fn encode<H: Serialize>(header: &H, picture: &[u8]) -> Vec<u8> {
    let header = serde_json::to_vec(header).expect("a header is plain data");
    let mut out = Vec::with_capacity(4 + header.len() + picture.len());
    out.extend_from_slice(&u32::try_from(header.len()).expect("a header is small").to_be_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(picture);
    out
}

/// The raw header of a binary frame and the offset at which its picture begins.
pub fn split(frame: &[u8]) -> Result<(&[u8], usize), NotAPicture> {
    let length = frame.first_chunk::<4>().ok_or(NotAPicture("a binary frame begins with 4 bytes of header length"))?;
    let end = 4 + u32::from_be_bytes(*length) as usize;
    let header = frame.get(4..end).ok_or(NotAPicture("the header of a binary frame is longer than the frame"))?;
    Ok((header, end))
}

/// Decodes a whole binary frame.
pub fn decode<H: DeserializeOwned>(frame: &[u8]) -> Result<(H, &[u8]), NotAPicture> {
    let (header, end) = split(frame)?;
    let header = serde_json::from_slice(header)
        .map_err(|_| NotAPicture("the header of a binary frame is not the JSON expected"))?;
    Ok((header, &frame[end..]))
}
