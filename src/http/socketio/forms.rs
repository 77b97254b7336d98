//! What goes out, encoded once and shared by everybody who follows the session.
//!
//! A record's form is made when the first follower needs it and kept for the others, within a bound: whoever is further
//! behind than that makes it again. With one follower nothing is kept.

use std::{
    collections::BTreeMap,
    ops::Deref,
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{BufMut, Bytes, BytesMut};
use dashmap::DashMap;
use onlooker_protocol::event::{Epoch, EventFrame, kind};
use serde_json::json;
use tokio_tungstenite::tungstenite::{Utf8Bytes, protocol::frame::coding::Data};

use super::{
    super::{
        socket::Socket,
        webrun::frames,
        wire::{begin_frame, frame_size},
    },
    packet,
};
use crate::{
    engine::Record,
    hub::{self, Frames, Outlet, PICTURE_PIECES},
    ids::SessionId,
    images::Picture,
    session::unnamed::Shown,
};

/// Forms kept for one session, and the bytes of their records.
const KEPT: usize = 256;
const KEPT_BYTES: usize = 256 * 1024;

/// A record as clients get it.
#[derive(Clone, Debug, Default)]
pub(super) struct Form {
    /// `None`: clients have no words for it.
    pub text: Option<Utf8Bytes>,
    /// The question that it puts.
    pub asks: Option<Arc<Shown>>,
}

/// Something that waits to be sent, whole or not at all.
#[derive(Clone)]
pub(super) enum Item {
    Text(Utf8Bytes),
    Picture(Arc<PictureForm>),
}

impl Item {
    /// Engine.IO packets that it is sent as.
    pub(super) fn packets(&self) -> u64 {
        match self {
            Self::Text(_) => 1,
            Self::Picture(_) => 2,
        }
    }

    pub(super) fn size(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Picture(picture) => picture.header.len() + picture.bytes.len(),
        }
    }
}

/// A picture: an event's header and its attachment.
pub(super) struct PictureForm {
    id: Arc<str>,
    pub header: Utf8Bytes,
    pub bytes: Bytes,
    base64: OnceLock<String>,
}

impl PictureForm {
    /// The attachment's packet in a payload.
    pub(super) fn base64(&self) -> &[u8] {
        let encode = || {
            let mut packet = String::with_capacity(1 + self.bytes.len().div_ceil(3) * 4);
            packet.push('b');
            STANDARD.encode_string(&self.bytes, &mut packet);
            packet
        };
        self.base64.get_or_init(encode).as_bytes()
    }
}

/// The forms of every session that somebody follows. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Forms(Arc<DashMap<SessionId, Weak<SessionForms>>>);

impl Forms {
    /// Those of one session, for one more follower.
    pub(super) fn of(&self, session: SessionId) -> Share {
        let mut entry = self.0.entry(session).or_default();
        if let Some(forms) = entry.upgrade() {
            return Share::of(forms);
        }
        let followers = AtomicUsize::new(0);
        let forms = Arc::new(SessionForms { all: self.clone(), session, followers, kept: Mutex::default() });
        *entry = Arc::downgrade(&forms);
        Share::of(forms)
    }
}

/// A follower's share in the forms of its session.
pub(super) struct Share(Arc<SessionForms>);

impl Share {
    fn of(forms: Arc<SessionForms>) -> Self {
        forms.followers.fetch_add(1, Ordering::Relaxed);
        Self(forms)
    }

    /// Where the fan-out may write what this follower gets.
    pub(super) fn outlet(&self, socket: &Arc<Socket>) -> Arc<dyn Outlet> {
        Arc::new(SessionOutlet { socket: Arc::clone(socket), forms: Arc::clone(&self.0) })
    }
}

impl Deref for Share {
    type Target = SessionForms;

    fn deref(&self) -> &SessionForms {
        &self.0
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.0.followers.fetch_sub(1, Ordering::Relaxed);
    }
}

struct SessionOutlet {
    socket: Arc<Socket>,
    forms: Arc<SessionForms>,
}

impl Outlet for SessionOutlet {
    fn take(&self, pieces: &[Bytes], messages: u32) -> bool {
        // Without messages nothing of it has words here.
        messages == 0 || self.socket.offer(pieces, messages)
    }

    fn form(&self) -> &dyn hub::Form {
        &*self.forms
    }
}

impl hub::Form for SessionForms {
    fn frames(&self, epoch: Epoch, records: &[Record]) -> Frames {
        let texts: Vec<_> = records.iter().filter_map(|record| self.of_record(epoch, record).text).collect();
        let mut frames = BytesMut::with_capacity(texts.iter().map(|text| frame_size(text.len())).sum());
        for text in &texts {
            begin_frame(Data::Text, text.len(), &mut frames);
            frames.put_slice(text.as_bytes());
        }
        Frames { bytes: frames.freeze(), messages: texts.len() as u32 }
    }

    fn picture(&self, picture: &Picture) -> ([Bytes; PICTURE_PIECES], u32) {
        let form = self.of_picture(picture);
        let mut header = BytesMut::with_capacity(frame_size(form.header.len()) + frame_size(0));
        begin_frame(Data::Text, form.header.len(), &mut header);
        header.put_slice(form.header.as_bytes());
        begin_frame(Data::Binary, form.bytes.len(), &mut header);
        ([header.freeze(), form.bytes.clone()], 2)
    }
}

pub(super) struct SessionForms {
    all: Forms,
    session: SessionId,
    followers: AtomicUsize,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    epoch: Option<Epoch>,
    forms: BTreeMap<u64, (usize, Arc<OnceLock<Form>>)>,
    bytes: usize,
    picture: Option<Arc<PictureForm>>,
    reduced: Option<Arc<PictureForm>>,
}

impl Drop for SessionForms {
    fn drop(&mut self) {
        // Somebody may have begun anew since the last holder let go.
        self.all.0.remove_if(&self.session, |_, forms| forms.strong_count() == 0);
    }
}

impl SessionForms {
    /// A record's form. `epoch` is the one that the reader is in.
    pub(super) fn of_record(&self, epoch: Epoch, record: &Record) -> Form {
        if !frames::is_heard(&record.kind) {
            return Form::default();
        }
        if self.followers.load(Ordering::Relaxed) == 1 {
            return encode(record);
        }
        let cell = self.kept.lock().expect("no holder panics").cell(epoch, record);
        cell.get_or_init(|| encode(record)).clone()
    }

    pub(super) fn of_picture(&self, picture: &Picture) -> Arc<PictureForm> {
        let mut kept = self.kept.lock().expect("no holder panics");
        let kept = if picture.is_reduced() { &mut kept.reduced } else { &mut kept.picture };
        if let Some(known) = kept.as_ref().filter(|known| known.id == picture.id) {
            return Arc::clone(known);
        }
        let bytes = picture.bytes();
        let argument = json!({
            "sessionId": self.session.as_str(),
            "id": &*picture.id,
            "media": picture.media,
            "size": bytes.len(),
            "data": { "_placeholder": true, "num": 0 },
        });
        let header = packet::event_with_attachment("screenshot", &argument).into();
        let form = Arc::new(PictureForm { id: Arc::clone(&picture.id), header, bytes, base64: OnceLock::new() });
        *kept = Some(Arc::clone(&form));
        form
    }
}

impl Kept {
    fn cell(&mut self, epoch: Epoch, record: &Record) -> Arc<OnceLock<Form>> {
        if self.epoch != Some(epoch) {
            self.forms.clear();
            (self.epoch, self.bytes) = (Some(epoch), 0);
        }
        if let Some((_, cell)) = self.forms.get(&record.offset) {
            return Arc::clone(cell);
        }
        let cell = Arc::<OnceLock<Form>>::default();
        self.bytes += record.frame.len();
        self.forms.insert(record.offset, (record.frame.len(), Arc::clone(&cell)));
        // The oldest go: those who are live are many, and who catches up is one.
        while self.forms.len() > KEPT || self.bytes > KEPT_BYTES {
            let Some((_, (bytes, _))) = self.forms.pop_first() else { break };
            self.bytes -= bytes;
        }
        cell
    }
}

pub(super) fn encode(record: &Record) -> Form {
    let Ok(frame) = serde_json::from_slice::<EventFrame>(&record.frame) else { return Form::default() };
    let Some(said) = frames::of_event(&frame) else { return Form::default() };
    let asks = (*record.kind == *kind::GUARDRAIL_TRIGGER).then(|| shown(&said.argument)).flatten().map(Arc::new);
    let text = packet::event(said.event, &said.argument, Some(&frame.position.to_string()));
    Form { text: Some(text.into()), asks }
}

fn shown(question: &serde_json::Value) -> Option<Shown> {
    let revision = question["revision"].as_u64().and_then(|revision| u32::try_from(revision).ok());
    Some(Shown { guardrail: question["guardrailId"].as_str()?.to_owned(), revision })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(offset: u64, bytes: usize) -> Record {
        let text = "x".repeat(bytes);
        let frame = json!({
            "session": "s", "position": format!("abcdefgh:{offset}"), "id": "i", "at": "t",
            "event": { "type": "agent", "data": { "content": text } },
        });
        Record { offset, at: 0, kind: "agent".into(), frame: frame.to_string().into() }
    }

    fn epoch(name: &str) -> Epoch {
        Epoch::new(name).unwrap()
    }

    #[test]
    fn a_form_is_made_once_for_all_and_not_kept_for_one() {
        let forms = Forms::default();
        let one = forms.of(SessionId::NONE);
        let first = one.of_record(epoch("abcdefgh"), &record(3, 10)).text.unwrap();
        assert!(
            first.starts_with(r#"42["message",{"type":"agent""#) && first.ends_with(r#","abcdefgh:3"]"#),
            "{first}"
        );
        assert!(one.kept.lock().unwrap().forms.is_empty());
        let other = forms.of(SessionId::NONE);
        assert!(Arc::ptr_eq(&one.0, &other.0));
        let texts = [&one, &other].map(|forms| forms.of_record(epoch("abcdefgh"), &record(3, 10)).text.unwrap());
        assert_eq!(texts[0].as_ptr(), texts[1].as_ptr());
        drop((one, other));
        assert!(forms.0.is_empty());
    }

    #[test]
    fn what_is_kept_is_bounded_and_of_one_epoch() {
        let forms = Forms::default();
        let (one, _other) = (forms.of(SessionId::NONE), forms.of(SessionId::NONE));
        for offset in 0..2 * KEPT as u64 {
            one.of_record(epoch("abcdefgh"), &record(offset, 1));
        }
        assert_eq!(one.kept.lock().unwrap().forms.len(), KEPT);
        for offset in 1000..1010 {
            one.of_record(epoch("abcdefgh"), &record(offset, KEPT_BYTES / 4));
        }
        assert!(one.kept.lock().unwrap().bytes <= KEPT_BYTES);
        one.of_record(epoch("bbbbbbbb"), &record(1009, 1));
        assert_eq!(one.kept.lock().unwrap().forms.len(), 1);
    }
}
