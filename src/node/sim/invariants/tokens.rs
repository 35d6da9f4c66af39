//! Every answer that has begun is complete, and equals the undisturbed one; unless its requester died.

use std::collections::BTreeMap;

use crate::amounts::Position;
use crate::amounts::Time;
use crate::ids::PeerKey;
use crate::ids::RequestId;
use crate::ids::Token;
use crate::node::io::Action;
use crate::node::io::Delivery;
use crate::node::sim::World;
use crate::node::sim::engine::generate_with;
use crate::node::sim::invariants::Invariant;
use crate::node::sim::invariants::Seen;

/// What each user has seen, beside what it should.
#[derive(Default)]
pub(super) struct Tokens {
    answers: BTreeMap<RequestId, Answer>,
}

struct Answer {
    peer: PeerKey,
    prompt: Position,
    expected: Vec<Token>,
    shown: usize,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Submitted,
    Started,
    Ended,
}

impl Answer {
    fn hears(&mut self, request: RequestId, delivery: &Delivery) -> Result<(), String> {
        if self.state == State::Ended {
            return Err(format!("{request:?} goes on after its end: {delivery:?}"));
        }
        match delivery {
            Delivery::Started(_) => self.state = State::Started,
            Delivery::Waiting(_) | Delivery::Mended(_) => {}
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
                if before == State::Started {
                    return Err(format!("{request:?} failed after {} tokens: {failure}", self.shown));
                }
            }
        }
        Ok(())
    }

    fn shows(&mut self, request: RequestId, position: Position, token: Token) -> Result<(), String> {
        let expected = (self.prompt.plus(Position(self.shown as u32)), self.expected.get(self.shown).copied());
        if expected != (position, Some(token)) {
            return Err(format!("{request:?} shows {token:?} at {position}, expected {expected:?}"));
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
            Seen::Submitted { request, peer, spec, .. } => {
                let expected = generate_with(&spec.prompt, spec.max_tokens, &spec.parameters);
                let prompt = Position(spec.prompt.len() as u32);
                let answer = Answer { peer: *peer, prompt, expected, shown: 0, state: State::Submitted };
                self.answers.insert(*request, answer);
                Ok(())
            }
            Seen::Asked { action: Action::Deliver(request, delivery), .. } => match self.answers.get_mut(request) {
                Some(answer) => answer.hears(*request, delivery),
                None => Err(format!("{request:?} is unknown or its peer has died")),
            },
            Seen::Asked { .. } => Ok(()),
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
