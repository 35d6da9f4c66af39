//! Streams, as a session sees them: what goes out, how they open and end, and who names them.

use crate::ids::StreamId;
use crate::wire::control::FromStage;
use crate::wire::control::ToStage;
use crate::wire::hop::HopBack;
use crate::wire::hop::HopForward;

/// A message for a stream.
#[derive(Clone, Debug, PartialEq)]
pub enum Outgoing {
    /// From requester to stage.
    ToStage(ToStage),
    /// From stage to requester.
    FromStage(FromStage),
    /// Down a hop.
    Forward(HopForward),
    /// Up a hop.
    Back(HopBack),
}

/// Why a stream could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenFailure {
    /// The peer cannot be dialled or did not answer in time.
    Unreachable,
    /// The peer does not speak the protocol, or no common version of it.
    Unsupported,
    /// Too many streams here.
    LocalLimit,
}

/// Why a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseCause {
    /// The other side closed it in order.
    Finished,
    /// The connection went away.
    Lost,
    /// The other side sent bytes that are no message.
    Malformed,
    /// This side's queue of outgoing messages was full.
    Overflow,
}

/// Names the streams that this side opens: the even ids, in order. Those that arrive are named by the driver, with odd ids.
#[derive(Debug, Default)]
pub struct StreamIds {
    opened: u64,
}

impl StreamIds {
    /// The id of a stream to be opened.
    pub fn open(&mut self) -> StreamId {
        let id = StreamId(self.opened.saturating_mul(2));
        self.opened = self.opened.saturating_add(1);
        id
    }
}
