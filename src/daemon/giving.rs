//! What of this machine's models is given to other peers: manifests, vocabularies, and tensors piece by piece, none unverified.

use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;
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

/// Outlines kept in memory, of 512 KiB at most (arbitrary: as many as there are streams, twice).
const OUTLINES: usize = 16;

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
    /// The outlines that were asked for last.
    outlines: Mutex<VecDeque<Arc<Outline>>>,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Giving {
    /// - `awaited`: what was found damaged before a restart
    pub(super) fn new(weights: Switch, allowed: BTreeSet<PeerKey>, awaited: Vec<Missing>) -> Self {
        Self {
            weights,
            allowed,
            hashing: Mutex::default(),
            damaged: Mutex::new(awaited),
            outlines: Mutex::default(),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
        }
    }
}

impl Library {
    /// The units of a model whose weights are here and given to others. The demo model needs no giving: every peer has it. Nobody could
    /// verify what was made here by quantising; others make it themselves.
    pub(super) fn given(&self, model: ModelId) -> Vec<UnitRange> {
        let is_demo = self.entry(model).is_some_and(|entry| entry.weights == Place::Embedded);
        if is_demo || self.is_derived(model) || self.giving.weights == Switch::Off {
            Vec::new()
        } else {
            self.held(model)
        }
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
        if !request.offset.is_multiple_of(PIECE) || request.offset >= located.bytes.0 {
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

    pub(super) fn outline(&self, located: &Located) -> io::Result<Option<Arc<Outline>>> {
        if let Some(outline) = self.remembered(located) {
            return Ok(Some(outline));
        }
        let kept = self.tensors().outline(located.tensor, located.bytes);
        let outline = match kept {
            Some(outline) => outline,
            None => {
                let _one_at_a_time = self.giving.hashing.lock().unwrap_or_else(PoisonError::into_inner);
                // Somebody else may have been quicker, also where it cannot be kept.
                if let Some(outline) = self.remembered(located) {
                    return Ok(Some(outline));
                }
                let Some(outline) = located.outline(self.tensors())? else { return Ok(None) };
                outline
            }
        };
        let outline = Arc::new(outline);
        let mut outlines = self.outlines();
        outlines.push_back(Arc::clone(&outline));
        if outlines.len() > OUTLINES {
            outlines.pop_front();
        }
        Ok(Some(outline))
    }

    fn remembered(&self, located: &Located) -> Option<Arc<Outline>> {
        let is_it = |outline: &&Arc<Outline>| (outline.blob(), outline.bytes()) == (located.tensor, located.bytes.0);
        self.outlines().iter().find(is_it).cloned()
    }

    fn outlines(&self) -> MutexGuard<'_, VecDeque<Arc<Outline>>> {
        self.giving.outlines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was read of a tensor, if it could be and is right. If it is wrong, the tensor is to be fetched again.
    pub(super) fn trusted<T>(&self, located: &Located, read: io::Result<Option<T>>) -> Option<T> {
        let tensor = located.tensor.short();
        match read {
            Ok(Some(read)) => return Some(read),
            Ok(None) => {
                tracing::error!(tensor, "weights on this disk are damaged");
                let damaged = self.shelf().catalogue.damaged(located);
                match damaged {
                    Ok(missing) => self.damaged().extend(missing),
                    Err(error) => tracing::error!(tensor, %error, "damaged weights cannot be set aside"),
                }
            }
            // It may have been set aside a moment ago, or there are too many open files.
            Err(error) => tracing::warn!(tensor, %error, "weights on this disk cannot be read"),
        }
        None
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
