//! All peers of the mesh are honest, so nobody accuses another of breaking the protocol, whatever the network does to them.

use crate::amounts::Time;
use crate::node::io::Action;
use crate::node::io::Delivery;
use crate::node::io::GenerateFailure;
use crate::node::io::Outgoing;
use crate::node::sim::World;
use crate::node::sim::invariants::Invariant;
use crate::node::sim::invariants::Seen;
use crate::wire::control::Break;
use crate::wire::control::FromStage;
use crate::wire::control::HopBroken;
use crate::wire::control::StageFailure;
use crate::wire::hop::HopBack;
use crate::wire::hop::HopRefusal;

/// Listens to what peers say of each other.
pub(super) struct Honest;

impl Invariant for Honest {
    fn name(&self) -> &'static str {
        "honest"
    }

    fn see(&mut self, seen: &Seen<'_>, _now: Time) -> Result<(), String> {
        let Seen::Asked { peer, action, .. } = seen else { return Ok(()) };
        match accusation(action) {
            Some(accusation) => Err(format!("{peer:?} says {accusation}")),
            None => Ok(()),
        }
    }

    fn end(&mut self, _world: &World) -> Result<(), String> {
        Ok(())
    }
}

/// What is said of another, if it is that it broke the protocol.
fn accusation(action: &Action) -> Option<String> {
    match action {
        Action::Send(_, Outgoing::FromStage(message)) => match message {
            FromStage::HopBroken(HopBroken { how: Break::Breach, .. })
            | FromStage::Failed(StageFailure::BadRequest | StageFailure::BadFrame { .. } | StageFailure::Engine(_)) => {
                Some(format!("{message:?}"))
            }
            _ => None,
        },
        Action::Send(_, Outgoing::Back(HopBack::Refused(refusal))) => match refusal {
            // Early, or late.
            HopRefusal::UnknownSession | HopRefusal::WrongPeer | HopRefusal::Ended => None,
            HopRefusal::WrongShape | HopRefusal::OutOfOrder | HopRefusal::WindowExceeded => {
                Some(format!("{refusal:?}"))
            }
        },
        Action::Deliver(
            _,
            Delivery::Failed(failure @ (GenerateFailure::Misbehaved { .. } | GenerateFailure::Disputed { .. })),
        ) => Some(failure.to_string()),
        Action::Deliver(_, Delivery::Caught(lie)) => Some(format!("{lie:?}")),
        _ => None,
    }
}
