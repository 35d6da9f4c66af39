//! What chains say of one position, and who of them is wrong. Pure functions.
//!
//! A row passes checkpoints on its way: the driver receives it, every stage sends it on and the next one receives it, and from what
//! the tail receives it chooses a token. Chains that compute the same say the same at every checkpoint that they have in common. Where
//! they first do not, somebody lies: whoever received what others did and made something else of it. Whose chain that is, most decide.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::ids::ReplicaIndex;
use crate::ids::RowsHash;
#[cfg(feature = "mutants")]
use crate::mutants::Mutant;
#[cfg(feature = "mutants")]
use crate::mutants::is_planted;
use crate::session::outcome::Certainty;
use crate::session::replicas::claims::Claimed;
use crate::session::replicas::replica::Vote;
use crate::units::Stage;
use crate::wire::commitment::Commitment;
use crate::wire::signed::Signed;

/// What one chain says of a position.
#[derive(Clone, Copy, Debug)]
pub(super) struct Testimony<'a> {
    /// The chain's stages.
    pub(super) stages: &'a [Stage],
    /// What they have committed themselves to.
    pub(super) claimed: Option<&'a Claimed>,
    /// The token at the position.
    pub(super) vote: Option<&'a Vote>,
    /// Whether all tokens before the position are known.
    pub(super) reaches: bool,
}

/// By chain.
pub(super) type Testimonies<'a> = BTreeMap<ReplicaIndex, Testimony<'a>>;

/// A place that a row passes: in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Checkpoint {
    /// The unit before which it lies.
    pub(super) boundary: u16,
    /// On which side of the hop.
    pub(super) side: Side,
}

/// The sides of a checkpoint, in the order in which a row passes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    /// What the stage before it sent.
    Sent,
    /// What the stage behind it received.
    Received,
    /// The token that the tail told the requester.
    Chosen,
}

/// What is said at a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Said<'a> {
    Rows(RowsHash),
    Token(&'a Vote),
}

/// What follows from all that is said of a position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// All say the same.
    Agreement,
    /// More has to be heard.
    Wait,
    /// Most agree against these.
    Wrong {
        /// Those who are wrong.
        wrong: Vec<ReplicaIndex>,
        /// One who is right.
        right: ReplicaIndex,
        /// Where they differ first.
        at: Checkpoint,
    },
    /// Two contradict each other, and nobody else is going to say anything.
    Tie {
        /// The one.
        one: ReplicaIndex,
        /// The other.
        other: ReplicaIndex,
        /// Where they differ first.
        at: Checkpoint,
    },
    /// No two say the same.
    Babel {
        /// One of them.
        one: ReplicaIndex,
        /// Another.
        other: ReplicaIndex,
        /// Where they differ first.
        at: Checkpoint,
    },
}

impl<'a> Testimony<'a> {
    /// What is said at each checkpoint.
    fn said(&self) -> BTreeMap<Checkpoint, Said<'a>> {
        let mut said = BTreeMap::new();
        for Commitment { range, received, sent, .. } in
            self.claimed.iter().flat_map(|claimed| claimed.values()).map(|signed| signed.value)
        {
            said.insert(Checkpoint { boundary: range.start(), side: Side::Received }, Said::Rows(received));
            // A tail that does not sample sends nothing.
            if sent != RowsHash::NOTHING {
                said.insert(Checkpoint { boundary: range.end(), side: Side::Sent }, Said::Rows(sent));
            }
        }
        if let (Some(vote), Some(tail)) = (self.vote, self.stages.last()) {
            said.insert(Checkpoint { boundary: tail.range.end(), side: Side::Chosen }, Said::Token(vote));
        }
        said
    }

    /// Whether every stage before the boundary has committed itself, and all tokens before are known.
    fn is_whole_to(&self, boundary: u16) -> bool {
        let mut end = 0;
        while let Some(signed) = self.claimed.and_then(|claimed| claimed.get(&end)) {
            end = signed.value.range.end();
        }
        self.reaches && boundary <= end
    }

    /// The stages, as they have committed themselves.
    fn committed_stages(&self) -> impl Iterator<Item = Stage> {
        self.stages.iter().map(|stage| {
            let signed = self.claimed.and_then(|claimed| claimed.get(&stage.range.start()));
            let same = signed.filter(|signed| signed.value.range == stage.range);
            same.map_or(*stage, |signed| Stage { peer: signed.author, range: stage.range })
        })
    }
}

/// Whether any two say different things.
pub(super) fn differ(testimonies: &Testimonies<'_>) -> bool {
    first_difference(testimonies).is_some()
}

/// Judges. `able` may say more; `is_late` if no more is waited for than what they have not come to yet.
pub(super) fn judge(testimonies: &Testimonies<'_>, able: &BTreeSet<ReplicaIndex>, is_late: bool) -> Finding {
    let Some((at, mut groups)) = first_difference(testimonies) else { return Finding::Agreement };
    let speakers: BTreeSet<ReplicaIndex> = groups.iter().flatten().copied().collect();
    let is_whole = speakers.iter().all(|speaker| testimonies[speaker].is_whole_to(at.boundary));
    if !is_whole && !is_late {
        return Finding::Wait;
    }
    groups.sort_by_key(|group| std::cmp::Reverse(group.len()));
    #[cfg(feature = "mutants")]
    if is_planted(Mutant::BelieveTheFewest) && groups[0].len() > groups[1].len() {
        return Finding::Wrong { wrong: groups[0].clone(), right: groups[1][0], at };
    }
    let (one, other) = (groups[0][0], groups[1][0]);
    if groups[0].len() > groups[1].len() {
        return Finding::Wrong { wrong: groups[1..].concat(), right: one, at };
    }
    if able.iter().any(|able| !speakers.contains(able)) {
        return Finding::Wait;
    }
    if speakers.len() == 2 { Finding::Tie { one, other, at } } else { Finding::Babel { one, other, at } }
}

/// The stages of a chain that may have lied if it differs from one that is right, first at a checkpoint.
pub(super) fn suspects(of: Testimony<'_>, right: Testimony<'_>, at: Checkpoint) -> (Vec<Stage>, Certainty) {
    let (said, truth) = (of.said(), right.said());
    let agreed: BTreeSet<Checkpoint> =
        said.range(..at).filter(|(place, said)| truth.get(place) == Some(said)).map(|(place, _)| *place).collect();
    let from = agreed.last().map_or(0, |place| place.boundary);
    let units = of.stages.last().map_or(0, |tail| tail.range.end());
    let is_suspect = |stage: &Stage| match at.side {
        // Either it says so wrongly, or the one before has not sent what it says: at the driver, the tail.
        Side::Received => {
            stage.range.start() == at.boundary
                || stage.range.end() == at.boundary
                || (at.boundary == 0 && stage.range.end() == units)
        }
        Side::Sent | Side::Chosen => from < stage.range.end() && stage.range.start() < at.boundary,
    };
    let suspects: Vec<Stage> = of.committed_stages().filter(is_suspect).collect();
    let is_proven = |stage: &Stage| {
        let input = Checkpoint { boundary: stage.range.start(), side: Side::Received };
        at.side == Side::Sent && stage.range.end() == at.boundary && agreed.contains(&input)
    };
    match &suspects[..] {
        [sole] if is_proven(sole) => (suspects, Certainty::Proven),
        _ => (suspects, Certainty::OneOfThem),
    }
}

/// What the suspects have signed, and what others have of the same units.
pub(super) fn evidence(suspects: &[Stage], of: Testimony<'_>, right: Testimony<'_>) -> Vec<Signed<Commitment>> {
    let concerns =
        |signed: &&Signed<Commitment>| suspects.iter().any(|suspect| suspect.range.overlaps(signed.value.range));
    let signed = |testimony: Testimony<'_>| -> Vec<Signed<Commitment>> {
        testimony.claimed.iter().flat_map(|claimed| claimed.values()).filter(concerns).cloned().collect()
    };
    [signed(of), signed(right)].concat()
}

/// Where chains differ first, and who says the same there, in the order of the chains.
fn first_difference(testimonies: &Testimonies<'_>) -> Option<(Checkpoint, Vec<Vec<ReplicaIndex>>)> {
    let mut places: BTreeMap<Checkpoint, Vec<(Said<'_>, Vec<ReplicaIndex>)>> = BTreeMap::new();
    for (&index, testimony) in testimonies {
        for (place, said) in testimony.said() {
            let groups = places.entry(place).or_default();
            match groups.iter_mut().find(|(other, _)| *other == said) {
                Some((_, group)) => group.push(index),
                None => groups.push((said, vec![index])),
            }
        }
    }
    let (place, groups) = places.into_iter().find(|(_, groups)| groups.len() > 1)?;
    Some((place, groups.into_iter().map(|(_, group)| group).collect()))
}
