//! One source of weights: a stream to a peer, on which several things are asked for at a time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::daemon::pull::Heard;
use crate::daemon::pull::target::NotTaken;
use crate::daemon::pull::target::Target;
use crate::ids::PeerKey;
use crate::mesh::Fault;
use crate::mesh::FetchClient;
use crate::mesh::Mesh;
use crate::swarm::download::Ask;
use crate::swarm::download::Failure;
use crate::swarm::download::Part;
use crate::swarm::outline::PIECE;
use crate::wire::fetch::FetchAnswer;
use crate::wire::fetch::FetchPart;
use crate::wire::fetch::FetchRequest;
use crate::wire::fetch::MAX_PIECE;

/// How long a request may take to be sent. It is short, so only a peer that reads nothing any more takes long.
const SEND_LIMIT: Duration = Duration::from_secs(10);

/// Something to be asked for.
#[derive(Debug)]
pub(super) struct Errand {
    pub(super) ask: Ask,
    pub(super) target: Arc<Target>,
}

/// Asks a peer for what it is sent for, until nobody sends it any more or the stream ends. What was not answered then has failed.
pub(super) async fn run(
    mesh: Mesh,
    peer: PeerKey,
    serial: u64,
    mut errands: mpsc::Receiver<Errand>,
    heard: mpsc::Sender<Heard>,
) {
    let mut waiting = VecDeque::new();
    let failure = match mesh.open_fetch(peer).await {
        Ok(client) => talk(client, &mut errands, &mut waiting, &heard).await,
        Err(error) => {
            tracing::debug!(peer = %peer.short(), %error, "a source of weights cannot be reached");
            Failure::Lost
        }
    };
    errands.close();
    while let Ok(errand) = errands.try_recv() {
        waiting.push_back(errand);
    }
    for errand in waiting {
        tell(&heard, Heard::Failed(errand.ask, errand.target, failure)).await;
    }
    tell(&heard, Heard::Ended(peer, serial)).await;
}

/// How what was not answered has failed.
async fn talk(
    client: FetchClient,
    errands: &mut mpsc::Receiver<Errand>,
    waiting: &mut VecDeque<Errand>,
    heard: &mpsc::Sender<Heard>,
) -> Failure {
    let FetchClient { peer, mut reader, mut writer } = client;
    loop {
        tokio::select! {
            errand = errands.recv() => {
                let Some(errand) = errand else { return Failure::Lost };
                let request = request(&errand);
                waiting.push_back(errand);
                if !matches!(timeout(SEND_LIMIT, writer.send(&request)).await, Ok(Ok(()))) {
                    tracing::debug!(peer = %peer.short(), "a source of weights takes no requests");
                    return Failure::Lost;
                }
            }
            answer = reader.receive() => match answer {
                Ok(Some(answer)) => match waiting.pop_front() {
                    Some(errand) => judge(errand, answer, heard).await,
                    // Nobody asked.
                    None => return Failure::Wrong,
                },
                Ok(None) => return Failure::Lost,
                Err(error) => {
                    tracing::debug!(peer = %peer.short(), %error, "a source of weights is lost");
                    return failure(error.fault());
                }
            },
        }
    }
}

const fn failure(fault: Fault) -> Failure {
    match fault {
        Fault::Peer => Failure::Wrong,
        Fault::Network | Fault::Local => Failure::Lost,
    }
}

fn request(errand: &Errand) -> FetchRequest {
    let (part, offset, length) = match errand.ask.part {
        Part::Outline => (FetchPart::Outline, 0, errand.target.outline_bytes()),
        Part::Piece(piece) => (FetchPart::Data, piece.saturating_mul(PIECE), PIECE),
    };
    let length = u32::try_from(length).unwrap_or(MAX_PIECE).clamp(1, MAX_PIECE);
    FetchRequest { blob: errand.ask.blob, part, offset, length }
}

/// Holds an answer against what is wanted, beside the stream: hashing and writing take longer than reading the next one.
async fn judge(errand: Errand, answer: FetchAnswer, heard: &mpsc::Sender<Heard>) {
    let Errand { ask, target } = errand;
    let (total, data) = match answer {
        FetchAnswer::Piece { total, data } => (total, data),
        FetchAnswer::NotFound => return tell(heard, Heard::Failed(ask, target, Failure::NotFound)).await,
        FetchAnswer::Busy => return tell(heard, Heard::Failed(ask, target, Failure::Busy)).await,
    };
    let heard = heard.clone();
    tokio::spawn(async move {
        let (length, taker) = (data.len() as u64, Arc::clone(&target));
        let worked = tokio::task::spawn_blocking(move || match ask.part {
            Part::Outline => taker.take_outline(total, &data),
            Part::Piece(piece) => taker.take_piece(piece, total, &data),
        });
        let news = match worked.await {
            Ok(Ok(())) => Heard::Taken(ask, target, length),
            Ok(Err(NotTaken::Wrong)) => Heard::Failed(ask, target, Failure::Wrong),
            Ok(Err(NotTaken::Other)) => Heard::Failed(ask, target, Failure::NotFound),
            Ok(Err(NotTaken::Early)) => Heard::Failed(ask, target, Failure::Lost),
            Ok(Err(NotTaken::Disk(error))) => Heard::Disk(ask, target, error),
            Err(error) => {
                tracing::error!(%error, "a piece could not be taken");
                Heard::Failed(ask, target, Failure::Lost)
            }
        };
        tell(&heard, news).await;
    });
}

async fn tell(heard: &mpsc::Sender<Heard>, news: Heard) {
    // The puller that is gone needs no news.
    let _ = heard.send(news).await;
}
