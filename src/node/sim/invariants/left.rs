//! A peer that is asked to stop is free within its limit, where others can take over all that it serves and nothing else goes wrong.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::amounts::Time;
use crate::ids::PeerKey;
use crate::ids::SessionId;
use crate::node::sim::World;
use crate::node::sim::fault::Fault;
use crate::node::sim::invariants::Invariant;
use crate::node::sim::invariants::Seen;

/// Who asked for what, as long as nothing else goes wrong.
#[derive(Default)]
pub(super) struct Left {
    requesters: BTreeMap<SessionId, PeerKey>,
    is_disturbed: bool,
}

impl Invariant for Left {
    fn name(&self) -> &'static str {
        "left"
    }

    fn see(&mut self, seen: &Seen<'_>, _now: Time) -> Result<(), String> {
        match seen {
            Seen::Submitted { session, peer, .. } => {
                self.requesters.insert(*session, *peer);
                Ok(())
            }
            Seen::Befell(Fault::Leave(_) | Fault::Depart(..) | Fault::Restart(_)) => Ok(()),
            Seen::Befell(_) => {
                self.is_disturbed = true;
                Ok(())
            }
            Seen::Left { peer, held, has_spare } => {
                // Its own user's answers end with it.
                self.requesters.retain(|_, requester| requester != peer);
                if *has_spare && !self.is_disturbed { self.is_free(*peer, held) } else { Ok(()) }
            }
            Seen::Asked { .. } | Seen::Died(_) => Ok(()),
        }
    }

    fn end(&mut self, _world: &World) -> Result<(), String> {
        Ok(())
    }
}

impl Left {
    fn is_free(&self, peer: PeerKey, held: &BTreeSet<SessionId>) -> Result<(), String> {
        match held.iter().find(|session| self.requesters.contains_key(session)) {
            Some(session) => Err(format!("{peer:?} goes and still holds {session:?}, though others could take over")),
            None => Ok(()),
        }
    }
}
