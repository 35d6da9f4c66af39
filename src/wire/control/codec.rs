//! The doors of a control stream's messages, but for the offer's parts.

use prost::Message;

use crate::amounts::Bytes;
use crate::amounts::Mflop;
use crate::amounts::Position;
use crate::amounts::Span;
use crate::ids::Epoch;
use crate::ids::NetworkId;
use crate::ids::PeerKey;
use crate::ids::StageIndex;
use crate::ids::Token;
use crate::wire::bad::BadMessage;
use crate::wire::bad::array;
use crate::wire::bad::at_most;
use crate::wire::bad::finite;
use crate::wire::bad::paired;
use crate::wire::bad::printable;
use crate::wire::bad::protobuf;
use crate::wire::bad::required;
use crate::wire::bad::short;
use crate::wire::bad::within;
use crate::wire::control::Break;
use crate::wire::control::Decline;
use crate::wire::control::DeclineReason;
use crate::wire::control::Feed;
use crate::wire::control::FromStage;
use crate::wire::control::HopBroken;
use crate::wire::control::LastFeed;
use crate::wire::control::MAX_CONTROL;
use crate::wire::control::MAX_ENGINE_MESSAGE;
use crate::wire::control::MAX_FEED;
use crate::wire::control::MAX_LOGPROBS;
use crate::wire::control::Rejoined;
use crate::wire::control::Resume;
use crate::wire::control::SettleRefusal;
use crate::wire::control::StageFailure;
use crate::wire::control::StageReport;
use crate::wire::control::TailFinish;
use crate::wire::control::ToStage;
use crate::wire::control::TokenLogprobs;
use crate::wire::control::TokenOut;
use crate::wire::credit::CreditEntry;
use crate::wire::proto;
use crate::wire::proto::PlainFailure;
use crate::wire::proto::from_stage;
use crate::wire::proto::not_settled;
use crate::wire::proto::stage_failure;
use crate::wire::proto::to_stage;
use crate::wire::same_names;
use crate::wire::signed::Signed;
use crate::wire::text;

impl FromStage {
    /// The most bytes of an encoded message.
    pub const MAX: usize = MAX_CONTROL;

    /// Reads a message and checks all of it; a commitment's signature in `network` included.
    ///
    /// # Errors
    /// [`BadMessage`] with the first fault found.
    pub fn decode(bytes: &[u8], network: NetworkId) -> Result<Self, BadMessage> {
        let message: proto::FromStage = protobuf("FromStage", Self::MAX, bytes)?;
        let kind = required("control answer", message.kind)?;
        let from_stage::Kind::Committed(record) = kind else { return Self::unsigned(kind) };
        let signed = Signed::open(&record, network)
            .map_err(|fault| BadMessage::Record { field: "commitment", reason: fault.to_string() })?;
        Ok(Self::Committed(Box::new(signed)))
    }

    /// The bytes for another peer's [`decode`](Self::decode).
    pub fn encode(&self) -> bytes::Bytes {
        proto::FromStage::from(self).encode_to_vec().into()
    }
}

impl ToStage {
    /// The most bytes of an encoded message.
    pub const MAX: usize = MAX_CONTROL;

    /// Reads a message and checks all of it; a credit entry's signature in `network` included.
    ///
    /// # Errors
    /// [`BadMessage`] with the first fault found.
    pub fn decode(bytes: &[u8], network: NetworkId) -> Result<Self, BadMessage> {
        let message: proto::ToStage = protobuf("ToStage", Self::MAX, bytes)?;
        Ok(match required("control message", message.kind)? {
            to_stage::Kind::Offer(offer) => Self::Offer(Box::new(offer.try_into()?)),
            to_stage::Kind::Feed(feed) => Self::Feed(feed.try_into()?),
            to_stage::Kind::Ping(number) => Self::Ping(number),
            to_stage::Kind::Settle(entry) => {
                let entry = CreditEntry::decode(&entry, network)
                    .map_err(|fault| BadMessage::Record { field: "credit entry", reason: fault.to_string() })?;
                Self::Settle(Box::new(entry))
            }
            to_stage::Kind::Reconfigure(newer) => Self::Reconfigure(Box::new(newer.try_into()?)),
            to_stage::Kind::Resume(proto::Resume { epoch, keep, next_keep }) => {
                Self::Resume(Resume { epoch: Epoch(epoch), keep: Position(keep), next_keep: Position(next_keep) })
            }
        })
    }

    /// The bytes for another peer's [`decode`](Self::decode).
    pub fn encode(&self) -> bytes::Bytes {
        let kind = match self {
            Self::Offer(offer) => to_stage::Kind::Offer((&**offer).into()),
            Self::Feed(feed) => to_stage::Kind::Feed(feed.into()),
            Self::Ping(number) => to_stage::Kind::Ping(*number),
            Self::Settle(entry) => to_stage::Kind::Settle(entry.encode()),
            Self::Reconfigure(newer) => to_stage::Kind::Reconfigure((&**newer).into()),
            Self::Resume(Resume { epoch, keep, next_keep }) => {
                to_stage::Kind::Resume(proto::Resume { epoch: epoch.0, keep: keep.0, next_keep: next_keep.0 })
            }
        };
        proto::ToStage { kind: Some(kind) }.encode_to_vec().into()
    }
}

impl TryFrom<proto::Feed> for Feed {
    type Error = BadMessage;

    fn try_from(feed: proto::Feed) -> Result<Self, BadMessage> {
        at_most("feed tokens", feed.tokens.len(), MAX_FEED)?;
        if feed.tokens.is_empty() {
            return Err(BadMessage::Missing { field: "feed tokens" });
        }
        let end = u64::from(feed.first) + feed.tokens.len() as u64;
        if end > u64::from(u32::MAX) {
            return Err(BadMessage::OutOfRange { field: "feed positions" });
        }
        Ok(Self {
            first: Position(feed.first),
            tokens: feed.tokens.into_iter().map(Token).collect(),
            last: if feed.last { LastFeed::Yes } else { LastFeed::No },
        })
    }
}

impl From<&Feed> for proto::Feed {
    fn from(feed: &Feed) -> Self {
        Self {
            first: feed.first.0,
            tokens: feed.tokens.iter().map(|token| token.0).collect(),
            last: feed.last == LastFeed::Yes,
        }
    }
}

impl FromStage {
    /// Reads what carries no signature of its own.
    fn unsigned(kind: from_stage::Kind) -> Result<Self, BadMessage> {
        Ok(match kind {
            from_stage::Kind::Accept(_) => Self::Accept,
            from_stage::Kind::Decline(decline) => Self::Decline(Decline {
                reason: DeclineReason::from_code(decline.reason)?,
                retry_after: decline.retry_after_micros.map(Span),
            }),
            from_stage::Kind::Token(token) => Self::Token(token.try_into()?),
            from_stage::Kind::Pong(number) => Self::Pong(number),
            from_stage::Kind::Failed(failure) => Self::Failed(failure.try_into()?),
            from_stage::Kind::Settled(report) => Self::Settled(report.into()),
            from_stage::Kind::NotSettled(refusal) => Self::NotSettled(refusal.try_into()?),
            from_stage::Kind::Rejoined(rejoined) => Self::Rejoined(rejoined.try_into()?),
            from_stage::Kind::HopBroken(broken) => Self::HopBroken(broken.try_into()?),
            from_stage::Kind::Leaving(_) => Self::Leaving,
            from_stage::Kind::Committed(_) => return Err(BadMessage::Unexpected { field: "commitment" }),
        })
    }
}

impl From<&FromStage> for proto::FromStage {
    fn from(message: &FromStage) -> Self {
        let kind = match message {
            FromStage::Accept => from_stage::Kind::Accept(proto::Nothing {}),
            FromStage::Decline(decline) => from_stage::Kind::Decline(proto::Decline {
                reason: decline.reason.code(),
                retry_after_micros: decline.retry_after.map(|span| span.0),
            }),
            FromStage::Token(token) => from_stage::Kind::Token(token.into()),
            FromStage::Pong(number) => from_stage::Kind::Pong(*number),
            FromStage::Failed(failure) => from_stage::Kind::Failed(failure.into()),
            FromStage::Settled(report) => from_stage::Kind::Settled((*report).into()),
            FromStage::NotSettled(refusal) => from_stage::Kind::NotSettled((*refusal).into()),
            FromStage::Rejoined(rejoined) => from_stage::Kind::Rejoined(rejoined.into()),
            FromStage::HopBroken(broken) => from_stage::Kind::HopBroken((*broken).into()),
            FromStage::Leaving => from_stage::Kind::Leaving(proto::Nothing {}),
            FromStage::Committed(signed) => from_stage::Kind::Committed(signed.to_bytes()),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<proto::TokenOut> for TokenOut {
    type Error = BadMessage;

    fn try_from(token: proto::TokenOut) -> Result<Self, BadMessage> {
        let finish = match token.finish {
            0 => None,
            code => Some(TailFinish::from_code(code)?),
        };
        Ok(Self {
            epoch: Epoch(token.epoch),
            position: Position(token.position),
            token: Token(token.token),
            finish,
            logprobs: token.logprobs.map(TryInto::try_into).transpose()?,
        })
    }
}

impl From<&TokenOut> for proto::TokenOut {
    fn from(token: &TokenOut) -> Self {
        Self {
            epoch: token.epoch.0,
            position: token.position.0,
            token: token.token.0,
            finish: token.finish.map_or(0, TailFinish::code),
            logprobs: token.logprobs.as_ref().map(Into::into),
        }
    }
}

impl TryFrom<proto::TokenLogprobs> for TokenLogprobs {
    type Error = BadMessage;

    fn try_from(logprobs: proto::TokenLogprobs) -> Result<Self, BadMessage> {
        const FIELD: &str = "log-probabilities";
        at_most(FIELD, logprobs.tokens.len(), MAX_LOGPROBS)?;
        for &value in logprobs.values.iter().chain([&logprobs.chosen]) {
            finite(FIELD, value)?;
        }
        let top = paired(FIELD, logprobs.tokens.into_iter().map(Token).collect(), logprobs.values)?;
        if !top.is_sorted_by(|better, worse| better.1 >= worse.1) {
            return Err(BadMessage::Disorder { field: FIELD });
        }
        Ok(Self { chosen: logprobs.chosen, top })
    }
}

impl From<&TokenLogprobs> for proto::TokenLogprobs {
    fn from(logprobs: &TokenLogprobs) -> Self {
        let (tokens, values) = logprobs.top.iter().map(|(token, value)| (token.0, *value)).unzip();
        Self { chosen: logprobs.chosen, tokens, values }
    }
}

impl TryFrom<proto::Rejoined> for Rejoined {
    type Error = BadMessage;

    fn try_from(rejoined: proto::Rejoined) -> Result<Self, BadMessage> {
        at_most("heard tokens", rejoined.heard.len(), MAX_FEED)?;
        let journal = within("journal", Position(rejoined.journal), Position(0)..=Position(rejoined.length))?;
        Ok(Self {
            epoch: Epoch(rejoined.epoch),
            length: Position(rejoined.length),
            journal,
            heard: rejoined.heard.into_iter().map(Token).collect(),
        })
    }
}

impl From<&Rejoined> for proto::Rejoined {
    fn from(rejoined: &Rejoined) -> Self {
        Self {
            epoch: rejoined.epoch.0,
            length: rejoined.length.0,
            journal: rejoined.journal.0,
            heard: rejoined.heard.iter().map(|token| token.0).collect(),
        }
    }
}

impl TryFrom<proto::HopBroken> for HopBroken {
    type Error = BadMessage;

    fn try_from(broken: proto::HopBroken) -> Result<Self, BadMessage> {
        let (stage, peer) = neighbour(&required("broken hop", broken.neighbour)?)?;
        let how = if broken.breach { Break::Breach } else { Break::Lost };
        Ok(Self { epoch: Epoch(broken.epoch), stage, peer, how })
    }
}

impl From<HopBroken> for proto::HopBroken {
    fn from(broken: HopBroken) -> Self {
        let neighbour = proto::Neighbour { stage: broken.stage.0.into(), peer: broken.peer.as_bytes().to_vec().into() };
        Self { epoch: broken.epoch.0, neighbour: Some(neighbour), breach: broken.how == Break::Breach }
    }
}

impl TryFrom<proto::StageFailure> for StageFailure {
    type Error = BadMessage;

    fn try_from(failure: proto::StageFailure) -> Result<Self, BadMessage> {
        Ok(match required("stage failure", failure.kind)? {
            stage_failure::Kind::HopLost(lost) => {
                let (stage, peer) = neighbour(&lost)?;
                Self::HopLost { stage, peer }
            }
            stage_failure::Kind::BadFrame(bad) => {
                let (stage, peer) = neighbour(&bad)?;
                Self::BadFrame { stage, peer }
            }
            stage_failure::Kind::Engine(message) => {
                Self::Engine(printable("engine failure", message, MAX_ENGINE_MESSAGE)?)
            }
            stage_failure::Kind::Plain(code) => match PlainFailure::try_from(code) {
                Ok(PlainFailure::NonFinite) => Self::NonFinite,
                Ok(PlainFailure::Expired) => Self::Expired,
                Ok(PlainFailure::Draining) => Self::Draining,
                Ok(PlainFailure::BadRequest) => Self::BadRequest,
                Ok(PlainFailure::Stuck) => Self::Stuck,
                Ok(PlainFailure::Unspecified) | Err(_) => {
                    return Err(BadMessage::Unknown { field: "stage failure", got: i64::from(code) });
                }
            },
        })
    }
}

fn neighbour(neighbour: &proto::Neighbour) -> Result<(StageIndex, PeerKey), BadMessage> {
    let stage = StageIndex(short("failed stage", neighbour.stage)?);
    Ok((stage, PeerKey::new(array("failed peer", &neighbour.peer)?)))
}

impl From<&StageFailure> for proto::StageFailure {
    fn from(failure: &StageFailure) -> Self {
        let at = |stage: &StageIndex, peer: &PeerKey| proto::Neighbour {
            stage: stage.0.into(),
            peer: peer.as_bytes().to_vec().into(),
        };
        let plain = |failure: PlainFailure| stage_failure::Kind::Plain(failure as i32);
        let kind = match failure {
            StageFailure::HopLost { stage, peer } => stage_failure::Kind::HopLost(at(stage, peer)),
            StageFailure::BadFrame { stage, peer } => stage_failure::Kind::BadFrame(at(stage, peer)),
            StageFailure::Engine(words) => stage_failure::Kind::Engine(text::printable(words, MAX_ENGINE_MESSAGE)),
            StageFailure::NonFinite => plain(PlainFailure::NonFinite),
            StageFailure::Expired => plain(PlainFailure::Expired),
            StageFailure::Draining => plain(PlainFailure::Draining),
            StageFailure::BadRequest => plain(PlainFailure::BadRequest),
            StageFailure::Stuck => plain(PlainFailure::Stuck),
        };
        Self { kind: Some(kind) }
    }
}

impl From<proto::StageReport> for StageReport {
    fn from(report: proto::StageReport) -> Self {
        Self {
            positions: Position(report.positions),
            payload: Bytes(report.payload_bytes),
            frames: report.frames,
            busy: Span(report.busy_micros),
        }
    }
}

impl From<StageReport> for proto::StageReport {
    fn from(report: StageReport) -> Self {
        Self {
            positions: report.positions.0,
            payload_bytes: report.payload.0,
            frames: report.frames,
            busy_micros: report.busy.0,
        }
    }
}

impl TryFrom<proto::NotSettled> for SettleRefusal {
    type Error = BadMessage;

    fn try_from(refusal: proto::NotSettled) -> Result<Self, BadMessage> {
        Ok(match required("settle refusal", refusal.kind)? {
            not_settled::Kind::Invalid(_) => Self::Invalid,
            not_settled::Kind::TooLittle(counted) => Self::TooLittle { counted: Mflop(counted) },
            not_settled::Kind::Fork(_) => Self::Fork,
            not_settled::Kind::NotStored(_) => Self::NotStored,
        })
    }
}

impl From<SettleRefusal> for proto::NotSettled {
    fn from(refusal: SettleRefusal) -> Self {
        let kind = match refusal {
            SettleRefusal::Invalid => not_settled::Kind::Invalid(proto::Nothing {}),
            SettleRefusal::TooLittle { counted } => not_settled::Kind::TooLittle(counted.0),
            SettleRefusal::Fork => not_settled::Kind::Fork(proto::Nothing {}),
            SettleRefusal::NotStored => not_settled::Kind::NotStored(proto::Nothing {}),
        };
        Self { kind: Some(kind) }
    }
}

same_names!(DeclineReason, "decline reason":
    NotHeld NoMemory Busy Draining DownstreamUnreachable UpstreamMissing BadOffer NotAllowed Fenced);
same_names!(TailFinish, "finish": EndOfGeneration MaxTokens Budget);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::samples;

    fn read(message: &FromStage) -> Result<FromStage, BadMessage> {
        FromStage::decode(&message.encode(), samples::network())
    }

    #[test]
    fn a_feed_has_tokens_within_the_limit() {
        let feed = |first, count| Feed { first: Position(first), tokens: vec![Token(7); count], last: LastFeed::Yes };
        let refused = |feed: Feed| ToStage::decode(&ToStage::Feed(feed).encode(), samples::network()).is_err();

        assert!(!refused(feed(0, MAX_FEED)));
        assert!(refused(feed(0, MAX_FEED + 1)));
        assert!(refused(feed(0, 0)));
        assert!(refused(feed(u32::MAX, 1)));
    }

    #[test]
    fn an_engine_failure_is_cut_to_what_may_be_sent() {
        let long = FromStage::Failed(StageFailure::Engine("é\n".repeat(500)));

        assert_eq!(read(&long), Ok(FromStage::Failed(StageFailure::Engine("é".repeat(100)))));
    }

    #[test]
    fn log_probabilities_are_finite_ordered_and_few() {
        let token = |chosen, top: &[f32]| {
            let top = (0..).map(Token).zip(top.iter().copied()).collect();
            FromStage::Token(TokenOut { logprobs: Some(TokenLogprobs { chosen, top }), ..samples::token_out() })
        };

        assert!(read(&token(-0.5, &[-0.5, -0.5, -2.0])).is_ok());
        assert!(read(&token(f32::NAN, &[])).is_err());
        assert!(read(&token(-0.5, &[-0.5, f32::NEG_INFINITY])).is_err());
        assert!(read(&token(-0.5, &[-2.0, -0.5])).is_err());
        assert!(read(&token(-0.5, &[-1.0; MAX_LOGPROBS + 1])).is_err());
    }

    #[test]
    fn a_journal_ends_where_the_cache_does() {
        let rejoined = |length, journal| {
            let (length, journal) = (Position(length), Position(journal));
            FromStage::Rejoined(Rejoined { epoch: Epoch(2), length, journal, heard: vec![Token(7)] })
        };

        assert!(read(&rejoined(9, 0)).is_ok() && read(&rejoined(9, 9)).is_ok());
        assert!(read(&rejoined(9, 10)).is_err());
    }

    #[test]
    fn every_reason_has_a_number_of_its_own() {
        let reasons = (1..=9).map(DeclineReason::from_code).collect::<Result<Vec<_>, _>>().unwrap();

        assert_eq!(reasons.iter().map(|reason| reason.code()).collect::<Vec<_>>(), (1..=9).collect::<Vec<_>>());
        assert_eq!(DeclineReason::from_code(0), Err(BadMessage::Unknown { field: "decline reason", got: 0 }));
        assert_eq!(DeclineReason::from_code(10), Err(BadMessage::Unknown { field: "decline reason", got: 10 }));
    }
}
