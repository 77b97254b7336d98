//! The native form of events, and the socket as the place where the fan-out puts them.

use bytes::{BufMut, Bytes, BytesMut};
use onlooker_protocol::event::Epoch;
use tokio_tungstenite::tungstenite::protocol::frame::coding::Data;

use super::super::{
    socket::Socket,
    wire::{begin_frame, frame_size},
};
use crate::{
    engine::Record,
    hub::{Form, Frames, Outlet, PICTURE_PIECES},
    images::Picture,
};

/// Each event is one text message: the frame that the log holds.
pub(super) struct Native;

impl Form for Native {
    fn frames(&self, _: Epoch, records: &[Record]) -> Frames {
        let bytes = records.iter().map(|record| frame_size(record.frame.len())).sum();
        let mut frames = BytesMut::with_capacity(bytes);
        for record in records {
            begin_frame(Data::Text, record.frame.len(), &mut frames);
            frames.put_slice(&record.frame);
        }
        Frames { bytes: frames.freeze(), messages: records.len() as u32 }
    }

    fn picture(&self, picture: &Picture) -> ([Bytes; PICTURE_PIECES], u32) {
        let mut header = BytesMut::new();
        begin_frame(Data::Binary, picture.frame.len(), &mut header);
        ([header.freeze(), picture.frame.clone()], 1)
    }
}

impl Outlet for Socket {
    fn take(&self, pieces: &[Bytes], messages: u32) -> bool {
        self.offer(pieces, messages)
    }

    fn form(&self) -> &dyn Form {
        &Native
    }
}
