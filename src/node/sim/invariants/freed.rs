//! What a session held is freed within the lease time of its end, however it ended, wherever a process can do anything.

use std::collections::BTreeMap;

use crate::amounts::Span;
use crate::amounts::Time;
use crate::ids::PeerKey;
use crate::ids::ReplicaIndex;
use crate::ids::RequestId;
use crate::ids::SessionId;
use crate::node::io::Action;
use crate::node::io::Delivery;
use crate::node::sim::World;
use crate::node::sim::invariants::Invariant;
use crate::node::sim::invariants::Seen;
use crate::session::replicas::session_of;
use crate::session::requester::EXPIRES_AFTER;

/// Chains that compute one answer, at most.
const MAX_CHAINS: u16 = 8;

/// What clocks that differ, messages on their way and a disk may add (arbitrary).
const GRACE: Span = Span::seconds(5);

/// When each session was over for its requester.
#[derive(Default)]
pub(super) struct Freed {
    sessions: BTreeMap<RequestId, (SessionId, PeerKey)>,
    over: BTreeMap<SessionId, Time>,
    /// Since when each host has been able to do anything.
    up: BTreeMap<PeerKey, Time>,
}

impl Invariant for Freed {
    fn name(&self) -> &'static str {
        "freed"
    }

    fn see(&mut self, seen: &Seen<'_>, now: Time) -> Result<(), String> {
        match seen {
            Seen::Submitted { request, session, peer, .. } => {
                self.sessions.insert(*request, (*session, *peer));
            }
            Seen::Asked { action: Action::Deliver(request, Delivery::Finished(_) | Delivery::Failed(_)), .. } => {
                let answer = self.sessions.remove(request).map(|(session, _)| session);
                self.over.extend(answer.into_iter().flat_map(all_of).map(|session| (session, now)));
            }
            Seen::Asked { .. } | Seen::Befell(_) | Seen::Left { .. } => {}
            Seen::Died(peer) => {
                let died = self.sessions.values().filter(|(_, of)| of == peer);
                self.over.extend(died.flat_map(|(session, _)| all_of(*session)).map(|session| (session, now)));
                self.sessions.retain(|_, (_, of)| of != peer);
            }
        }
        Ok(())
    }

    fn look(&mut self, world: &World) -> Result<(), String> {
        for (peer, host) in &world.hosts {
            if !host.is_up() {
                self.up.remove(peer);
                continue;
            }
            let up = *self.up.entry(*peer).or_insert(world.now);
            for session in host.engine.holds() {
                let over = self.over.get(&session).copied().unwrap_or(world.now).max(up);
                if over.after(EXPIRES_AFTER).after(GRACE) < world.now {
                    self.over.remove(&session);
                    return Err(format!("{peer:?} still holds {session:?}, which ended at {over:?}"));
                }
            }
        }
        Ok(())
    }

    fn end(&mut self, world: &World) -> Result<(), String> {
        world.idle()
    }
}

/// The sessions in which an answer may be computed.
fn all_of(answer: SessionId) -> impl Iterator<Item = SessionId> {
    (0..MAX_CHAINS).map(move |index| session_of(answer, ReplicaIndex(index)))
}
