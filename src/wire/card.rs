//! A model's card: the little that is gossiped, at most 1 KiB; the manifest is fetched by its hash.

use crate::amounts::Bytes;
use crate::amounts::Span;
use crate::ids::BootSeq;
use crate::ids::ModelId;
use crate::ids::PeerKey;

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
