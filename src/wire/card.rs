//! A model's card: the little that is gossiped, at most 1 KiB; the manifest is fetched by its hash.

use crate::amounts::Bytes;
use crate::amounts::Span;
use crate::ids::BootSeq;
use crate::ids::ModelId;
use crate::ids::PeerKey;
use crate::keys::Domain;
use crate::wire::bad::BadMessage;
use crate::wire::bad::array;
use crate::wire::bad::printable;
use crate::wire::bad::short;
use crate::wire::bad::within;
use crate::wire::doors;
use crate::wire::profile::MAX_VALID_FOR;
use crate::wire::proto;
use crate::wire::signed::SignedBody;

/// The longest name of an architecture, in bytes.
pub const MAX_ARCHITECTURE: usize = 32;

/// The longest name of a weight format, in bytes.
pub const MAX_QUANTISATION: usize = 16;

/// The longest title, in bytes; [`printable`](crate::wire::text::printable) cuts one to it.
pub const MAX_TITLE: usize = 96;

/// What a peer says about a model that it can serve the manifest of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelCard {
    /// Who says so; equals the signature's author.
    pub peer: PeerKey,
    /// Orders this peer's announcements.
    pub order: BootSeq,
    /// How long to believe it, counted by the receiver from first sight.
    pub valid_for: Span,
    /// The model.
    pub model: ModelId,
    /// Architecture by GGUF's name, at most 32 bytes. May be one that the receiver can't run.
    pub architecture: String,
    /// Units of the model.
    pub units: u16,
    /// Bytes of all tensors.
    pub bytes: Bytes,
    /// The most common weight format by bytes, by name, at most 16 bytes.
    pub quantisation: String,
    /// Positions that a session may have.
    pub context: u32,
    /// A title for people, at most 96 bytes of printable text; never a name to resolve without care.
    pub title: String,
}

doors!(ModelCard, 1_024);

impl SignedBody for ModelCard {
    const DOMAIN: Domain = Domain::Card;
    const MAX_BODY: usize = Self::MAX;

    fn decode_body(body: &[u8]) -> Result<Self, BadMessage> {
        Self::decode(body)
    }

    fn encode_body(&self) -> bytes::Bytes {
        self.encode()
    }

    fn author(&self) -> PeerKey {
        self.peer
    }
}

impl TryFrom<proto::ModelCard> for ModelCard {
    type Error = BadMessage;

    fn try_from(card: proto::ModelCard) -> Result<Self, BadMessage> {
        Ok(Self {
            peer: PeerKey::new(array("card peer", &card.peer)?),
            order: BootSeq { boot: card.boot, seq: card.seq },
            valid_for: within("card validity", Span(card.valid_for_micros), Span::ZERO..=MAX_VALID_FOR)?,
            model: ModelId::new(array("card model", &card.model)?),
            architecture: printable("card architecture", card.architecture, MAX_ARCHITECTURE)?,
            units: within("card units", short("card units", card.units)?, 1..=u16::MAX)?,
            bytes: Bytes(card.bytes),
            quantisation: printable("card quantisation", card.quantisation, MAX_QUANTISATION)?,
            context: card.context,
            title: printable("card title", card.title, MAX_TITLE)?,
        })
    }
}

impl From<&ModelCard> for proto::ModelCard {
    fn from(card: &ModelCard) -> Self {
        Self {
            peer: card.peer.as_bytes().to_vec().into(),
            boot: card.order.boot,
            seq: card.order.seq,
            valid_for_micros: card.valid_for.0,
            model: card.model.as_bytes().to_vec().into(),
            architecture: card.architecture.clone(),
            units: card.units.into(),
            bytes: card.bytes.0,
            quantisation: card.quantisation.clone(),
            context: card.context,
            title: card.title.clone(),
        }
    }
}
