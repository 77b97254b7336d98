//! The native form of events, and the socket as the place where the fan-out puts them.

use bytes::{BufMut, BytesMut};
use onlooker_protocol::event::Epoch;
use tokio_tungstenite::tungstenite::protocol::frame::coding::Data;

use super::super::{
    socket::Socket,
    wire::{begin_frame, frame_size},
};
use crate::{
    engine::Record,
    hub::{Form, Frames, Outlet},
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
}

impl Outlet for Socket {
    fn take(&self, frames: &Frames) -> bool {
        self.offer(&frames.bytes, frames.messages)
    }

    fn form(&self) -> &dyn Form {
        &Native
    }
}
