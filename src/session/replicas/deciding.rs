//! Chains that differ: who is right, and what becomes of who is not.

use std::collections::BTreeSet;

use crate::amounts::Position;
use crate::amounts::Time;
use crate::ids::PeerKey;
use crate::ids::ReplicaIndex;
use crate::ids::Token;
use crate::session::outcome::Certainty;
use crate::session::outcome::GenerateFailure;
use crate::session::outcome::Lie;
use crate::session::replicas::Effect;
use crate::session::replicas::Replica;
use crate::session::replicas::Replicas;
use crate::session::replicas::State;
use crate::session::replicas::showing::Progress;
use crate::session::replicas::testimony;
use crate::session::replicas::testimony::Checkpoint;
use crate::session::replicas::testimony::Finding;
use crate::session::replicas::testimony::Testimonies;
use crate::session::requester::Fault;
use crate::session::requester::GRACE;
use crate::session::requester::Requester;
use crate::units::Stage;

/// The most chains that one answer is computed by, those that are over included (arbitrary: a few liars).
const MAX_CHAINS: usize = 8;

/// How long it has been known that chains differ.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doubt {
    pub(super) since: Time,
    /// Whether what must have been said by then is waited for no longer.
    pub(super) is_late: bool,
}

/// Two chains that contradict each other.
#[derive(Clone, Debug)]
pub(super) struct Dispute {
    position: Position,
    /// Who is to decide.
    pub(super) third: ReplicaIndex,
    /// Who is not to.
    pub(super) suspects: BTreeSet<PeerKey>,
    /// What is said if nobody does.
    pub(super) cause: GenerateFailure,
}

impl Doubt {
    const fn new(since: Time) -> Self {
        Self { since, is_late: false }
    }
}

impl Replicas {
    /// Takes note of whether chains differ at a position.
    pub(super) fn note(&mut self, position: Position) {
        if self.redundancy.is_compared() && testimony::differ(&self.testimonies(position)) {
            self.conflicts.insert(position);
        }
    }

    /// The third that is to decide has said something; the rest of it will not be long.
    pub(super) fn heard_third(&mut self, index: ReplicaIndex, now: Time) {
        let is_first =
            self.replicas.get(&index).is_some_and(|replica| replica.reach() == replica.first().plus(Position(1)));
        if is_first && self.dispute.as_ref().is_some_and(|dispute| dispute.third == index) {
            self.doubt = Some(Doubt::new(now));
        }
    }

    /// Decides what can be decided, in the order of the positions.
    pub(super) fn judge(&mut self, now: Time) {
        while let (Some(&position), Progress::Starting | Progress::Open | Progress::Closing(_)) =
            (self.conflicts.first(), self.progress)
        {
            let doubt = self.doubt.get_or_insert(Doubt::new(now));
            doubt.is_late |= doubt.since.after(GRACE) <= now;
            let is_late = doubt.is_late;
            match testimony::judge(&self.testimonies(position), &self.able(position, is_late), is_late) {
                Finding::Wait => return,
                Finding::Agreement => {
                    self.conflicts.remove(&position);
                }
                Finding::Wrong { wrong, right, at } => self.outvote(&wrong, right, at, position, now),
                // All that is left to say will be said when all are over.
                Finding::Tie { .. } | Finding::Babel { .. } if self.progress != Progress::Open => return,
                Finding::Tie { one, other, at } => return self.dispute(one, other, at, position, now),
                Finding::Babel { one, other, at } => {
                    let cause = self.disputed(one, other, at, position);
                    return self.fail(cause, now);
                }
            }
        }
        if self.conflicts.is_empty() {
            self.doubt = None;
        }
    }

    /// All chains are over: what is not decided stays so.
    pub(super) fn judge_what_is_left(&mut self, now: Time) {
        while let (Some(position), Progress::Closing(_)) = (self.conflicts.pop_first(), self.progress) {
            match testimony::judge(&self.testimonies(position), &BTreeSet::new(), true) {
                Finding::Agreement | Finding::Wait => {}
                Finding::Wrong { wrong, right, at } => self.outvote(&wrong, right, at, position, now),
                Finding::Tie { one, other, at } | Finding::Babel { one, other, at } => {
                    let lie = self.undecided(one, other, at, position);
                    self.caught(lie);
                    // What follows from it says no more.
                    self.conflicts.clear();
                }
            }
        }
    }

    /// What was shown is wrong if a chain contradicts it and no other says the same. Then there is no way on.
    pub(super) fn fail_if_contradicted(&mut self, position: Position, now: Time) {
        let shown = position.minus(self.job.prompt_length()).0 as usize;
        let Some(&shown) = self.shown.get(shown) else { return };
        let says = |(_, replica): (ReplicaIndex, &Replica)| Some(replica.vote(position)?.token == shown);
        let said: Vec<bool> = self.voices().filter_map(says).collect();
        if !said.is_empty() && !said.contains(&true) {
            self.fail_with_shown(position, now);
        }
    }

    /// What was shown is wrong, or may be.
    pub(super) fn fail_with_shown(&mut self, position: Position, now: Time) {
        let liar = self.lies.last().and_then(|lie| lie.suspects.first()).copied();
        let tails = self.replicas.values().filter_map(|replica| replica.stages().last()).copied();
        let mut named = liar.into_iter().chain(tails);
        if let (Some(one), other) = (named.next(), named.next()) {
            let (other, range) = (other.unwrap_or(one).peer, one.range);
            self.fail(GenerateFailure::Disputed { one: one.peer, other, range, position }, now);
        }
    }

    /// The first position at which what was shown is not what a chain computed whose word counts.
    pub(super) fn unfounded(&self) -> Option<Position> {
        let first = self.job.prompt_length();
        let mut shown = (first.0..).map(Position).zip(&self.shown);
        let is_founded = |&(position, token): &(Position, &Token)| {
            self.voices().any(|(_, replica)| replica.vote(position).is_some_and(|vote| vote.token == *token))
        };
        shown.find(|shown| !is_founded(shown)).map(|(position, _)| position)
    }

    fn testimonies(&self, position: Position) -> Testimonies<'_> {
        self.voices().map(|(index, replica)| (index, replica.testimony(position))).collect()
    }

    /// Who may still say something of a position.
    fn able(&self, position: Position, is_late: bool) -> BTreeSet<ReplicaIndex> {
        let third = self.dispute.as_ref().map(|dispute| dispute.third);
        let comes = |index: ReplicaIndex, replica: &Replica| {
            let is_behind = replica.reach() <= position.max(self.job.prompt_length());
            let is_on_its_way = third == Some(index) || replica.state == State::Starting || replica.is_steady();
            replica.is_alive() && (!is_late || (is_behind && is_on_its_way))
        };
        self.voices().filter(|(index, replica)| comes(*index, replica)).map(|(index, _)| index).collect()
    }

    /// Chains that most others contradict are wrong.
    fn outvote(&mut self, wrong: &[ReplicaIndex], right: ReplicaIndex, at: Checkpoint, position: Position, now: Time) {
        for &index in wrong {
            let lie = self.lie(index, right, at, position);
            let cause = self.disputed(index, right, at, position);
            let liars: BTreeSet<PeerKey> = lie.suspects.iter().map(|suspect| suspect.peer).collect();
            self.caught(lie);
            self.avoided.extend(&liars);
            let replica = self.replica(index);
            (replica.state, replica.is_ending) = (State::Outvoted, true);
            let effects = replica.requester.convict(&liars, cause);
            self.take(index, effects, now);
        }
        (self.doubt, self.dispute) = (None, None);
        let mut conflicts = std::mem::take(&mut self.conflicts);
        conflicts.retain(|&position| testimony::differ(&self.testimonies(position)));
        self.conflicts = conflicts;
        let first = self.job.prompt_length();
        for shown in (first.0..self.next().0).map(Position) {
            self.fail_if_contradicted(shown, now);
        }
    }

    fn caught(&mut self, lie: Lie) {
        if lie.certainty == Certainty::Proven {
            let reproach = |suspect: &Stage| Effect::Reproach(suspect.peer, Fault::Lied);
            self.effects.extend(lie.suspects.iter().map(reproach));
        }
        self.effects.push(Effect::Caught(Box::new(lie.clone())));
        self.lies.push(lie);
    }

    /// Of two chains that contradict each other, a third is to say which is right. It begins with the tokens before.
    fn dispute(&mut self, one: ReplicaIndex, other: ReplicaIndex, at: Checkpoint, position: Position, now: Time) {
        let cause = self.disputed(one, other, at, position);
        // The third has decided nothing, or there were too many.
        let is_asked = self.dispute.as_ref().is_some_and(|before| before.position == position);
        if is_asked || self.replicas.len() >= MAX_CHAINS {
            return self.fail(cause, now);
        }
        if let Some(before) = self.dispute.take() {
            let third = self.replica(before.third);
            (third.state, third.is_ending) = (State::Lost, true);
            let effects = third.requester.cancel(now);
            self.take(before.third, effects, now);
        }
        // The tail's word is on its way.
        let Some(known) = self.known_before(position, one) else { return };
        let third = ReplicaIndex(u16::try_from(self.replicas.len()).unwrap_or(u16::MAX));
        let both = [self.lie(one, other, at, position), self.lie(other, one, at, position)];
        let suspects = both.iter().flat_map(|lie| &lie.suspects).map(|suspect| suspect.peer).collect();
        let first = self.job.prompt_length().plus(Position(u32::try_from(known.len()).unwrap_or(u32::MAX)));
        let (requester, effects) = Requester::late(self.job_of(third), known, cause.clone(), now);
        self.replicas.insert(third, Replica::new(requester, first));
        self.effects.push(Effect::Waiting(cause.clone()));
        self.dispute = Some(Dispute { position, third, suspects, cause });
        self.take(third, effects, now);
    }

    /// The tokens after the prompt and before a position, as one of the chains has them.
    fn known_before(&self, position: Position, of: ReplicaIndex) -> Option<Vec<Token>> {
        let first = self.job.prompt_length();
        let replica = self.replicas.get(&of)?;
        let token = |at: u32| {
            let shown = self.shown.get(at.checked_sub(first.0)? as usize).copied();
            shown.or_else(|| replica.vote(Position(at)).map(|vote| vote.token))
        };
        (first.0..position.0).map(token).collect()
    }

    fn disputed(&self, one: ReplicaIndex, other: ReplicaIndex, at: Checkpoint, position: Position) -> GenerateFailure {
        let suspect =
            |of: ReplicaIndex, right: ReplicaIndex| self.lie(of, right, at, position).suspects.first().copied();
        match (suspect(one, other), suspect(other, one)) {
            (Some(one), Some(other)) => {
                GenerateFailure::Disputed { one: one.peer, other: other.peer, range: one.range, position }
            }
            // Chains without stages say nothing.
            (None, _) | (_, None) => GenerateFailure::Busy,
        }
    }

    fn lie(&self, of: ReplicaIndex, right: ReplicaIndex, at: Checkpoint, position: Position) -> Lie {
        let [of, right] = [of, right].map(|index| self.replicas[&index].testimony(position));
        let (suspects, certainty) = testimony::suspects(of, right, at);
        let evidence = testimony::evidence(&suspects, of, right);
        Lie { suspects, certainty, position, evidence }
    }

    fn undecided(&self, one: ReplicaIndex, other: ReplicaIndex, at: Checkpoint, position: Position) -> Lie {
        let (mut lie, against) = (self.lie(one, other, at, position), self.lie(other, one, at, position));
        lie.suspects.extend(against.suspects);
        Lie { certainty: Certainty::Undecided, ..lie }
    }
}
