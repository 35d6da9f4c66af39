//! A token that was shown is not sampled again by a later chain, and no chain samples one position twice.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::amounts::Position;
use crate::amounts::Time;
use crate::ids::Epoch;
use crate::ids::RequestId;
use crate::ids::SessionId;
use crate::node::io::Action;
use crate::node::io::Delivery;
use crate::node::io::Outgoing;
use crate::node::io::Redundancy;
use crate::node::sim::World;
use crate::node::sim::invariants::Invariant;
use crate::node::sim::invariants::Seen;
use crate::wire::control::ToStage;
use crate::wire::hop::HopForward;

/// What was shown when each chain began, and what each has sampled.
#[derive(Default)]
pub(super) struct Once {
    sessions: BTreeMap<RequestId, SessionId>,
    shown: BTreeMap<SessionId, Position>,
    /// What was shown when the chain was asked for first.
    floors: BTreeMap<(SessionId, Epoch), Position>,
    sampled: BTreeSet<(SessionId, Epoch, Position)>,
}

impl Invariant for Once {
    fn name(&self) -> &'static str {
        "once"
    }

    fn see(&mut self, seen: &Seen<'_>, _now: Time) -> Result<(), String> {
        match seen {
            // A chain that is compared computes what others have shown already.
            Seen::Submitted { spec, .. } if spec.redundancy != Redundancy::NONE => {}
            Seen::Submitted { request, session, spec, .. } => {
                self.sessions.insert(*request, *session);
                self.shown.insert(*session, Position(spec.prompt.len() as u32));
            }
            Seen::Asked { action: Action::Deliver(request, Delivery::Token { position, .. }), .. } => {
                if let Some(session) = self.sessions.get(request) {
                    self.shown.insert(*session, position.plus(Position(1)));
                }
            }
            Seen::Asked { action: Action::Send(_, Outgoing::ToStage(ToStage::Offer(offer))), .. } => {
                let shown = self.shown.get(&offer.session).copied().unwrap_or_default();
                self.floors.entry((offer.session, offer.epoch)).or_insert(shown);
            }
            Seen::Asked { action: Action::Send(_, Outgoing::Forward(HopForward::Token(frame))), .. } => {
                return self.samples(frame.session, frame.epoch, frame.position);
            }
            Seen::Asked { .. } | Seen::Died(_) | Seen::Befell(_) | Seen::Left { .. } => {}
        }
        Ok(())
    }

    fn end(&mut self, _world: &World) -> Result<(), String> {
        Ok(())
    }
}

impl Once {
    fn samples(&mut self, session: SessionId, epoch: Epoch, position: Position) -> Result<(), String> {
        if !self.sampled.insert((session, epoch, position)) {
            return Err(format!("{position} is sampled twice in epoch {epoch}"));
        }
        match self.floors.get(&(session, epoch)) {
            Some(floor) if position < *floor => {
                Err(format!("{position} is sampled again in epoch {epoch}, which began with {floor} shown"))
            }
            Some(_) | None => Ok(()),
        }
    }
}
