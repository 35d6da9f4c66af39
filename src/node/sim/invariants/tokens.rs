//! Every answer that has begun is complete, and equals the undisturbed one; unless its requester died.

use std::collections::BTreeMap;

use crate::amounts::Position;
use crate::amounts::Time;
use crate::ids::PeerKey;
use crate::ids::RequestId;
use crate::ids::SessionId;
use crate::ids::Token;
use crate::node::io::Action;
use crate::node::io::Delivery;
use crate::node::io::GenerateFailure;
use crate::node::io::GenerateSpec;
use crate::node::io::Outgoing;
use crate::node::sim::World;
use crate::node::sim::engine::generate_with;
use crate::node::sim::invariants::Invariant;
use crate::node::sim::invariants::Seen;
use crate::shape::WireDtype;
use crate::wire::control::ToStage;

/// What each user has seen, beside what it should.
#[derive(Default)]
pub(super) struct Tokens {
    answers: BTreeMap<RequestId, Answer>,
    /// Where the stages of each session were last told to round.
    rounding: BTreeMap<SessionId, Vec<(u16, WireDtype)>>,
    /// Whether peers lie, so that an answer may have to end because it cannot be told who does.
    is_among_liars: bool,
}

struct Answer {
    peer: PeerKey,
    session: SessionId,
    spec: GenerateSpec,
    /// What it should be, once it is known where the first chain rounds.
    expected: Vec<Token>,
    shown: usize,
    state: State,
    may_be_disputed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Submitted,
    Started,
    Ended,
}

impl Tokens {
    pub(super) fn among_liars() -> Self {
        Self { is_among_liars: true, ..Self::default() }
    }
}

impl Answer {
    fn hears(
        &mut self,
        request: RequestId,
        delivery: &Delivery,
        rounding: Vec<(u16, WireDtype)>,
    ) -> Result<(), String> {
        if self.state == State::Ended {
            return Err(format!("{request:?} goes on after its end: {delivery:?}"));
        }
        match delivery {
            Delivery::Started(..) => self.starts(rounding),
            Delivery::Waiting(_) | Delivery::Mended(_) | Delivery::Caught(_) => {}
            Delivery::Token { position, token, .. } => return self.shows(request, *position, *token),
            Delivery::Finished(_) => {
                self.state = State::Ended;
                if self.shown != self.expected.len() {
                    let (shown, expected) = (self.shown, self.expected.len());
                    return Err(format!("{request:?} finished with {shown} tokens of {expected}"));
                }
            }
            Delivery::Failed(failure) => {
                let before = std::mem::replace(&mut self.state, State::Ended);
                // What could not begin, because there was no chain at that moment, is no token lost.
                let is_in_doubt = self.may_be_disputed && matches!(failure, GenerateFailure::Disputed { .. });
                if before == State::Started && !is_in_doubt {
                    return Err(format!("{request:?} failed after {} tokens: {failure}", self.shown));
                }
            }
        }
        Ok(())
    }

    /// Where hidden states are rounded is part of what is computed, and fixed with the first chain.
    fn starts(&mut self, rounding: Vec<(u16, WireDtype)>) {
        let GenerateSpec { prompt, max_tokens, parameters, .. } = &self.spec;
        self.expected = generate_with(prompt, *max_tokens, parameters, rounding);
        self.state = State::Started;
    }

    fn shows(&mut self, request: RequestId, position: Position, token: Token) -> Result<(), String> {
        let position_due = Position((self.spec.prompt.len() + self.shown) as u32);
        let expected = (position_due, self.expected.get(self.shown).copied());
        if expected != (position, Some(token)) {
            let GenerateSpec { redundancy, wire, parameters, .. } = &self.spec;
            let looks_back = parameters.looks_back();
            return Err(format!(
                "{request:?} ({redundancy:?}, {wire:?}, looks back: {looks_back}) shows {token:?} at {position}, expected {expected:?}"
            ));
        }
        self.shown += 1;
        Ok(())
    }
}

impl Invariant for Tokens {
    fn name(&self) -> &'static str {
        "tokens"
    }

    fn see(&mut self, seen: &Seen<'_>, _now: Time) -> Result<(), String> {
        match seen {
            Seen::Submitted { request, session, peer, spec } => {
                let (peer, session, spec, expected) = (*peer, *session, (*spec).clone(), Vec::new());
                let (shown, state, may_be_disputed) =
                    (0, State::Submitted, self.is_among_liars && spec.redundancy.chains() == 2);
                self.answers.insert(*request, Answer { peer, session, spec, expected, shown, state, may_be_disputed });
                Ok(())
            }
            Seen::Asked { action: Action::Send(_, Outgoing::ToStage(ToStage::Offer(offer))), .. } => {
                self.rounding.insert(offer.session, offer.rounding.clone());
                Ok(())
            }
            Seen::Asked { action: Action::Deliver(request, delivery), .. } => match self.answers.get_mut(request) {
                Some(answer) => {
                    let rounding = self.rounding.get(&answer.session).cloned().unwrap_or_default();
                    answer.hears(*request, delivery, rounding)
                }
                None => Err(format!("{request:?} is unknown or its peer has died")),
            },
            Seen::Asked { .. } | Seen::Befell(_) | Seen::Left { .. } => Ok(()),
            Seen::Died(peer) => {
                self.answers.retain(|_, answer| answer.peer != *peer);
                Ok(())
            }
        }
    }

    fn end(&mut self, _world: &World) -> Result<(), String> {
        match self.answers.iter().find(|(_, answer)| answer.state != State::Ended) {
            Some((request, answer)) => {
                Err(format!("{request:?} hangs after {} of {} tokens", answer.shown, answer.expected.len()))
            }
            None => Ok(()),
        }
    }
}
