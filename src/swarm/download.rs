//! One download: blobs from several peers at once, the rarest first, each piece from whoever is likely to bring it soonest.
//!
//! * **Rarest first**: of the blobs, the one that the fewest sources have; what only one peer has may be gone with it.
//! * **Fastest preferred**: a piece goes to the source whose queue, at its measured rate, ends first. Nobody has more than
//!   [`PER_SOURCE`] asks at a time, so a slow source holds up little, and memory is bounded by [`IN_FLIGHT`] pieces.
//! * **Impatience**: when nothing is left to be asked for, what has been on its way for long is asked of another as well.
//! * **Trust**: a source that sends a wrong piece or outline is never asked again. One that fails is left alone for a while, longer each time.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::amounts::Bytes;
use crate::amounts::Span;
use crate::amounts::Time;
use crate::ids::BlobHash;
use crate::ids::PeerKey;
use crate::swarm::outline::PIECE;
use crate::swarm::outline::pieces;

/// Asks that one source has at a time: one is on its way while the next is read.
pub const PER_SOURCE: usize = 4;

/// Asks on their way in all (arbitrary: 32 MiB of pieces).
pub const IN_FLIGHT: usize = 32;

/// Blobs begun and not complete, at most; their outlines are in memory.
pub const OPEN_BLOBS: usize = 16;

/// How long a source may bring nothing while something is asked of it.
pub const PATIENCE: Span = Span::seconds(30);

/// After so long what is on its way is asked of another, if there is nothing else to ask for (arbitrary).
const IMPATIENCE: Span = Span::seconds(2);

/// How long a source that failed is left alone; doubles each time.
const PAUSE: Span = Span::seconds(1);

/// The longest such pause.
const LONGEST_PAUSE: Span = Span::seconds(60);

/// How long a source that does not have a blob, or does not give it, is not asked for it again (arbitrary).
const REFUSED: Span = Span::seconds(30);

/// The rate at which a source counts from which nothing came yet, bytes a second (arbitrary: a home's line).
const UNKNOWN_RATE: u64 = 4 << 20;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// What the pieces of the blob hash to.
    Outline,
    /// A piece of that number.
    Piece(u64),
}

/// An ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ask {
    /// Of whom.
    pub peer: PeerKey,
    /// Of which blob.
    pub blob: BlobHash,
    /// What.
    pub part: Part,
}

/// How an ask failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The source has no such blob (any more).
    NotFound,
    /// It serves as many as it will at the moment.
    Busy,
    /// It could not be reached, or did not answer in time.
    Lost,
    /// What it sent is not what was asked for.
    Wrong,
}

/// What is to be done with a piece that has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Had {
    /// Nothing: it is there already, or not wanted any more.
    Twice,
    /// It is to be written.
    New,
    /// It is to be written, and the blob is whole with it.
    Last,
}

/// How far a blob is.
#[derive(Clone, Debug)]
struct Blob {
    bytes: u64,
    outline: Step,
    /// Pieces that nobody was asked for.
    missing: BTreeSet<u64>,
    /// Pieces that are there.
    had: u64,
}

/// How far the outline of a blob is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Missing,
    Asked,
    There,
}

/// Whoever has some of the blobs.
#[derive(Clone, Debug)]
struct Source {
    has: BTreeSet<BlobHash>,
    /// What it said it does not have, and until when to believe that.
    refused: BTreeMap<BlobHash, Time>,
    /// Bytes a second, smoothed; none before the first piece.
    rate: Option<u64>,
    in_flight: usize,
    /// When it brought something last.
    last: Time,
    /// Not to be asked before.
    until: Time,
    pause: Span,
}

impl Source {
    /// Whether it has the blob, as far as is known.
    fn gives(&self, blob: BlobHash) -> bool {
        self.has.contains(&blob) && !self.refused.contains_key(&blob)
    }

    /// Bytes a second, measured or taken for granted.
    fn pace(&self) -> u64 {
        self.rate.unwrap_or(UNKNOWN_RATE).max(1)
    }

    /// Microseconds until it would have brought one more piece.
    fn wait(&self) -> u64 {
        micros((self.in_flight as u64 + 1).saturating_mul(PIECE), self.pace())
    }
}

/// How long so many bytes take.
fn micros(bytes: u64, rate: u64) -> u64 {
    bytes.saturating_mul(1_000_000) / rate.max(1)
}

/// Blobs on their way here.
#[derive(Clone, Debug, Default)]
pub struct Download {
    blobs: BTreeMap<BlobHash, Blob>,
    /// Those of which something is there or on its way; at most [`OPEN_BLOBS`] that anybody has, but for what a restart found begun.
    open: BTreeSet<BlobHash>,
    /// Pieces of all blobs that nobody was asked for.
    left: u64,
    sources: BTreeMap<PeerKey, Source>,
    /// Who sent what was wrong.
    banned: BTreeSet<PeerKey>,
    /// Since when each ask has been on its way.
    asked: BTreeMap<Ask, Time>,
    /// Bytes of the blobs that were complete and are forgotten.
    done: Bytes,
}

impl Download {
    /// Wants a blob of so many bytes. `had` are the pieces that are there from before a restart, if its outline is.
    pub fn want(&mut self, blob: BlobHash, bytes: Bytes, had: Option<&BTreeSet<u64>>) {
        // A blob of one piece is its own outline.
        let outline = if had.is_some() || bytes.0 <= PIECE { Step::There } else { Step::Missing };
        let is_missing = |piece: &u64| had.is_none_or(|had| !had.contains(piece));
        let missing: BTreeSet<u64> = (0..pieces(bytes.0)).filter(is_missing).collect();
        let had = pieces(bytes.0) - missing.len() as u64;
        if missing.is_empty() {
            self.done = self.done.plus(bytes);
        } else {
            self.left += missing.len() as u64;
            if had > 0 {
                self.open.insert(blob);
            }
            self.blobs.insert(blob, Blob { bytes: bytes.0, outline, missing, had });
        }
    }

    /// Who has what, as far as is known now; whoever is not named any more is asked nothing more.
    pub fn sources(&mut self, sources: BTreeMap<PeerKey, BTreeSet<BlobHash>>) {
        self.sources.retain(|peer, source| sources.contains_key(peer) || source.in_flight > 0);
        self.sources.values_mut().for_each(|source| source.has.clear());
        for (peer, has) in sources {
            if self.banned.contains(&peer) {
                continue;
            }
            let new = Source {
                has: BTreeSet::new(),
                refused: BTreeMap::new(),
                rate: None,
                in_flight: 0,
                last: Time::ZERO,
                until: Time::ZERO,
                pause: PAUSE,
            };
            self.sources.entry(peer).or_insert(new).has = has;
        }
    }

    /// The asks that are to be made now. Each is answered by [`Self::outlined`], [`Self::had`] or [`Self::failed`].
    pub fn asks(&mut self, now: Time) -> Vec<Ask> {
        let mut asks = Vec::new();
        while self.asked.len() < IN_FLIGHT {
            let Some(ask) = self.next(now).or_else(|| self.again(now)) else { break };
            self.ask(ask, now);
            asks.push(ask);
        }
        asks
    }

    /// The outline of a blob is there, and leads to its hash.
    pub fn outlined(&mut self, ask: Ask, now: Time) {
        if self.answered(ask, None, now)
            && let Some(blob) = self.blobs.get_mut(&ask.blob)
        {
            blob.outline = Step::There;
        }
        self.forget_others(ask);
    }

    /// A piece is there, and is the right one. What is to be done with it.
    pub fn had(&mut self, ask: Ask, now: Time) -> Had {
        let Part::Piece(piece) = ask.part else { return Had::Twice };
        let Some(bytes) = self.blobs.get(&ask.blob).map(|blob| blob.bytes) else { return Had::Twice };
        let length = bytes.saturating_sub(piece.saturating_mul(PIECE)).min(PIECE);
        if !self.answered(ask, Some(length), now) {
            return Had::Twice;
        }
        self.forget_others(ask);
        let Some(blob) = self.blobs.get_mut(&ask.blob) else { return Had::Twice };
        blob.had += 1;
        if blob.had < pieces(bytes) {
            return Had::New;
        }
        self.blobs.remove(&ask.blob);
        self.open.remove(&ask.blob);
        self.done = self.done.plus(Bytes(bytes));
        Had::Last
    }

    /// An ask came to nothing. One that was given up may still fail.
    pub fn failed(&mut self, ask: Ask, failure: Failure, now: Time) {
        let is_news = self.forget(ask).is_some();
        if is_news {
            self.put_back(ask);
        }
        let Some(source) = self.sources.get_mut(&ask.peer) else { return };
        match failure {
            Failure::NotFound => {
                source.refused.insert(ask.blob, now.after(REFUSED));
            }
            // What fails together fails for one reason.
            Failure::Busy | Failure::Lost if is_news && source.until <= now => {
                source.until = now.after(source.pause);
                source.pause = source.pause.times(2).min(LONGEST_PAUSE);
            }
            Failure::Busy | Failure::Lost => {}
            Failure::Wrong => self.ban(ask.peer),
        }
    }

    /// Gives up asks that have taken too long; they have failed.
    pub fn on_tick(&mut self, now: Time) -> Vec<Ask> {
        let late = self.asked.iter().filter(|(ask, since)| self.heard(ask, **since).after(PATIENCE) <= now);
        let late: Vec<Ask> = late.map(|(ask, _)| *ask).collect();
        late.iter().for_each(|&ask| self.failed(ask, Failure::Lost, now));
        self.sources.values_mut().for_each(|source| source.refused.retain(|_, until| now < *until));
        late
    }

    /// When to come back with [`Self::on_tick`] and [`Self::asks`], if nothing is heard until then.
    pub fn deadline(&self, now: Time) -> Option<Time> {
        let late = self.asked.iter().map(|(ask, since)| self.heard(ask, *since).after(PATIENCE));
        let impatient = self.asked.values().map(|since| since.after(IMPATIENCE));
        let rested = self.sources.values().map(|source| source.until);
        late.chain(impatient).chain(rested).filter(|at| now < *at && !self.is_complete()).min()
    }

    /// Does not want a blob any more; what is on its way of it comes in vain.
    pub fn unwant(&mut self, blob: BlobHash) {
        let missing = self.blobs.remove(&blob).map_or(0, |blob| blob.missing.len());
        self.left = self.left.saturating_sub(missing as u64);
        self.open.remove(&blob);
        let vain: Vec<Ask> = self.asked.keys().filter(|ask| ask.blob == blob).copied().collect();
        for ask in vain {
            self.forget(ask);
        }
    }

    /// Bytes of a wanted blob that are there; none if it is not wanted, or is whole.
    pub fn there(&self, blob: BlobHash) -> Option<Bytes> {
        self.blobs.get(&blob).map(|blob| Bytes((blob.had * PIECE).min(blob.bytes)))
    }

    /// Whether all that was wanted is there.
    pub fn is_complete(&self) -> bool {
        self.blobs.is_empty()
    }

    /// Bytes that are there, and bytes wanted in all.
    pub fn progress(&self) -> (Bytes, Bytes) {
        let there: Bytes = self.blobs.keys().filter_map(|blob| self.there(*blob)).sum();
        let wanted: Bytes = self.blobs.values().map(|blob| Bytes(blob.bytes)).sum();
        (there.plus(self.done), wanted.plus(self.done))
    }

    /// Wanted blobs that no source has.
    pub fn unsourced(&self) -> Vec<BlobHash> {
        self.blobs.keys().filter(|blob| self.rarity(**blob) == 0).copied().collect()
    }

    fn rarity(&self, blob: BlobHash) -> usize {
        self.sources.values().filter(|source| source.gives(blob)).count()
    }

    /// The next thing that nobody was asked for.
    fn next(&self, now: Time) -> Option<Ask> {
        if !self.sources.values().any(|source| source.in_flight < PER_SOURCE && source.until <= now) {
            return None;
        }
        // What is begun is ended first, so that little is half done if all is lost.
        let begun = self.rarest(self.open.iter().copied(), now);
        begun.or_else(|| {
            let others = self.blobs.keys().filter(|blob| !self.open.contains(blob));
            // Those whose sources are gone hold nobody up.
            let open = self.open.iter().filter(|blob| self.rarity(**blob) > 0).count();
            (open < OPEN_BLOBS).then(|| self.rarest(others.copied(), now)).flatten()
        })
    }

    /// The next thing of the rarest of these blobs of which anything can be asked.
    fn rarest(&self, blobs: impl Iterator<Item = BlobHash>, now: Time) -> Option<Ask> {
        let mut order: Vec<(usize, BlobHash)> = blobs.map(|blob| (self.rarity(blob), blob)).collect();
        order.sort_unstable();
        order.into_iter().find_map(|(_, hash)| {
            let blob = self.blobs.get(&hash)?;
            let part = match blob.outline {
                Step::Missing => Part::Outline,
                Step::Asked => return None,
                Step::There => Part::Piece(*blob.missing.first()?),
            };
            Some(Ask { peer: self.soonest(hash, part, now)?, blob: hash, part })
        })
    }

    /// What has been on its way for long, of another.
    fn again(&self, now: Time) -> Option<Ask> {
        let is_slow = |(ask, since): &(&Ask, &Time)| since.after(IMPATIENCE) <= now && self.alike(**ask).len() == 1;
        let slow = self.asked.iter().filter(is_slow);
        let mut slow: Vec<(Time, Ask)> = slow.map(|(ask, since)| (*since, *ask)).collect();
        slow.sort_unstable();
        slow.into_iter().find_map(|(_, ask)| Some(Ask { peer: self.soonest(ask.blob, ask.part, now)?, ..ask }))
    }

    /// The source that is likely to bring it first. Near the end none that would take longer than the others take for all the rest.
    fn soonest(&self, blob: BlobHash, part: Part, now: Time) -> Option<PeerKey> {
        let able = || self.sources.iter().filter(move |(_, source)| source.gives(blob) && source.until <= now);
        let together: u64 = able().map(|(_, source)| source.pace()).sum();
        let left = self.left + self.asked.len() as u64;
        let rest = micros(left.saturating_mul(PIECE), together);
        let best = able().map(|(_, source)| source.wait()).min()?;
        let may = |(peer, source): &(&PeerKey, &Source)| {
            source.in_flight < PER_SOURCE
                && source.wait() <= rest.max(best)
                && !self.asked.contains_key(&Ask { peer: **peer, blob, part })
        };
        able().filter(may).min_by_key(|(peer, source)| (source.wait(), **peer)).map(|(peer, _)| *peer)
    }

    /// When the source of an ask brought something last, or was asked if that is later.
    fn heard(&self, ask: &Ask, since: Time) -> Time {
        self.sources.get(&ask.peer).map_or(since, |source| since.max(source.last))
    }

    fn ask(&mut self, ask: Ask, now: Time) {
        self.asked.insert(ask, now);
        if let Some(source) = self.sources.get_mut(&ask.peer) {
            source.in_flight += 1;
        }
        if let Some(blob) = self.blobs.get_mut(&ask.blob) {
            match ask.part {
                Part::Outline => blob.outline = Step::Asked,
                Part::Piece(piece) => {
                    self.left -= u64::from(blob.missing.remove(&piece));
                }
            }
            self.open.insert(ask.blob);
        }
    }

    /// A source has answered, with so many bytes of a piece. Whether that was still waited for.
    fn answered(&mut self, ask: Ask, bytes: Option<u64>, now: Time) -> bool {
        let Some(since) = self.forget(ask) else { return false };
        if let Some(source) = self.sources.get_mut(&ask.peer) {
            source.pause = PAUSE;
            // Before that it brought what was in its queue.
            let began = since.max(std::mem::replace(&mut source.last, now));
            if let Some(bytes) = bytes {
                let measured = bytes.saturating_mul(1_000_000) / now.since(began).0.max(1);
                source.rate =
                    Some(source.rate.map_or(measured, |rate| rate.saturating_mul(3).saturating_add(measured) / 4));
            }
        }
        true
    }

    /// An ask is not waited for any more; since when it was.
    fn forget(&mut self, ask: Ask) -> Option<Time> {
        let since = self.asked.remove(&ask)?;
        if let Some(source) = self.sources.get_mut(&ask.peer) {
            source.in_flight = source.in_flight.saturating_sub(1);
        }
        Some(since)
    }

    /// Others that were asked for the same bring it in vain.
    fn forget_others(&mut self, ask: Ask) {
        for other in self.alike(ask) {
            self.forget(other);
        }
    }

    /// Asks for the same.
    fn alike(&self, ask: Ask) -> Vec<Ask> {
        self.asked.keys().filter(|other| (other.blob, other.part) == (ask.blob, ask.part)).copied().collect()
    }

    /// It is to be asked of another, unless another was asked already.
    fn put_back(&mut self, ask: Ask) {
        if !self.alike(ask).is_empty() {
            return;
        }
        let Some(blob) = self.blobs.get_mut(&ask.blob) else { return };
        match ask.part {
            Part::Outline => {
                blob.outline = Step::Missing;
                if blob.had == 0 {
                    self.open.remove(&ask.blob);
                }
            }
            Part::Piece(piece) => {
                self.left += u64::from(blob.missing.insert(piece));
            }
        }
    }

    fn ban(&mut self, peer: PeerKey) {
        self.banned.insert(peer);
        self.sources.remove(&peer);
        let lost: Vec<Ask> = self.asked.keys().filter(|ask| ask.peer == peer).copied().collect();
        for ask in lost {
            self.asked.remove(&ask);
            self.put_back(ask);
        }
    }
}

#[cfg(test)]
mod tests;
