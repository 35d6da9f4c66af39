//! The doors of a hop's messages. A frame's payload stays outside protobuf, so that it is never copied here.

use bytes::Bytes;
use prost::Message;

use crate::amounts::Position;
use crate::ids::Epoch;
use crate::ids::SessionId;
use crate::ids::StageIndex;
use crate::ids::Step;
use crate::ids::Token;
use crate::shape::WireDtype;
use crate::wire::bad::BadMessage;
use crate::wire::bad::array;
use crate::wire::bad::protobuf;
use crate::wire::bad::required;
use crate::wire::bad::short;
use crate::wire::bad::within;
use crate::wire::doors;
use crate::wire::hop::Frame;
use crate::wire::hop::FrameHeader;
use crate::wire::hop::HopBack;
use crate::wire::hop::HopForward;
use crate::wire::hop::HopOpen;
use crate::wire::hop::HopRefusal;
use crate::wire::hop::MAX_PAYLOAD;
use crate::wire::hop::Sample;
use crate::wire::hop::TokenFrame;
use crate::wire::proto;
use crate::wire::same_names;

doors!(HopOpen, 64);
doors!(HopBack, 64);

/// What is written for one message down a hop: the header's length as a varint, the header, the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedForward {
    /// The protobuf message, at most [`HopForward::MAX_HEADER`] bytes.
    pub header: Bytes,
    /// The raw bytes that follow it, if it announces any.
    pub payload: Option<Bytes>,
}

/// A message down a hop whose header was read and whose payload is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending(Announced);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Announced {
    Frame(FrameHeader, u32),
    Token(TokenFrame),
}

impl Pending {
    /// How many raw bytes follow the header, at most [`MAX_PAYLOAD`]; 0 for a token.
    pub const fn payload_bytes(&self) -> usize {
        match self.0 {
            Announced::Frame(_, bytes) => bytes as usize,
            Announced::Token(_) => 0,
        }
    }

    /// The whole message, from exactly [`payload_bytes`](Self::payload_bytes) bytes.
    ///
    /// # Errors
    /// [`BadMessage::Length`] if `payload` has another length.
    pub fn with_payload(self, payload: Bytes) -> Result<HopForward, BadMessage> {
        let (expected, got) = (self.payload_bytes() as u64, payload.len() as u64);
        if expected != got {
            return Err(BadMessage::Length { field: "frame payload", expected, got });
        }
        Ok(match self.0 {
            Announced::Frame(header, _) => HopForward::Frame(Frame { header, payload }),
            Announced::Token(token) => HopForward::Token(token),
        })
    }
}

impl HopForward {
    /// The most bytes of a header, payload not counted.
    pub const MAX_HEADER: usize = 128;

    /// Reads a header and checks all of it, the announced payload's length against count and dtype included.
    ///
    /// # Errors
    /// [`BadMessage`] with the first fault found.
    pub fn decode_header(bytes: &[u8]) -> Result<Pending, BadMessage> {
        let message: proto::HopForward = protobuf("HopForward", Self::MAX_HEADER, bytes)?;
        match required("hop message", message.kind)? {
            proto::hop_forward::Kind::Frame(frame) => announced_frame(&frame),
            proto::hop_forward::Kind::Token(token) => token_frame(&token).map(Announced::Token),
        }
        .map(Pending)
    }

    /// The header for another peer's [`decode_header`](Self::decode_header), and the payload as it is.
    pub fn encode(&self) -> EncodedForward {
        let (kind, payload) = match self {
            Self::Frame(frame) => (proto::hop_forward::Kind::Frame(frame.into()), Some(frame.payload.clone())),
            Self::Token(token) => (proto::hop_forward::Kind::Token(token.into()), None),
        };
        let header = proto::HopForward { kind: Some(kind) }.encode_to_vec().into();
        EncodedForward { header, payload }
    }
}

fn announced_frame(frame: &proto::Frame) -> Result<Announced, BadMessage> {
    let count = within("frame count", frame.count, 1..=MAX_PAYLOAD)?;
    let dtype = WireDtype::from_code(frame.dtype)?;
    let bytes = within("frame payload", frame.payload_bytes, 1..=MAX_PAYLOAD)?;
    if !u64::from(bytes).is_multiple_of(u64::from(count) * dtype.row_bytes(1)) {
        return Err(BadMessage::OutOfRange { field: "frame payload" });
    }
    let first = Position(frame.first);
    first.0.checked_add(count).ok_or(BadMessage::OutOfRange { field: "frame positions" })?;
    let header = FrameHeader {
        session: SessionId::new(array("frame session", &frame.session)?),
        stage: StageIndex(short("frame stage", frame.stage)?),
        epoch: Epoch(frame.epoch),
        step: Step(frame.step),
        first,
        count,
        dtype,
        sample: if frame.sample { Sample::LastRow } else { Sample::No },
    };
    Ok(Announced::Frame(header, bytes))
}

fn token_frame(token: &proto::TokenFrame) -> Result<TokenFrame, BadMessage> {
    Ok(TokenFrame {
        session: SessionId::new(array("token session", &token.session)?),
        epoch: Epoch(token.epoch),
        step: Step(token.step),
        position: Position(token.position),
        token: Token(token.token),
    })
}

impl From<&Frame> for proto::Frame {
    fn from(frame: &Frame) -> Self {
        let header = &frame.header;
        Self {
            session: header.session.as_bytes().to_vec().into(),
            stage: header.stage.0.into(),
            epoch: header.epoch.0,
            step: header.step.0,
            first: header.first.0,
            count: header.count,
            dtype: header.dtype.code(),
            sample: header.sample == Sample::LastRow,
            payload_bytes: u32::try_from(frame.payload.len()).unwrap_or(u32::MAX),
        }
    }
}

impl From<&TokenFrame> for proto::TokenFrame {
    fn from(token: &TokenFrame) -> Self {
        Self {
            session: token.session.as_bytes().to_vec().into(),
            epoch: token.epoch.0,
            step: token.step.0,
            position: token.position.0,
            token: token.token.0,
        }
    }
}

impl TryFrom<proto::HopOpen> for HopOpen {
    type Error = BadMessage;

    fn try_from(open: proto::HopOpen) -> Result<Self, BadMessage> {
        let (from, to) = (short("hop from", open.from)?, short("hop to", open.to)?);
        if to != 0 && Some(to) != from.checked_add(1) {
            return Err(BadMessage::OutOfRange { field: "hop to" });
        }
        Ok(Self {
            session: SessionId::new(array("hop session", &open.session)?),
            epoch: Epoch(open.epoch),
            from: StageIndex(from),
            to: StageIndex(to),
        })
    }
}

impl From<&HopOpen> for proto::HopOpen {
    fn from(open: &HopOpen) -> Self {
        Self {
            session: open.session.as_bytes().to_vec().into(),
            epoch: open.epoch.0,
            from: open.from.0.into(),
            to: open.to.0.into(),
        }
    }
}

impl TryFrom<proto::HopBack> for HopBack {
    type Error = BadMessage;

    fn try_from(back: proto::HopBack) -> Result<Self, BadMessage> {
        Ok(match required("hop answer", back.kind)? {
            proto::hop_back::Kind::Opened(_) => Self::Opened,
            proto::hop_back::Kind::Taken(step) => Self::Taken(Step(step)),
            proto::hop_back::Kind::Fenced(epoch) => Self::Fenced(Epoch(epoch)),
            proto::hop_back::Kind::Refused(code) => Self::Refused(HopRefusal::from_code(code)?),
        })
    }
}

impl From<&HopBack> for proto::HopBack {
    fn from(back: &HopBack) -> Self {
        let kind = match back {
            HopBack::Opened => proto::hop_back::Kind::Opened(proto::Nothing {}),
            HopBack::Taken(step) => proto::hop_back::Kind::Taken(step.0),
            HopBack::Fenced(epoch) => proto::hop_back::Kind::Fenced(epoch.0),
            HopBack::Refused(refusal) => proto::hop_back::Kind::Refused(refusal.code()),
        };
        Self { kind: Some(kind) }
    }
}

same_names!(HopRefusal, "hop refusal": UnknownSession WrongPeer WrongShape OutOfOrder WindowExceeded Ended);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::samples;

    fn announced(change: impl FnOnce(&mut proto::Frame)) -> Result<Pending, BadMessage> {
        let HopForward::Frame(frame) = samples::frame() else { panic!("the sample is a frame") };
        let mut message = proto::Frame::from(&frame);
        change(&mut message);
        let kind = Some(proto::hop_forward::Kind::Frame(message));
        HopForward::decode_header(&proto::HopForward { kind }.encode_to_vec())
    }

    #[test]
    fn a_frame_is_joined_from_header_and_payload() {
        let EncodedForward { header, payload } = samples::frame().encode();
        let payload = payload.unwrap();

        let pending = HopForward::decode_header(&header).unwrap();

        assert_eq!(pending.payload_bytes(), payload.len());
        assert_eq!(pending.with_payload(payload.clone()), Ok(samples::frame()));
        assert!(pending.with_payload(payload.slice(1..)).is_err());
    }

    #[test]
    fn the_largest_header_is_within_its_limit() {
        let header = FrameHeader {
            session: SessionId::new([0xff; 16]),
            stage: StageIndex(u16::MAX),
            epoch: Epoch(u32::MAX),
            step: Step(u64::MAX),
            first: Position(u32::MAX - MAX_PAYLOAD),
            count: MAX_PAYLOAD,
            dtype: WireDtype::F16,
            sample: Sample::LastRow,
        };
        let frame = Frame { header, payload: Bytes::from_static(&[0; 4]) };

        assert!(HopForward::Frame(frame).encode().header.len() <= HopForward::MAX_HEADER);
    }

    #[test]
    fn a_payload_is_whole_rows_within_the_limit() {
        assert!(announced(|_| {}).is_ok());
        assert!(announced(|frame| frame.payload_bytes += 1).is_err());
        assert!(announced(|frame| frame.payload_bytes = 0).is_err());
        assert!(announced(|frame| frame.count = 0).is_err());
        assert!(announced(|frame| (frame.count, frame.payload_bytes) = (1, MAX_PAYLOAD)).is_ok());
        assert!(announced(|frame| (frame.count, frame.payload_bytes) = (1, MAX_PAYLOAD + 4)).is_err());
        assert!(announced(|frame| frame.first = u32::MAX).is_err());
        assert!(announced(|frame| frame.stage = 1 << 16).is_err());
    }

    #[test]
    fn a_hop_leads_to_the_next_stage_or_to_the_driver() {
        let open =
            HopOpen { session: SessionId::new([1; 16]), epoch: Epoch(0), from: StageIndex(2), to: StageIndex(3) };
        let refused = |open: HopOpen| HopOpen::decode(&open.encode()).is_err();

        assert!(!refused(open));
        assert!(!refused(HopOpen { to: StageIndex(0), ..open }));
        assert!(refused(HopOpen { to: StageIndex(4), ..open }));
        assert!(refused(HopOpen { to: StageIndex(2), ..open }));
    }
}
