//! A peer that is asked to stop is free within its limit, where others can take over what it serves and nothing else goes wrong.

use crate::amounts::Time;
use crate::node::sim::World;
use crate::node::sim::fault::Fault;
use crate::node::sim::invariants::Invariant;
use crate::node::sim::invariants::Seen;

/// Looks at those that go, as long as nothing else goes wrong.
#[derive(Default)]
pub(super) struct Left {
    is_disturbed: bool,
}

impl Invariant for Left {
    fn name(&self) -> &'static str {
        "left"
    }

    fn see(&mut self, seen: &Seen<'_>, _now: Time) -> Result<(), String> {
        match seen {
            Seen::Befell(Fault::Leave(_) | Fault::Depart(..) | Fault::Restart(_)) => Ok(()),
            Seen::Befell(_) => {
                self.is_disturbed = true;
                Ok(())
            }
            Seen::Left { peer, needless } => match needless.first() {
                Some(session) if !self.is_disturbed => {
                    Err(format!("{peer:?} goes and still holds {session:?}, though others could take over"))
                }
                Some(_) | None => Ok(()),
            },
            Seen::Submitted { .. } | Seen::Asked { .. } | Seen::Died(_) => Ok(()),
        }
    }

    fn end(&mut self, _world: &World) -> Result<(), String> {
        Ok(())
    }
}
