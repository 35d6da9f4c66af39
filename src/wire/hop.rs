//! The stream of one session between two neighbouring stages, opened with the lease and kept for the session.
//!
//! The upstream side opens it and says [`HopOpen`]; the downstream side answers [`HopBack::Opened`] once it holds the
//! lease that names this neighbour. Then frames go down and acknowledgements come back. The tail's hop to the driver
//! carries tokens in the same way.

use bytes::Bytes;

use crate::amounts::Position;
use crate::ids::Epoch;
use crate::ids::SessionId;
use crate::ids::StageIndex;
use crate::ids::Step;
use crate::ids::Token;
use crate::shape::WireDtype;

mod codec;

pub use codec::EncodedForward;
pub use codec::Pending;

/// The largest payload of a frame: 1,024 positions of width 8,192 in f32 is 32 MiB.
pub const MAX_PAYLOAD: u32 = 32 << 20;

/// Names the hop that a stream carries. The first message of its opener, after `Hello`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HopOpen {
    /// The session.
    pub session: SessionId,
    /// The chain's version.
    pub epoch: Epoch,
    /// The opener's stage.
    pub from: StageIndex,
    /// The receiver's stage: the next one, or 0 for the tail's hop to the driver.
    pub to: StageIndex,
}

/// What goes down a hop after [`HopOpen`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HopForward {
    /// Hidden states.
    Frame(Frame),
    /// The token that the tail sampled, for the driver to feed.
    Token(TokenFrame),
}

/// Hidden states of some positions of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What they are.
    pub header: FrameHeader,
    /// Row-major `[count, width]` in the header's dtype, little-endian. Its length is checked against the header's `bytes` only:
    /// the session knows the width.
    pub payload: Bytes,
}

/// Says what a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The session.
    pub session: SessionId,
    /// The receiving stage.
    pub stage: StageIndex,
    /// The chain's version.
    pub epoch: Epoch,
    /// Rises by one per frame of a hop and epoch, from 0.
    pub step: Step,
    /// The position of the first row.
    pub first: Position,
    /// How many rows, at least 1.
    pub count: u32,
    /// The dtype of the payload.
    pub dtype: WireDtype,
    /// Whether the tail samples after the last row.
    pub sample: Sample,
}

/// Whether the tail samples after the last row of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sample {
    /// More of the prompt follows.
    No,
    /// The next token is wanted.
    LastRow,
}

/// A sampled token on its way to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenFrame {
    /// The session.
    pub session: SessionId,
    /// The chain's version.
    pub epoch: Epoch,
    /// Rises by one per token frame of the epoch, from 0.
    pub step: Step,
    /// The position at which the token is to be fed.
    pub position: Position,
    /// The token.
    pub token: Token,
}

/// What comes back up a hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HopBack {
    /// The downstream stage holds a lease that names the opener as its upstream.
    Opened,
    /// Everything up to and with this step was taken up by the engine: the window moves on.
    Taken(Step),
    /// The opener's epoch is old: it must free the session.
    Fenced(Epoch),
    /// The hop ends for this reason.
    Refused(HopRefusal),
}

/// Why a downstream stage ends a hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HopRefusal {
    /// No lease for this session and stage came in time.
    UnknownSession,
    /// The lease names another peer as upstream.
    WrongPeer,
    /// A frame for another stage, of the wrong dtype, or of a length that is not `count × width`.
    WrongShape,
    /// A step or position that does not follow.
    OutOfOrder,
    /// More frames than the window allows.
    WindowExceeded,
    /// The lease ended or was cancelled.
    Ended,
}
