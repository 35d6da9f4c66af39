//! Nothing is minted or burnt, and whoever is honest never looks like a cheat, whenever it crashes.

use std::collections::BTreeMap;

use crate::amounts::Mflop;
use crate::amounts::Time;
use crate::ids::PeerKey;
use crate::node::sim::World;
use crate::node::sim::invariants::Invariant;
use crate::node::sim::invariants::Seen;

/// Compares the logs of all peers with what their requesters have signed and kept.
pub(super) struct Credits;

impl Invariant for Credits {
    fn name(&self) -> &'static str {
        "credits"
    }

    fn see(&mut self, _seen: &Seen<'_>, _now: Time) -> Result<(), String> {
        Ok(())
    }

    fn look(&mut self, world: &World) -> Result<(), String> {
        for (peer, host) in &world.hosts {
            let Some(node) = &host.node else { continue };
            if let Some(fork) = node.ledger().forks().next() {
                return Err(format!("{peer:?} takes {:?} for a cheat", fork.requester()));
            }
        }
        Ok(())
    }

    fn end(&mut self, world: &World) -> Result<(), String> {
        self.look(world)?;
        let signed = signed(world);
        for (peer, host) in &world.hosts {
            let Some(node) = &host.node else { continue };
            for (debtor, creditor, owed) in node.ledger().balances() {
                let promised = signed.get(&(debtor, creditor)).copied().unwrap_or_default();
                // What gossip has not brought yet is missing; nothing may be too much.
                if owed > promised || (debtor == *peer && owed != promised) {
                    return Err(format!("{peer:?} has {owed} from {debtor:?} to {creditor:?}, signed were {promised}"));
                }
            }
        }
        Ok(())
    }
}

/// What each peer has on its own disk as owed to another.
fn signed(world: &World) -> BTreeMap<(PeerKey, PeerKey), Mflop> {
    let mut signed: BTreeMap<(PeerKey, PeerKey), Mflop> = BTreeMap::new();
    for (peer, host) in &world.hosts {
        let own = host.disk.iter().filter(|entry| entry.header.value.requester == *peer);
        for line in own.flat_map(|entry| &entry.lines).filter(|line| line.stage != *peer) {
            let sum = signed.entry((*peer, line.stage)).or_default();
            *sum = sum.plus(line.work);
        }
    }
    signed
}
