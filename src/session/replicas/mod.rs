//! One answer, computed by one chain, or by several of different peers that are compared.
//!
//! ```text
//!   user ◀── tokens that chains agree on ── Replicas ──▶ Requester 0 ──▶ chain 0
//!                                              │ ├─────▶ Requester 1 ──▶ chain 1
//!                                              │ └─────▶ Requester 2 ──▶ chain 2
//!             commitments and tokens of all ───┘
//!             differ: most are right; of two that differ, a third is leased to decide
//! ```
//!
//! Every chain is an ordinary session with a name of its own, led by an ordinary [`Requester`], and mended like any. All compute from
//! the same tokens, with the same parameters, round at the same units and are cut at the same units, so their stages can be compared
//! one by one: with one arithmetic class they say the same, bit for bit.
//!
//! *Showing.* With two chains a token is shown when both have it, with three when two have. A chain that is being mended, or is behind
//! because it was, is not waited for: the others are a hot standby, without a replay in the reader's way. It is compared when it comes
//! to what was shown.
//!
//! *Judging.* Where chains differ (see `testimony`), the one that most contradict is outvoted: it is cancelled, whoever lied is not
//! paid and not asked again, and what was signed is kept. If two chains contradict each other, nothing more is shown; a third is leased
//! without the suspects, begins with the tokens that both agree on, and decides. If there is none within the job's patience, or
//! what was shown turns out to be wrong, the answer fails: it is never silently wrong.
//!
//! Redundancy of whole chains, and not of single stages, is what keeps every stage as simple as it is: none of them knows that it is
//! compared, and a chain that is lost costs nothing but its own mending.

mod claims;
mod deciding;
mod replica;
mod showing;
mod testimony;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::mem;

use crate::amounts::Position;
use crate::amounts::Time;
use crate::ids::PeerKey;
use crate::ids::ReplicaIndex;
use crate::ids::SessionId;
use crate::ids::StreamId;
use crate::ids::Token;
use crate::session::outcome::Finish;
use crate::session::outcome::GenerateFailure;
use crate::session::outcome::Lie;
use crate::session::outcome::Mended;
use crate::session::replicas::deciding::Dispute;
use crate::session::replicas::deciding::Doubt;
use crate::session::replicas::replica::Replica;
use crate::session::replicas::replica::State;
use crate::session::replicas::replica::Vote;
use crate::session::replicas::showing::Progress;
use crate::session::requester;
use crate::session::requester::Fault;
use crate::session::requester::GRACE;
use crate::session::requester::Job;
use crate::session::requester::Requester;
use crate::session::streams::CloseCause;
use crate::session::streams::OpenFailure;
use crate::session::streams::StreamIds;
use crate::units::Chain;
use crate::units::Stage;
use crate::units::UnitWeights;
use crate::wire::control::Commits;
use crate::wire::control::FromStage;
use crate::wire::control::ToStage;
use crate::wire::control::TokenLogprobs;
use crate::wire::credit::CreditEntry;
use crate::wire::credit::CreditLine;

/// How many chains compute one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redundancy(u8);

impl Redundancy {
    /// One chain, compared with nobody.
    pub const NONE: Self = Self(1);

    /// The most chains that can be asked for. With three, one that is wrong or lost is outvoted; more would only cost more.
    pub const MOST: u8 = 3;

    /// So many chains, if that is `1..=MOST`.
    pub fn new(chains: u8) -> Option<Self> {
        (1..=Self::MOST).contains(&chains).then_some(Self(chains))
    }

    /// How many chains.
    pub const fn chains(self) -> u8 {
        self.0
    }

    fn is_compared(self) -> bool {
        self != Self::NONE
    }
}

/// What is asked for. To be done in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// So many chains are wanted, no unit of two at one peer: [`Replicas::begin`] or [`Replicas::too_few`] answers.
    Begin(Redundancy),
    /// A chain is wanted for one replica, as [`Replicas::wish`] says: [`Replicas::lease`] or [`Replicas::no_chain`] answers.
    Plan(ReplicaIndex),
    /// Open a control stream to a stage's peer.
    OpenControl(StreamId, PeerKey),
    /// Send on a control stream.
    Send(StreamId, ToStage),
    /// Send what is queued, then end the stream.
    Close(StreamId),
    /// Every stage of every chain has accepted; the chain that leads.
    Started(Chain),
    /// The answer waits, for this reason.
    Waiting(GenerateFailure),
    /// A chain goes on in another form.
    Mended(Mended),
    /// A new token.
    Token {
        /// Its position.
        position: Position,
        /// The token.
        token: Token,
        /// Log-probabilities if asked for.
        logprobs: Option<TokenLogprobs>,
    },
    /// A lie was found.
    Caught(Box<Lie>),
    /// Sign and store what is owed; [`Replicas::on_signed`] or [`Replicas::on_not_signed`] answers.
    Owe {
        /// The chain's session.
        session: SessionId,
        /// Positions computed.
        positions: Position,
        /// What each stage is owed.
        lines: Vec<CreditLine>,
    },
    /// The peer did as it promised.
    Praise(PeerKey),
    /// The peer did not.
    Reproach(PeerKey, Fault),
    /// The answer ended as it should.
    Finished(Finish),
    /// It ended early.
    Failed(GenerateFailure),
    /// The answer is over; forget it.
    Ended,
}

/// What a chain is to be like that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Peers that it is to do without.
    pub avoided: BTreeSet<PeerKey>,
    /// Hops that it is to do without, from the first peer to the second.
    pub severed: BTreeSet<(PeerKey, PeerKey)>,
    /// The stages that it is to keep, if it is one that is mended.
    pub survivors: Option<Vec<Stage>>,
    /// What the other chains serve: it is to be of other peers, or else each unit.
    pub others: Vec<Stage>,
    /// Whether it may share even a unit with them, if there is no other way: it is to decide between them.
    pub decides: bool,
    /// Unit boundaries at which it is to be cut, as the others are.
    pub cuts: BTreeSet<u16>,
}

/// One answer under way.
#[derive(Debug)]
pub struct Replicas {
    job: Job,
    redundancy: Redundancy,
    /// Those that are over and those that are wrong included, in the order in which they were begun.
    replicas: BTreeMap<ReplicaIndex, Replica>,
    cuts: BTreeSet<u16>,
    progress: Progress,
    shown: Vec<Token>,
    /// Positions at which chains differ.
    conflicts: BTreeSet<Position>,
    /// Since when they have.
    doubt: Option<Doubt>,
    /// Two chains that contradict each other, while a third is to decide.
    dispute: Option<Dispute>,
    /// Peers that lied, or may have.
    avoided: BTreeSet<PeerKey>,
    lies: Vec<Lie>,
    effects: Vec<Effect>,
}

impl Replicas {
    /// Begins; the first effect asks for the chains.
    pub fn new(mut job: Job, redundancy: Redundancy) -> (Self, Vec<Effect>) {
        if redundancy.is_compared() {
            job.commits = Commits::Yes;
        }
        let replicas = Self {
            job,
            redundancy,
            replicas: BTreeMap::new(),
            cuts: BTreeSet::new(),
            progress: Progress::Starting,
            shown: Vec::new(),
            conflicts: BTreeSet::new(),
            doubt: None,
            dispute: None,
            avoided: BTreeSet::new(),
            lies: Vec::new(),
            effects: Vec::new(),
        };
        (replicas, vec![Effect::Begin(redundancy)])
    }

    /// Says with whose weights the units are computed, before chains are leased. Chains that are compared, and those that go on with an
    /// answer, need the same.
    pub fn weigh(&mut self, weights: UnitWeights) {
        for replica in self.replicas.values_mut() {
            replica.requester.weigh(weights.clone());
        }
        self.job.weights = weights;
    }

    /// Leases the chains, in answer to [`Effect::Begin`]: all cut at the same units.
    pub fn begin(&mut self, chains: Vec<Chain>, ids: &mut StreamIds, now: Time) -> Vec<Effect> {
        if let (true, Some(first)) = (self.redundancy.is_compared(), chains.first()) {
            self.job.rounding = Some(self.job.rounding_of(first));
            self.cuts = first.stages().iter().skip(1).map(|stage| stage.range.start()).collect();
        }
        for (index, chain) in (0..).map(ReplicaIndex).zip(chains) {
            // It would ask for the chain that it is given.
            let (mut requester, _) = Requester::new(self.job_of(index), now);
            let effects = requester.lease(chain, ids, now);
            self.replicas.insert(index, Replica::new(requester, self.job.prompt_length()));
            self.take(index, effects, now);
        }
        self.advance(now)
    }

    /// There are not so many chains, in answer to [`Effect::Begin`]; there are `found`, and no more for this reason.
    pub fn too_few(&mut self, found: u8, failure: GenerateFailure, now: Time) -> Vec<Effect> {
        let refusal = self.refusal(found, failure);
        self.fail(refusal, now);
        self.advance(now)
    }

    /// Leases a chain, in answer to [`Effect::Plan`].
    pub fn lease(&mut self, index: ReplicaIndex, chain: Chain, ids: &mut StreamIds, now: Time) -> Vec<Effect> {
        self.act(index, now, |requester| requester.lease(chain, ids, now))
    }

    /// There is no chain, in answer to [`Effect::Plan`].
    pub fn no_chain(&mut self, index: ReplicaIndex, failure: GenerateFailure, now: Time) -> Vec<Effect> {
        self.act(index, now, |requester| requester.no_chain(failure, now))
    }

    /// A control stream is open: its stage's peer has answered.
    pub fn on_opened(&mut self, stream: StreamId, now: Time) -> Vec<Effect> {
        self.act_on(stream, now, |requester| requester.on_opened(stream, now))
    }

    /// A control stream could not be opened.
    pub fn on_open_failed(&mut self, stream: StreamId, failure: OpenFailure, now: Time) -> Vec<Effect> {
        self.act_on(stream, now, |requester| requester.on_open_failed(stream, failure, now))
    }

    /// A stage said something.
    pub fn on_message(&mut self, stream: StreamId, message: FromStage, now: Time) -> Vec<Effect> {
        self.act_on(stream, now, |requester| requester.on_message(stream, message, now))
    }

    /// A control stream has ended.
    pub fn on_closed(&mut self, stream: StreamId, cause: CloseCause, now: Time) -> Vec<Effect> {
        self.act_on(stream, now, |requester| requester.on_closed(stream, cause, now))
    }

    /// The entry asked for with [`Effect::Owe`] is signed and in the log.
    pub fn on_signed(&mut self, entry: &CreditEntry, now: Time) -> Vec<Effect> {
        match self.of_session(entry.header.value.session) {
            Some(index) => self.act(index, now, |requester| requester.on_signed(entry)),
            None => Vec::new(),
        }
    }

    /// What is owed for a session could not be stored.
    pub fn on_not_signed(&mut self, session: SessionId, now: Time) -> Vec<Effect> {
        match self.of_session(session) {
            Some(index) => self.act(index, now, Requester::on_not_signed),
            None => Vec::new(),
        }
    }

    /// The user no longer wants it. What was done is settled without a word.
    pub fn cancel(&mut self, now: Time) -> Vec<Effect> {
        self.fail(GenerateFailure::Cancelled, now);
        self.advance(now)
    }

    /// The user has enough: settles and finishes. Before the first token, the same as [`Self::cancel`].
    pub fn conclude(&mut self, now: Time) -> Vec<Effect> {
        self.enough(now);
        self.advance(now)
    }

    /// Time passed.
    pub fn on_tick(&mut self, now: Time) -> Vec<Effect> {
        for index in self.indices() {
            if let Some(replica) = self.replicas.get_mut(&index) {
                let effects = replica.requester.on_tick(now);
                self.take(index, effects, now);
            }
        }
        self.advance(now)
    }

    /// What the chain of a replica is to be like.
    pub fn wish(&self, index: ReplicaIndex) -> Option<Wish> {
        let Replica { requester, .. } = self.replicas.get(&index)?;
        let dispute = self.dispute.as_ref().filter(|dispute| dispute.third == index);
        let suspects = dispute.iter().flat_map(|dispute| &dispute.suspects);
        let others = self.replicas.iter().filter(|(other, replica)| **other != index && replica.is_alive());
        Some(Wish {
            avoided: requester.avoided().iter().chain(&self.avoided).chain(suspects).copied().collect(),
            severed: requester.severed().clone(),
            survivors: requester.survivors(),
            others: others.flat_map(|(_, replica)| replica.stages().iter().copied()).collect(),
            decides: dispute.is_some(),
            cuts: self.cuts.clone(),
        })
    }

    /// What is generated.
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// When to come back with [`Self::on_tick`].
    pub fn deadline(&self) -> Option<Time> {
        let doubt = self.doubt.filter(|doubt| !doubt.is_late).map(|doubt| doubt.since.after(GRACE));
        let requesters = self.replicas.values().filter_map(|replica| replica.requester.deadline());
        requesters.chain(doubt).min()
    }
}

impl Replicas {
    /// The position of the next token to be shown.
    fn next(&self) -> Position {
        self.job.prompt_length().plus(Position(u32::try_from(self.shown.len()).unwrap_or(u32::MAX)))
    }

    fn indices(&self) -> Vec<ReplicaIndex> {
        self.replicas.keys().copied().collect()
    }

    /// Those whose word counts.
    fn voices(&self) -> impl Iterator<Item = (ReplicaIndex, &Replica)> {
        self.replicas.iter().filter(|(_, replica)| replica.is_voice()).map(|(&index, replica)| (index, replica))
    }

    fn of_session(&self, session: SessionId) -> Option<ReplicaIndex> {
        self.replicas.iter().find(|(_, replica)| replica.requester.session() == session).map(|(index, _)| *index)
    }

    /// What one of the chains computes: the same as all, under a name of its own.
    fn job_of(&self, index: ReplicaIndex) -> Job {
        Job { session: session_of(self.job.session, index), ..self.job.clone() }
    }

    fn act_on(
        &mut self,
        stream: StreamId,
        now: Time,
        act: impl FnOnce(&mut Requester) -> Vec<requester::Effect>,
    ) -> Vec<Effect> {
        match self.replicas.iter().find(|(_, replica)| replica.requester.has(stream)).map(|(index, _)| *index) {
            Some(index) => self.act(index, now, act),
            None => Vec::new(),
        }
    }

    fn act(
        &mut self,
        index: ReplicaIndex,
        now: Time,
        act: impl FnOnce(&mut Requester) -> Vec<requester::Effect>,
    ) -> Vec<Effect> {
        if let Some(replica) = self.replicas.get_mut(&index) {
            let effects = act(&mut replica.requester);
            self.take(index, effects, now);
        }
        self.advance(now)
    }

    /// Takes note of what one of the chains brings, and passes on what it asks for.
    fn take(&mut self, index: ReplicaIndex, effects: Vec<requester::Effect>, now: Time) {
        use requester::Effect as Of;
        for effect in effects {
            match effect {
                Of::Plan => self.effects.push(Effect::Plan(index)),
                Of::OpenControl(stream, peer) => self.effects.push(Effect::OpenControl(stream, peer)),
                Of::Send(stream, message) => self.effects.push(Effect::Send(stream, message)),
                Of::Close(stream) => self.effects.push(Effect::Close(stream)),
                Of::Praise(peer) => self.effects.push(Effect::Praise(peer)),
                Of::Reproach(peer, fault) => self.effects.push(Effect::Reproach(peer, fault)),
                Of::Started(_) => self.started(index),
                Of::Waiting(failure) => self.waits(index, failure),
                Of::Mended(mended) => self.mended(index, mended),
                Of::Token { position, token, logprobs } => self.voted(index, position, Vote { token, logprobs }, now),
                Of::Committed(signed) => {
                    let position = signed.value.end;
                    self.replica(index).claims.insert(*signed);
                    self.note(position);
                }
                Of::Owe { positions, lines } => {
                    let replica = self.replica(index);
                    replica.lines.clone_from(&lines);
                    let session = replica.requester.session();
                    self.effects.push(Effect::Owe { session, positions, lines });
                }
                Of::Finished(finish) => self.replica(index).finish = Some(finish),
                Of::Failed(failure) => self.lost(index, failure, now),
                Of::Ended => self.replica(index).is_over = true,
            }
        }
    }

    fn replica(&mut self, index: ReplicaIndex) -> &mut Replica {
        self.replicas.get_mut(&index).expect("replicas are named as they were begun, and never forgotten")
    }

    /// What follows from what was taken note of.
    fn advance(&mut self, now: Time) -> Vec<Effect> {
        self.judge(now);
        self.show(now);
        self.wind_up(now);
        self.end_when_over(now);
        mem::take(&mut self.effects)
    }

    /// Why the answer cannot begin, if a chain is not to be had, and so many others are.
    fn refusal(&self, found: u8, failure: GenerateFailure) -> GenerateFailure {
        let asked = self.redundancy.chains();
        if found == 0 {
            return failure;
        }
        let missing = match failure {
            GenerateFailure::NoCover { missing, .. } => missing,
            GenerateFailure::Declined { range, .. }
            | GenerateFailure::Unreachable { range, .. }
            | GenerateFailure::HopFailed { range, .. }
            | GenerateFailure::StageLost { range, .. }
            | GenerateFailure::StageFailed { range, .. }
            | GenerateFailure::Misbehaved { range, .. }
            | GenerateFailure::Disputed { range, .. } => vec![range],
            GenerateFailure::TooCoarse { .. }
            | GenerateFailure::UnknownModel(_)
            | GenerateFailure::NothingAsked
            | GenerateFailure::TooLong { .. }
            | GenerateFailure::TooFewReplicas { .. }
            | GenerateFailure::Cancelled
            | GenerateFailure::Busy
            | GenerateFailure::Draining => return failure,
        };
        GenerateFailure::TooFewReplicas { asked, found, missing }
    }
}

/// The name of the session in which one of the chains computes an answer: the first has the answer's own.
pub fn session_of(answer: SessionId, index: ReplicaIndex) -> SessionId {
    if index == ReplicaIndex(0) {
        return answer;
    }
    let mut hasher = blake3::Hasher::new_derive_key("brigade 1 session of a replica");
    hasher.update(answer.as_bytes());
    hasher.update(&index.0.to_le_bytes());
    let mut name = [0; SessionId::LEN];
    hasher.finalize_xof().fill(&mut name);
    SessionId::new(name)
}
