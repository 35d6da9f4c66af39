//! Whoever computes something else than it was asked for is found within one chunk and named, nobody else is, and what was shown is
//! right (see [`super::tokens`]).

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::amounts::Position;
use crate::amounts::Time;
use crate::ids::PeerKey;
use crate::ids::ReplicaIndex;
use crate::ids::RequestId;
use crate::ids::SessionId;
use crate::node::io::Action;
use crate::node::io::Certainty;
use crate::node::io::Delivery;
use crate::node::io::Lie;
use crate::node::sim::World;
use crate::node::sim::invariants::Invariant;
use crate::node::sim::invariants::Seen;
use crate::session::replicas::session_of;
use crate::wire::commitment::COMMIT_EVERY;

/// The chains that an answer begins with, at most.
const CHAINS: u16 = 3;

/// Who lies, and what was found.
#[derive(Default)]
pub(super) struct Lies {
    liars: BTreeSet<PeerKey>,
    answers: BTreeMap<RequestId, Answer>,
}

struct Answer {
    session: SessionId,
    /// The first position at which something was found, and who was named.
    found: Option<Position>,
    named: BTreeSet<PeerKey>,
    is_finished: bool,
}

impl Lies {
    pub(super) fn of(liars: BTreeSet<PeerKey>) -> Self {
        Self { liars, answers: BTreeMap::new() }
    }

    fn caught(&mut self, request: RequestId, lie: &Lie) -> Result<(), String> {
        let Some(answer) = self.answers.get_mut(&request) else { return Ok(()) };
        let named: BTreeSet<PeerKey> = lie.suspects.iter().map(|suspect| suspect.peer).collect();
        answer.found = Some(answer.found.map_or(lie.position, |found| found.min(lie.position)));
        answer.named.extend(&named);
        match lie.certainty {
            Certainty::Proven if !named.is_subset(&self.liars) => Err(format!("an honest peer is named: {lie:?}")),
            Certainty::Proven if lie.evidence.len() < 2 => Err(format!("nothing proves it: {lie:?}")),
            _ if named.is_disjoint(&self.liars) => Err(format!("no liar is among the suspects: {lie:?}")),
            _ => Ok(()),
        }
    }
}

impl Invariant for Lies {
    fn name(&self) -> &'static str {
        "lies"
    }

    fn see(&mut self, seen: &Seen<'_>, _now: Time) -> Result<(), String> {
        match seen {
            Seen::Submitted { request, session, .. } => {
                let answer = Answer { session: *session, found: None, named: BTreeSet::new(), is_finished: false };
                self.answers.insert(*request, answer);
            }
            Seen::Asked { action: Action::Deliver(request, Delivery::Caught(lie)), .. } => {
                return self.caught(*request, lie);
            }
            Seen::Asked { action: Action::Deliver(request, Delivery::Finished(_)), .. } => {
                if let Some(answer) = self.answers.get_mut(request) {
                    answer.is_finished = true;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self, world: &World) -> Result<(), String> {
        for (request, answer) in self.answers.iter().filter(|(_, answer)| answer.is_finished) {
            let sessions: Vec<SessionId> =
                (0..CHAINS).map(|index| session_of(answer.session, ReplicaIndex(index))).collect();
            let lied = world.hosts.values().flat_map(|host| &host.engine.lied);
            let Some(first) = lied.filter(|(session, _)| sessions.contains(session)).map(|(_, at)| *at).min() else {
                continue;
            };
            // Rows are said by the position after them.
            let latest = first.plus(Position(COMMIT_EVERY));
            match answer.found {
                Some(found) if found <= latest => {}
                found => return Err(format!("{request:?}: a lie at {first} was found at {found:?}")),
            }
        }
        Ok(())
    }
}
