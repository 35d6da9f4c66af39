//! What of this machine's models is given to other peers: manifests, vocabularies, and tensors piece by piece, none unverified.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::config::settings::Switch;
use crate::daemon::library::Library;
use crate::ids::BlobHash;
use crate::ids::ModelId;
use crate::ids::PeerKey;
use crate::mesh::BlobPiece;
use crate::mesh::BlobSource;
use crate::swarm::outline::Outline;
use crate::swarm::outline::PIECE;
use crate::units::UnitRange;
use crate::weights::catalogue::Place;
use crate::weights::lookup::Located;
use crate::weights::lookup::Missing;
use crate::wire::fetch::FetchPart;
use crate::wire::fetch::FetchRequest;

/// What is given to other peers, and what was found out in doing so.
#[derive(Debug)]
pub(super) struct Giving {
    /// Whether weights are given at all.
    weights: Switch,
    /// Who is given private models.
    allowed: BTreeSet<PeerKey>,
    /// Held while a tensor is hashed for its outline, so that it is done once however many ask.
    hashing: Mutex<()>,
    /// Tensors whose bytes turned out wrong, and that nobody has begun to fetch.
    damaged: Mutex<Vec<Missing>>,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Giving {
    pub(super) fn new(weights: Switch, allowed: BTreeSet<PeerKey>) -> Self {
        Self {
            weights,
            allowed,
            hashing: Mutex::default(),
            damaged: Mutex::default(),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
        }
    }
}

impl Library {
    /// The units of a model whose weights are here and given to others. The demo model needs no giving: every peer has it.
    pub(super) fn given(&self, model: ModelId) -> Vec<UnitRange> {
        let is_demo = self.entry(model).is_some_and(|entry| entry.weights == Place::Embedded);
        if is_demo || self.giving.weights == Switch::Off { Vec::new() } else { self.held(model) }
    }

    /// Whether tensors were found damaged since they were taken last.
    pub(super) fn has_damaged(&self) -> bool {
        !self.damaged().is_empty()
    }

    /// The tensors that were found damaged since the last time.
    pub(super) fn take_damaged(&self) -> Vec<Missing> {
        std::mem::take(&mut *self.damaged())
    }

    /// So many bytes of weights came from others.
    pub(super) fn received(&self, bytes: u64) {
        self.giving.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes of weights that were sent to others, and that came from others.
    pub(super) fn exchanged(&self) -> (u64, u64) {
        (self.giving.sent.load(Ordering::Relaxed), self.giving.received.load(Ordering::Relaxed))
    }

    /// Whether a peer may have a blob.
    fn may_have(&self, peer: PeerKey, blob: BlobHash) -> bool {
        self.giving.allowed.contains(&peer) || self.shelf().catalogue.is_public(blob)
    }

    fn description(&self, request: FetchRequest) -> Option<BlobPiece> {
        let bytes = self.blob(request.blob)?;
        let range = range(request, bytes.len());
        Some(BlobPiece { total: bytes.len() as u64, data: bytes.slice(range) })
    }

    /// A piece of a tensor, or of its outline. What the disk has damaged is not given.
    fn tensor(&self, located: &Located, request: FetchRequest) -> Option<BlobPiece> {
        if self.giving.weights == Switch::Off {
            return None;
        }
        let outline = self.trusted(located, self.outline(located))?;
        if request.part == FetchPart::Outline {
            let bytes = Bytes::from(outline.to_bytes());
            let range = range(request, bytes.len());
            return Some(BlobPiece { total: bytes.len() as u64, data: bytes.slice(range) });
        }
        // Only whole pieces can be verified.
        if request.offset % PIECE != 0 || request.offset >= located.bytes.0 {
            return None;
        }
        let mut data = Vec::new();
        let piece = request.offset / PIECE;
        let read = located.read(piece, &mut data).map(|()| outline.admits(piece, &data).then_some(()));
        self.trusted(located, read)?;
        data.truncate(request.length as usize);
        self.giving.sent.fetch_add(data.len() as u64, Ordering::Relaxed);
        Some(BlobPiece { total: located.bytes.0, data: data.into() })
    }

    fn outline(&self, located: &Located) -> io::Result<Option<Outline>> {
        if let Some(outline) = self.tensors().outline(located.tensor, located.bytes) {
            return Ok(Some(outline));
        }
        let _one_at_a_time = self.giving.hashing.lock().unwrap_or_else(PoisonError::into_inner);
        located.outline(self.tensors())
    }

    /// What was read of a tensor, if it could be and is right. If not, the tensor is to be fetched again.
    pub(super) fn trusted<T>(&self, located: &Located, read: io::Result<Option<T>>) -> Option<T> {
        match read {
            Ok(Some(read)) => return Some(read),
            Ok(None) => tracing::error!(tensor = %located.tensor.short(), "weights on this disk are damaged"),
            Err(error) => {
                tracing::error!(tensor = %located.tensor.short(), %error, "weights on this disk cannot be read");
            }
        }
        self.is_damaged(located.tensor);
        None
    }

    fn is_damaged(&self, tensor: BlobHash) {
        match self.shelf().catalogue.damaged(tensor) {
            Ok(missing) => self.damaged().extend(missing),
            Err(error) => tracing::error!(tensor = %tensor.short(), %error, "damaged weights cannot be set aside"),
        }
    }

    fn damaged(&self) -> MutexGuard<'_, Vec<Missing>> {
        self.giving.damaged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BlobSource for Library {
    fn piece(&self, peer: PeerKey, request: FetchRequest) -> Option<BlobPiece> {
        if !self.may_have(peer, request.blob) {
            return None;
        }
        let located = self.shelf().catalogue.locate(request.blob);
        match located {
            Some(located) => self.tensor(&located, request),
            None if request.part == FetchPart::Data => self.description(request),
            None => None,
        }
    }
}

/// What is asked for of so many bytes.
fn range(request: FetchRequest, bytes: usize) -> Range<usize> {
    let start = usize::try_from(request.offset).unwrap_or(usize::MAX).min(bytes);
    start..start.saturating_add(request.length as usize).min(bytes)
}
