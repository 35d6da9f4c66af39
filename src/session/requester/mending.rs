//! From a broken chain to a mended one, in which the answer goes on.
//!
//! ```text
//!  Running ──lost, failed, severed──▶ Mending ──chain given──▶ Rejoining ──all are there──▶ Running
//!                                       │  ▲                      │
//!                            no chain   ▼  │ a while later        └── another is lost: Mending, one epoch on
//!                                     Waiting ── patience is over: Over
//! ```
//!
//! The tokens that were accepted are the truth from which everything can be built again. Survivors keep their leases and caches;
//! what they computed is sent again to those that take the others' places.

use std::mem;

use crate::amounts::Position;
use crate::amounts::Span;
use crate::amounts::Time;
use crate::ids::Epoch;
use crate::ids::StageIndex;
use crate::ids::Token;
#[cfg(feature = "mutants")]
use crate::mutants::Mutant;
#[cfg(feature = "mutants")]
use crate::mutants::is_planted;
use crate::session::outcome::GenerateFailure;
use crate::session::outcome::Mended;
use crate::session::requester::EXPIRES_AFTER;
use crate::session::requester::Effect;
use crate::session::requester::LEASE;
use crate::session::requester::LEASE_TOTAL;
use crate::session::requester::LONGEST_PAUSE;
use crate::session::requester::PAUSE;
use crate::session::requester::Phase;
use crate::session::requester::Requester;
use crate::session::requester::control::Control;
use crate::session::requester::keeps::Held;
use crate::session::requester::keeps::keeps;
use crate::session::streams::StreamIds;
use crate::units::Chain;
use crate::units::Stage;
use crate::wire::control::Begins;
use crate::wire::control::Reconfigure;
use crate::wire::control::Rejoined;
use crate::wire::control::Resume;
use crate::wire::control::ToStage;
use crate::wire::credit::CreditLine;

/// What befell an answer, from the first sign to the next token.
#[derive(Clone, Debug)]
pub(super) struct Trouble {
    pub(super) since: Time,
    /// What was wrong first.
    cause: GenerateFailure,
    /// What was last missing for a chain.
    missing: Option<GenerateFailure>,
    /// How long the next wait for a chain is.
    pause: Span,
    /// The stages before.
    before: Vec<Stage>,
}

impl Trouble {
    /// What befalls an answer of which this requester has no chain yet.
    pub(super) fn before_any_chain(cause: GenerateFailure, now: Time) -> Self {
        Self { since: now, cause, missing: None, pause: PAUSE, before: Vec::new() }
    }
}

impl Requester {
    /// Goes on without the stages that are lost and the hops that are severed, unless that has lasted too long.
    pub(super) fn mend(&mut self, cause: GenerateFailure, now: Time) {
        let longest = self.job.patience.max(LEASE_TOTAL);
        let trouble = self.note_trouble(cause, now);
        if trouble.since.after(longest) <= now {
            let failure = trouble.missing.take().unwrap_or_else(|| trouble.cause.clone());
            return self.over(failure);
        }
        self.let_go_of_lost();
        // What was complained of is dealt with.
        self.controls.iter_mut().for_each(Control::called);
        self.phase = Phase::Mending;
        self.plan(now);
    }

    /// What befalls the answer began with this, unless it has begun already.
    pub(super) fn note_trouble(&mut self, cause: GenerateFailure, now: Time) -> &mut Trouble {
        let before = self.chain.iter().flat_map(|chain| chain.stages().to_vec()).collect();
        let new = || Trouble { since: now, cause, missing: None, pause: PAUSE, before };
        self.trouble.get_or_insert_with(new)
    }

    /// Stages that are lost have let go themselves, or will when they notice.
    pub(super) fn let_go_of_lost(&mut self) {
        let (lost, left) = mem::take(&mut self.controls).into_iter().partition(Control::is_lost);
        self.controls = left;
        let lost: Vec<Control> = lost;
        if !lost.is_empty() {
            self.meanwhile = None;
        }
        self.effects.extend(lost.iter().filter(|control| !control.closed).map(|control| Effect::Close(control.stream)));
    }

    /// There is no chain for the stages that are left. Whoever refused, was lost or could not be reached may be there again
    /// in a while.
    pub(super) fn wait_for_chain(&mut self, failure: GenerateFailure, now: Time) {
        let Some(trouble) = &mut self.trouble else { return self.over(failure) };
        let latest = trouble.since.after(self.job.patience);
        if latest <= now {
            // One that was never waited for says less than why it is needed.
            let failure = trouble.missing.take().map_or_else(|| trouble.cause.clone(), |_| failure);
            return self.over(failure);
        }
        let told = trouble.missing.replace(failure.clone());
        if told.as_ref() != Some(&failure) {
            self.effects.push(Effect::Waiting(failure));
        }
        let soonest = self.busy.values().copied().fold(now.after(trouble.pause), Time::min);
        self.phase = Phase::Waiting { until: soonest.min(latest) };
        trouble.pause = trouble.pause.times(2).min(LONGEST_PAUSE);
    }

    /// Tries again for a chain.
    pub(super) fn try_again(&mut self, now: Time) {
        self.avoided.clear();
        self.severed.clear();
        if let Some(cause) = self.trouble.as_ref().map(|trouble| trouble.cause.clone()) {
            self.mend(cause, now);
        }
    }

    /// Asks for what the mended chain lacks, and calls the others into it.
    pub(super) fn rejoin(&mut self, chain: Chain, ids: &mut StreamIds, now: Time) {
        self.attempts += 1;
        self.epoch = Epoch(self.attempts);
        self.known = self.next;
        let mut old = mem::take(&mut self.controls);
        for (index, stage) in chain.iter() {
            let survivor = old.iter().position(|control| control.stage == stage).map(|at| old.remove(at));
            let control = match survivor {
                Some(control) => self.call(control, &chain, index),
                None => self.ask(stage, &chain, index, ids, now),
            };
            self.controls.push(control);
        }
        for control in old {
            if control.is_leaving {
                self.avoided.insert(control.stage.peer);
            }
            self.dismiss(&control);
        }
        self.chain = Some(chain);
        self.phase = Phase::Rejoining { until: now.after(LEASE) };
    }

    /// Calls a survivor into the mended chain.
    fn call(&mut self, mut control: Control, chain: &Chain, stage: StageIndex) -> Control {
        control.called();
        let newer = Reconfigure { epoch: self.epoch, chain: chain.clone(), stage, known: self.known };
        self.effects.push(Effect::Send(control.stream, ToStage::Reconfigure(Box::new(newer))));
        control
    }

    /// Asks for a lease on a stage of the mended chain.
    fn ask(&mut self, stage: Stage, chain: &Chain, index: StageIndex, ids: &mut StreamIds, now: Time) -> Control {
        let control = Control::new(ids.open(), stage, self.epoch, now);
        let mut offer = self.job.offer(chain, index, self.epoch, EXPIRES_AFTER);
        offer.begins = Begins::Earlier;
        offer.rounding.clone_from(&self.rounding);
        if let Some(sampling) = &mut offer.sampling
            && !sampling.history.is_empty()
        {
            #[cfg(feature = "mutants")]
            let told = if is_planted(Mutant::ForgetHistory) { &[][..] } else { &self.accepted[..] };
            #[cfg(not(feature = "mutants"))]
            let told = &self.accepted[..];
            sampling.history.extend(told);
        }
        self.effects.push(Effect::OpenControl(control.stream, stage.peer));
        self.effects.push(Effect::Send(control.stream, ToStage::Offer(Box::new(offer))));
        control
    }

    /// Lets go of a stage that lives and is of no use in the mended chain. What it did is owed.
    fn dismiss(&mut self, control: &Control) {
        if control.began {
            let line = control.line(&self.job, self.next);
            let same = |other: &&mut CreditLine| other.stage == line.stage && other.range == line.range;
            // One that was let go before and came back.
            match self.dismissed.iter_mut().find(same) {
                Some(before) => before.work = before.work.plus(line.work),
                None => self.dismissed.push(line),
            }
        }
        if !control.closed {
            self.effects.push(Effect::Close(control.stream));
        }
    }

    /// A survivor stands in the mended chain.
    pub(super) fn rejoined(&mut self, index: StageIndex, rejoined: Rejoined, now: Time) {
        // Of a chain that was given up meanwhile.
        if rejoined.epoch != self.epoch || !matches!(self.phase, Phase::Rejoining { .. }) {
            return;
        }
        let Rejoined { length, journal, heard, .. } = rejoined;
        if length > self.job.budget() {
            return self.misbehaved(index, now);
        }
        let control = self.control(index);
        control.heard_tokens = heard;
        control.held = Some(Held { length, journal });
        self.resume_when_all_are_there(now);
    }

    pub(super) fn resume_when_all_are_there(&mut self, now: Time) {
        let held: Option<Vec<Held>> = self.controls.iter().map(|control| control.held).collect();
        if let Some(held) = held {
            self.add_heard(now);
            self.resume(&held, now);
        }
    }

    /// Takes up tokens that the driver has heard and the requester has not, because the tail is lost. If more than the token was
    /// asked for, or the new tail looks back at it and was not told, it is sampled again.
    fn add_heard(&mut self, now: Time) {
        let Some(driver) = self.controls.first_mut() else { return };
        let heard = mem::take(&mut driver.heard_tokens);
        let is_told = !self.job.parameters.looks_back();
        #[cfg(feature = "mutants")]
        let is_told = is_told || is_planted(Mutant::TakeHeardUntold);
        if self.job.parameters.logprobs.is_some() || !is_told {
            return;
        }
        let positions = (self.known.0..).map(Position);
        for (position, token) in positions.zip(heard) {
            let ends = self.job.ending().of(position, token).is_some();
            let is_next = position == self.next;
            #[cfg(feature = "mutants")]
            let is_next = is_next || is_planted(Mutant::ShowHeardTwice);
            if is_next && token.0 < self.job.shape.vocab && !ends {
                self.accept(token, None, now);
            }
        }
    }

    /// Says to every stage where it goes on, and feeds the tokens from there.
    fn resume(&mut self, held: &[Held], now: Time) {
        let keeps = keeps(held, self.next);
        let ends = keeps.iter().copied().skip(1).chain(keeps.last().copied());
        let mut resumes = Vec::with_capacity(keeps.len());
        for ((control, &keep), next_keep) in self.controls.iter_mut().zip(&keeps).zip(ends) {
            let resume = Resume { epoch: self.epoch, keep, next_keep };
            control.resumes(keep, &self.job);
            resumes.push(Effect::Send(control.stream, ToStage::Resume(resume)));
        }
        self.effects.append(&mut resumes);
        self.phase = Phase::Running;
        self.progress = now;
        if let (Some(driver), Some(&first)) = (self.controls.first(), keeps.first()) {
            let tokens: Vec<Token> = self.tokens().skip(first.0 as usize).collect();
            #[cfg(feature = "mutants")]
            let tokens = mutated(tokens, &self.job.prompt);
            let feeds = crate::session::requester::job::feeds(first, &tokens);
            self.effects.extend(feeds.map(|feed| Effect::Send(driver.stream, ToStage::Feed(feed))));
        }
        self.tell_mended(now);
    }

    fn tell_mended(&mut self, now: Time) {
        let (Some(trouble), Some(chain)) = (&self.trouble, &self.chain) else { return };
        let lost = trouble.before.iter().filter(|stage| !chain.stages().contains(stage)).copied().collect();
        let took = now.since(trouble.since);
        self.effects.push(Effect::Mended(Mended { chain: chain.clone(), lost, known: self.next, took }));
    }

    /// Prompt and accepted tokens: from these alone everything can be built again.
    fn tokens(&self) -> impl Iterator<Item = Token> {
        self.job.prompt.iter().chain(&self.accepted).copied()
    }
}

/// What a planted bug makes of the tokens that are fed.
#[cfg(feature = "mutants")]
fn mutated(mut tokens: Vec<Token>, prompt: &[Token]) -> Vec<Token> {
    if is_planted(Mutant::ResampleShown) && tokens.len() > 1 {
        tokens.pop();
    }
    if is_planted(Mutant::FeedFromStart) {
        let fed = tokens.len();
        tokens = prompt.iter().copied().chain(tokens).take(fed).collect();
    }
    tokens
}

#[cfg(test)]
mod tests;
