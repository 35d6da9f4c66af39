//! What is reserved in an engine is released exactly once: never twice, never by nobody.

use std::collections::BTreeSet;

use crate::amounts::Time;
use crate::ids::PeerKey;
use crate::node::io::Action;
use crate::node::io::EngineAction;
use crate::node::io::StageKey;
use crate::node::sim::World;
use crate::node::sim::agenda::Life;
use crate::node::sim::invariants::Invariant;
use crate::node::sim::invariants::Seen;

/// What each engine holds.
#[derive(Default)]
pub(super) struct Leases {
    open: BTreeSet<(PeerKey, Life, StageKey)>,
}

impl Invariant for Leases {
    fn name(&self) -> &'static str {
        "leases"
    }

    fn see(&mut self, seen: &Seen<'_>, _now: Time) -> Result<(), String> {
        match seen {
            Seen::Asked { peer, life, action: Action::Engine(action) } => self.asked(*peer, *life, action),
            Seen::Died(peer) => {
                self.open.retain(|(of, _, _)| of != peer);
                Ok(())
            }
            Seen::Asked { .. } | Seen::Submitted { .. } | Seen::Befell(_) | Seen::Left { .. } => Ok(()),
        }
    }

    fn end(&mut self, _world: &World) -> Result<(), String> {
        match self.open.first() {
            Some((peer, _, key)) => Err(format!("{peer:?} never released {key:?}")),
            None => Ok(()),
        }
    }
}

impl Leases {
    fn asked(&mut self, peer: PeerKey, life: Life, action: &EngineAction) -> Result<(), String> {
        match action {
            EngineAction::Open { key, .. } if !self.open.insert((peer, life, *key)) => {
                Err(format!("{peer:?} reserved {key:?} twice"))
            }
            EngineAction::Free(key) if !self.open.remove(&(peer, life, *key)) => {
                Err(format!("{peer:?} released {key:?}, which it does not hold"))
            }
            EngineAction::Steps(steps) => {
                match steps.iter().find(|step| !self.open.contains(&(peer, life, step.key))) {
                    Some(step) => Err(format!("{peer:?} computes {:?}, which it does not hold", step.key)),
                    None => Ok(()),
                }
            }
            EngineAction::Open { .. } | EngineAction::Free(_) | EngineAction::Load(..) | EngineAction::Unload(..) => {
                Ok(())
            }
        }
    }
}
