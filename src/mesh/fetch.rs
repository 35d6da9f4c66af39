//! Fetching by hash: manifests and vocabularies whole, verified before anybody sees them; tensors piece by piece, which whoever asks
//! for them verifies.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use bytes::BytesMut;
use tokio::sync::Notify;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio::time::sleep_until;
use tokio::time::timeout;

use crate::ids::BlobHash;
use crate::ids::PeerKey;
use crate::mesh::error::FetchError;
use crate::mesh::error::StreamError;
use crate::mesh::streams::Greeted;
use crate::mesh::streams::MessageReader;
use crate::mesh::streams::MessageWriter;
use crate::wire::fetch::FetchAnswer;
use crate::wire::fetch::FetchPart;
use crate::wire::fetch::FetchRequest;
use crate::wire::fetch::MAX_BLOB;
use crate::wire::fetch::MAX_PIECE;
use crate::wire::fetch::MAX_TENSOR;

/// Fetch streams served at once; further ones wait, then hear `Busy` (arbitrary, holds 8 MiB of pieces at most).
const MAX_SERVED: usize = 8;

/// How long one stream may wait for a piece's turn where uploads are limited: so many streams are served as leaves that time.
const TURN: Duration = Duration::from_secs(10);

/// Of these, for one peer.
const MAX_SERVED_PER_PEER: usize = 2;

/// The furthest that sending may run ahead of the upload limit (arbitrary): what was not used is not saved up.
const BURST: Duration = Duration::from_millis(100);

/// How long a stream waits for a place before it hears `Busy`.
const PLACE_LIMIT: Duration = Duration::from_secs(2);

/// How long one piece may take to ask for or to come.
const PIECE_LIMIT: Duration = Duration::from_secs(20);

/// What this peer serves by hash.
pub trait BlobSource: Send + Sync + 'static {
    /// What `peer` asks for, or `None` if it is not here, or not for that peer. May read from disk.
    ///
    /// The piece has `length` bytes from `offset`, or fewer at the end.
    fn piece(&self, peer: PeerKey, request: FetchRequest) -> Option<BlobPiece>;
}

/// A piece of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobPiece {
    /// Length of all that could be asked for.
    pub total: u64,
    /// The bytes.
    pub data: Bytes,
}

/// Serves nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoBlobs;

impl BlobSource for NoBlobs {
    fn piece(&self, _: PeerKey, _: FetchRequest) -> Option<BlobPiece> {
        None
    }
}

/// Sends no faster than so many bytes a second, over all streams together.
struct Throttle {
    rate: u64,
    /// When what was sent so far is paid for.
    paid: Mutex<Instant>,
}

impl Throttle {
    fn new(rate: u64) -> Self {
        Self { rate: rate.max(1), paid: Mutex::new(Instant::now()) }
    }

    /// Waits until so many bytes may be sent.
    async fn pass(&self, bytes: u64) {
        let cost = Duration::from_micros(bytes.saturating_mul(1_000_000) / self.rate);
        let due = {
            let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            *paid = (*paid).max(now.checked_sub(BURST).unwrap_or(now)) + cost;
            *paid
        };
        sleep_until(due).await;
    }
}

/// Serves fetch streams, a bounded number at once and all of them together at a bounded rate.
#[derive(Clone)]
pub(super) struct Server {
    blobs: Arc<dyn BlobSource>,
    throttle: Option<Arc<Throttle>>,
    places: Arc<Semaphore>,
    peers: Arc<Mutex<BTreeMap<PeerKey, usize>>>,
    freed: Arc<Notify>,
}

/// A place at the server, given back when dropped.
struct Place {
    all: Option<OwnedSemaphorePermit>,
    peer: PeerKey,
    peers: Arc<Mutex<BTreeMap<PeerKey, usize>>>,
    freed: Arc<Notify>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = peers.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                peers.remove(&self.peer);
            }
        }
        drop(peers);
        drop(self.all.take());
        self.freed.notify_waiters();
    }
}

impl Server {
    /// - `upload`: bytes a second at most, if limited
    pub(super) fn new(blobs: Arc<dyn BlobSource>, upload: Option<u64>) -> Self {
        Self {
            blobs,
            throttle: upload.map(|rate| Arc::new(Throttle::new(rate))),
            places: Arc::new(Semaphore::new(places(upload))),
            peers: Arc::default(),
            freed: Arc::default(),
        }
    }

    /// Answers requests until the stream closes, goes silent or breaks the protocol.
    pub(super) async fn serve(self, peer: PeerKey, stream: Greeted) {
        let Greeted { mut reader, mut writer } = stream;
        let place = self.place(peer).await;
        loop {
            let request = match timeout(PIECE_LIMIT, reader.receive::<FetchRequest>()).await {
                Ok(Ok(Some(request))) => request,
                Ok(Ok(None)) | Err(_) => return,
                Ok(Err(error)) => {
                    tracing::debug!(peer = %peer.short(), %error, "ended a fetch");
                    return;
                }
            };
            let answer = if place.is_some() { self.answer(peer, request).await } else { FetchAnswer::Busy };
            self.pace(&answer).await;
            let sent = timeout(PIECE_LIMIT, writer.send(&answer)).await;
            if place.is_none() || !matches!(sent, Ok(Ok(()))) {
                // The caller sees the stream end.
                writer.close().await;
                return;
            }
        }
    }

    /// Waits as long as the upload limit asks for.
    async fn pace(&self, answer: &FetchAnswer) {
        if let (Some(throttle), FetchAnswer::Piece { data, .. }) = (&self.throttle, answer) {
            throttle.pass(data.len() as u64).await;
        }
    }

    /// A place, as soon as there is one; `None` if that takes too long.
    async fn place(&self, peer: PeerKey) -> Option<Place> {
        let free = async {
            loop {
                let freed = self.freed.notified();
                if let Some(place) = self.try_place(peer) {
                    return place;
                }
                freed.await;
            }
        };
        timeout(PLACE_LIMIT, free).await.ok()
    }

    fn try_place(&self, peer: PeerKey) -> Option<Place> {
        let all = Arc::clone(&self.places).try_acquire_owned().ok()?;
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let count = peers.entry(peer).or_default();
        if *count >= MAX_SERVED_PER_PEER {
            return None;
        }
        *count += 1;
        Some(Place { all: Some(all), peer, peers: Arc::clone(&self.peers), freed: Arc::clone(&self.freed) })
    }

    async fn answer(&self, peer: PeerKey, request: FetchRequest) -> FetchAnswer {
        let blobs = Arc::clone(&self.blobs);
        let read = tokio::task::spawn_blocking(move || blobs.piece(peer, request)).await;
        match read {
            Ok(Some(piece)) if piece.total <= MAX_TENSOR && piece.data.len() <= request.length as usize => {
                FetchAnswer::Piece { total: piece.total, data: piece.data }
            }
            Ok(_) => FetchAnswer::NotFound,
            Err(error) => {
                tracing::warn!(%error, "reading a blob failed");
                FetchAnswer::NotFound
            }
        }
    }
}

/// How many streams are served at once.
fn places(upload: Option<u64>) -> usize {
    let pieces = upload.map_or(u64::MAX, |rate| rate.saturating_mul(TURN.as_secs()) / u64::from(MAX_PIECE));
    usize::try_from(pieces).unwrap_or(MAX_SERVED).clamp(1, MAX_SERVED)
}

/// A fetch stream to a peer. Answers come in the order of the requests, of which several may be on their way.
#[derive(Debug)]
pub struct FetchClient {
    /// Whom it leads to.
    pub peer: PeerKey,
    /// Receives the answers.
    pub reader: MessageReader<FetchAnswer>,
    /// Sends the requests.
    pub writer: MessageWriter<FetchRequest>,
}

impl FetchClient {
    pub(super) fn new(peer: PeerKey, stream: Greeted) -> Self {
        let Greeted { reader, writer } = stream;
        Self { peer, reader: MessageReader::new(reader), writer: MessageWriter::new(writer) }
    }
}

/// Fetches a whole blob over one stream and verifies it.
pub(super) async fn fetch(peer: PeerKey, stream: Greeted, blob: BlobHash, max: u64) -> Result<Bytes, FetchError> {
    let Greeted { mut reader, mut writer } = stream;
    let limit = max.min(MAX_BLOB);
    let mut got = BytesMut::new();
    let mut expected = None;
    loop {
        let request = FetchRequest { blob, part: FetchPart::Data, offset: got.len() as u64, length: MAX_PIECE };
        let asked = async {
            writer.send(&request).await?;
            reader.receive::<FetchAnswer>().await
        };
        let silent = || FetchError::Silent { peer, limit: PIECE_LIMIT };
        let answer = timeout(PIECE_LIMIT, asked).await.map_err(|_| silent())??;
        let (total, data) = piece_of(answer, peer, blob)?;
        check_piece(peer, total, data.len() as u64, got.len() as u64, *expected.get_or_insert(total), limit)?;
        got.extend_from_slice(&data);
        if got.len() as u64 == total {
            break;
        }
    }
    writer.close().await;
    let hash = BlobHash::new(*blake3::hash(&got).as_bytes());
    if hash != blob {
        return Err(FetchError::WrongHash { expected: blob, got: hash });
    }
    Ok(got.freeze())
}

fn piece_of(answer: Option<FetchAnswer>, peer: PeerKey, blob: BlobHash) -> Result<(u64, Bytes), FetchError> {
    match answer {
        Some(FetchAnswer::Piece { total, data }) => Ok((total, data)),
        Some(FetchAnswer::NotFound) => Err(FetchError::NotFound { peer, blob }),
        Some(FetchAnswer::Busy) => Err(FetchError::Busy { peer }),
        None => Err(StreamError::Cut { what: "fetch answer" }.into()),
    }
}

fn check_piece(peer: PeerKey, total: u64, length: u64, had: u64, expected: u64, limit: u64) -> Result<(), FetchError> {
    let bad = |reason| Err(FetchError::BadPiece { peer, reason });
    if total > limit {
        return Err(FetchError::TooLarge { limit, got: total });
    }
    if total != expected {
        return bad("the length changed");
    }
    if had + length > total {
        return bad("it goes beyond the end");
    }
    if length == 0 && total != 0 {
        return bad("it is empty");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_line_serves_few_at_a_time() {
        assert_eq!([None, Some(10 << 20), Some(300 << 10), Some(1)].map(places), [8, 8, 2, 1]);
    }

    #[tokio::test]
    async fn what_was_not_used_of_the_limit_is_not_saved_up() {
        let throttle = Throttle::new(1_000_000);
        let begin = Instant::now();
        *throttle.paid.lock().unwrap() = begin.checked_sub(Duration::from_secs(60)).unwrap_or(begin);

        throttle.pass(150_000).await;
        throttle.pass(50_000).await;

        // 200 ms are to be paid, of which 100 may have been saved.
        assert!(begin.elapsed() >= Duration::from_millis(100));
        assert!(*throttle.paid.lock().unwrap() >= begin + Duration::from_millis(100));
    }
}
