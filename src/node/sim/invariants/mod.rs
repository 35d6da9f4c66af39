//! What must hold whatever goes wrong. Each looks on from outside: at what users are told, at what peers say to each other, and
//! at what engines are asked for. None asks the machines that it judges.

mod credits;
mod freed;
mod honest;
mod leases;
mod left;
mod lies;
mod once;
mod tokens;

use std::collections::BTreeSet;

use crate::amounts::Time;
use crate::ids::PeerKey;
use crate::ids::RequestId;
use crate::ids::SessionId;
use crate::node::io::Action;
use crate::node::io::GenerateSpec;
use crate::node::sim::World;
use crate::node::sim::agenda::Life;
use crate::node::sim::fault::Fault;

/// Something that an invariant may look at.
pub(super) enum Seen<'a> {
    /// A user asked for an answer.
    Submitted { request: RequestId, session: SessionId, peer: PeerKey, spec: &'a GenerateSpec },
    /// A node asked for something, in one of its lives.
    Asked { peer: PeerKey, life: Life, action: &'a Action },
    /// A process is gone.
    Died(PeerKey),
    /// Something goes wrong, or right again.
    Befell(Fault),
    /// A process that was asked to stop is about to be gone: sessions that it holds and others could have taken over.
    Left { peer: PeerKey, needless: &'a BTreeSet<SessionId> },
}

/// Something that must hold.
trait Invariant {
    /// Its name, under which a violation is reported.
    fn name(&self) -> &'static str;

    /// Looks at what happens, and says what is wrong about it.
    fn see(&mut self, seen: &Seen<'_>, now: Time) -> Result<(), String>;

    /// Looks at the whole world once in a while.
    fn look(&mut self, _world: &World) -> Result<(), String> {
        Ok(())
    }

    /// Looks at the world after all faults are over and all answers should be.
    fn end(&mut self, world: &World) -> Result<(), String>;
}

/// Something that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Violation {
    pub(super) invariant: &'static str,
    pub(super) at: Time,
    pub(super) what: String,
}

/// All invariants, if they are watched.
#[derive(Default)]
pub(super) struct Invariants {
    all: Vec<Box<dyn Invariant>>,
    pub(super) violations: Vec<Violation>,
}

impl Invariants {
    pub(super) fn all() -> Self {
        let all: Vec<Box<dyn Invariant>> = vec![
            Box::new(tokens::Tokens::default()),
            Box::new(once::Once::default()),
            Box::new(leases::Leases::default()),
            Box::new(honest::Honest),
            Box::new(freed::Freed::default()),
            Box::new(credits::Credits),
            Box::new(left::Left::default()),
        ];
        Self { all, violations: Vec::new() }
    }

    /// Those that hold where some peers compute something else than they are asked for.
    pub(super) fn among_liars(liars: BTreeSet<PeerKey>) -> Self {
        let all: Vec<Box<dyn Invariant>> = vec![
            Box::new(tokens::Tokens::among_liars()),
            Box::new(once::Once::default()),
            Box::new(leases::Leases::default()),
            Box::new(lies::Lies::of(liars)),
            Box::new(freed::Freed::default()),
            Box::new(credits::Credits),
        ];
        Self { all, violations: Vec::new() }
    }

    pub(super) fn is_watching(&self) -> bool {
        !self.all.is_empty()
    }

    /// Whatever goes wrong, a mesh comes to rest.
    pub(super) fn never_ends(&mut self, at: Time) {
        self.violations.push(Violation { invariant: "rest", at, what: "a run without end".to_owned() });
    }

    pub(super) fn see(&mut self, seen: &Seen<'_>, at: Time) {
        for invariant in &mut self.all {
            let name = invariant.name();
            let violated = |what| Violation { invariant: name, at, what };
            self.violations.extend(invariant.see(seen, at).err().map(violated));
        }
    }

    pub(super) fn look(&mut self, world: &World) {
        self.judge(world, |invariant| invariant.look(world));
    }

    pub(super) fn end(&mut self, world: &World) {
        self.judge(world, |invariant| invariant.end(world));
    }

    fn judge(&mut self, world: &World, mut judgement: impl FnMut(&mut dyn Invariant) -> Result<(), String>) {
        for invariant in &mut self.all {
            let name = invariant.name();
            let violated = |what| Violation { invariant: name, at: world.now, what };
            self.violations.extend(judgement(&mut **invariant).err().map(violated));
        }
    }
}
