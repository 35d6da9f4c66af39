//! The two ends of a hop: frames go down as a small header and raw bytes, acknowledgements come back.

use std::fmt;

use crate::mesh::error::StreamError;
use crate::mesh::framing::FrameReader;
use crate::mesh::framing::FrameWriter;
use crate::wire::hop::HopForward;
use crate::wire::hop::Pending;

/// What to call a message down a hop in errors.
const WHAT: &str = "hop message";

/// The downstream end: receives frames and tokens.
pub struct HopReader {
    frames: FrameReader,
    pending: Option<Pending>,
}

/// The upstream end: sends frames and tokens. Belongs to one task: a `send` that is dropped half-way leaves the stream
/// useless, and every later one fails.
pub struct HopWriter {
    frames: FrameWriter,
}

impl fmt::Debug for HopReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HopReader").finish_non_exhaustive()
    }
}

impl fmt::Debug for HopWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HopWriter").finish_non_exhaustive()
    }
}

impl HopReader {
    pub(super) fn new(frames: FrameReader) -> Self {
        Self { frames, pending: None }
    }

    /// The next frame or token, or `None` once the other side has closed the stream. Cancel-safe.
    ///
    /// # Errors
    /// [`StreamError`]; nothing can be received after one.
    pub async fn receive(&mut self) -> Result<Option<HopForward>, StreamError> {
        let malformed =
            |error: crate::wire::bad::BadMessage| StreamError::Malformed { what: WHAT, reason: error.to_string() };
        let pending = match self.pending {
            Some(pending) => pending,
            None => match self.frames.delimited(WHAT, HopForward::MAX_HEADER).await? {
                Some(header) => *self.pending.insert(HopForward::decode_header(&header).map_err(malformed)?),
                None => return Ok(None),
            },
        };
        let payload = self.frames.raw(WHAT, pending.payload_bytes()).await?;
        self.pending = None;
        pending.with_payload(payload).map(Some).map_err(malformed)
    }
}

impl HopWriter {
    pub(super) fn new(frames: FrameWriter) -> Self {
        Self { frames }
    }

    /// Sends a frame or token; a payload goes out in parts, so that other streams of the connection get their turn.
    ///
    /// # Errors
    /// If the stream is gone.
    pub async fn send(&mut self, message: &HopForward) -> Result<(), StreamError> {
        let encoded = message.encode();
        let payload = encoded.payload.as_deref().unwrap_or_default();
        self.frames.put(WHAT, HopForward::MAX_HEADER, &encoded.header, payload).await
    }

    /// Tells the other side that nothing follows.
    pub async fn close(&mut self) {
        self.frames.close().await;
    }
}
