//! Which leases this peer gives, and what it holds ready for them.
//!
//! **In two phases.** An offer reserves all memory that its stage may ever need; the stage's `Accept`, which comes when its neighbours
//! are there, makes it a lease. What comes to nothing (declined, neighbours that did not come in time, a lease that ran out) gives
//! all back. So no session has to be given up later for want of memory, and whoever is told `Busy` knows it before a token is fed.
//!
//! **Journals** make rebuilding cheap and are never the only copy, so they come second: a stage whose journal would not fit in the worst
//! case is leased all the same, with nothing reserved for that, and its journal is the first to be forgotten. Those for which there
//! is a reservation are forgotten only if caches need the memory.
//!
//! **Fair shares.** Whoever has leases may take another as long as it has no more than there are left, and some multiple for
//! memory (dynamic thresholds, Choudhury and Hahne 1998): one alone gets far, many get equal parts, and there is always something
//! left for a newcomer. This peer's own work and answers under way elsewhere, which ask for a lost stage's place, are not bound by it.
//!
//! **Own work first.** If this peer's own answer needs it and no other peer will do, the least important of others' leases makes way:
//! its requester is told that it is to go, and hands it over; where nobody can take it, it ends after a while.

use crate::amounts::Bytes;
use crate::amounts::Position;
use crate::amounts::Span;
use crate::amounts::Time;
use crate::ids::Epoch;
use crate::ids::PeerKey;
use crate::node::Departure;
use crate::node::Node;
use crate::node::config::Serves;
use crate::node::io::StageKey;
use crate::node::stages::Leased;
use crate::scheduler::Class;
use crate::session::stage::LeasedStage;
use crate::session::stage::Terms;
use crate::wire::control::Begins;
use crate::wire::control::Decline;
use crate::wire::control::DeclineReason;
use crate::wire::control::Offer;

/// So many times the memory that is left may one requester have (arbitrary: alone it gets four fifths).
const MEMORY_SHARE: u64 = 4;

/// When to ask again a peer that has computed nothing yet, and so cannot tell (arbitrary).
const UNKNOWN: Span = Span::seconds(1);

/// When own work is to ask again for which others' leases make way (arbitrary: handing over takes a few round trips).
const MADE_WAY: Span = Span::millis(200);

/// How long a lease that makes way may take to be handed over: as long as a peer that leaves waits for that.
const HAND_OVER: Span = Span::seconds(8);

/// The soonest and the latest that a busy peer is to be asked again (arbitrary: a few round trips; sessions often end long before
/// all of their positions are used).
const RETRY: (Span, Span) = (Span::millis(100), Span::seconds(30));

/// Memory held ready for one stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reservation {
    /// For its keys and values.
    pub(super) cache: Bytes,
    /// For what it could send again; none if there was no room.
    pub(super) journal: Bytes,
}

/// What there is to give, and what the one who asks has already.
#[derive(Clone, Copy, Debug)]
struct Stock {
    /// Leases that may still be given.
    leases: usize,
    /// Memory for caches that is left.
    memory: Bytes,
    /// Memory for journals that is not reserved.
    journals: Bytes,
    own_leases: usize,
    own_memory: Bytes,
    /// Leases that the requester may have at all.
    most: usize,
}

/// Whether an offer is bound by its requester's fair share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    Fair,
    Prior,
}

/// Why an offer gets nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shortage {
    /// Of leases.
    Leases,
    /// Of so much memory.
    Memory(Bytes),
    /// The requester has its share.
    Share,
}

impl Stock {
    /// Takes what is wanted, if it is there; the journal's part only if that is there as well.
    fn reserve(&self, wanted: Reservation, claim: Claim) -> Result<Reservation, Shortage> {
        if self.leases == 0 {
            return Err(Shortage::Leases);
        }
        if self.memory < wanted.cache {
            return Err(Shortage::Memory(wanted.cache.minus(self.memory)));
        }
        let is_beyond = claim == Claim::Fair && self.own_leases > 0 && self.is_beyond_share(wanted.cache);
        if is_beyond || self.own_leases >= self.most {
            return Err(Shortage::Share);
        }
        let has_room = wanted.journal <= self.journals.min(self.memory.minus(wanted.cache));
        Ok(Reservation { journal: if has_room { wanted.journal } else { Bytes::ZERO }, ..wanted })
    }

    fn is_beyond_share(&self, cache: Bytes) -> bool {
        let left = self.memory.minus(cache).times(MEMORY_SHARE);
        self.own_leases >= self.leases || self.own_memory.plus(cache) > left
    }
}

impl Node {
    /// Decides on a lease, and reserves what it may need. What an earlier chain of the same session had of these units makes way
    /// first.
    pub(super) fn admit(
        &mut self,
        offer: Offer,
        requester: PeerKey,
        now: Time,
    ) -> Result<(Terms, Reservation), Decline> {
        let terms = self.check(offer, requester, now).map_err(|reason| Decline { reason, retry_after: None })?;
        let stock = self.stock(requester);
        let wanted = Reservation { cache: cache_of(&terms), journal: terms.journal() };
        let is_prior = self.class(requester) == Class::Own || terms.begins == Begins::Earlier;
        let claim = if is_prior { Claim::Prior } else { Claim::Fair };
        match stock.reserve(wanted, claim) {
            Ok(reserved) => Ok((terms, reserved)),
            Err(shortage) if self.class(requester) == Class::Own => Err(self.own_lacks(shortage)),
            Err(shortage) => Err(self.busy(shortage, requester)),
        }
    }

    /// This peer's own work lacks something here. It may do with another peer; if not, [`Node::make_way`] follows.
    fn own_lacks(&mut self, shortage: Shortage) -> Decline {
        let decline = self.busy(shortage, self.me);
        let lacking = match shortage {
            Shortage::Leases => Bytes::ZERO,
            Shortage::Memory(lacking) => lacking,
            Shortage::Share => return decline,
        };
        self.stages.lacking = Some(lacking);
        let retry_after = if self.least_important().is_empty() { decline.retry_after } else { Some(MADE_WAY) };
        Decline { retry_after, ..decline }
    }

    /// Lets others' leases make way for what own work lacked here last: as few as it takes.
    pub(super) fn make_way(&mut self, now: Time) {
        let Some(lacking) = self.stages.lacking.take() else { return };
        let going = self.stages.leased.values().filter(|leased| leased.goes_at.is_some());
        let mut freed: Vec<Bytes> = going.map(|leased| leased.reserved.cache).collect();
        for key in self.least_important() {
            if !freed.is_empty() && lacking <= freed.iter().copied().sum() {
                return;
            }
            if let Some(leased) = self.stages.leased.get_mut(&key) {
                leased.goes_at = Some(now.after(HAND_OVER));
                freed.push(leased.reserved.cache);
            }
            self.with_stage(key, now, LeasedStage::on_drain);
        }
    }

    /// Leases of others that could make way, in the order in which they do: those of strangers before those of trusted peers, and
    /// of these the ones that would last longest.
    fn least_important(&self) -> Vec<StageKey> {
        let others =
            self.stages.leased.iter().filter(|(_, leased)| leased.class != Class::Own && leased.goes_at.is_none());
        let mut others: Vec<(Class, Position, StageKey)> =
            others.map(|(&key, leased)| (leased.class, leased.stage.left(), key)).collect();
        others.sort_unstable_by(|one, other| other.cmp(one));
        others.into_iter().map(|(_, _, key)| key).collect()
    }

    fn check(&mut self, offer: Offer, requester: PeerKey, now: Time) -> Result<Terms, DeclineReason> {
        if self.departure == Departure::Draining {
            return Err(DeclineReason::Draining);
        }
        if self.is_stuck() {
            return Err(DeclineReason::Busy);
        }
        if self.config.serves == Serves::Allowed && self.class(requester) == Class::Other {
            return Err(DeclineReason::NotAllowed);
        }
        let facts = self.models.get(&offer.weights).ok_or(DeclineReason::NotHeld)?;
        if offer.weights != offer.model && facts.source != Some(offer.model) {
            return Err(DeclineReason::BadOffer);
        }
        let shape = facts.shape;
        let terms = Terms::of(offer, requester, self.me, shape)?;
        self.fence(&terms, now)?;
        if self.stages.leased.contains_key(&terms.key) {
            return Err(DeclineReason::Fenced);
        }
        if !self.holdings.ready(terms.weights).any(|range| range.covers(terms.range)) {
            return Err(DeclineReason::NotHeld);
        }
        Ok(terms)
    }

    fn fence(&mut self, terms: &Terms, now: Time) -> Result<(), DeclineReason> {
        let (epoch, requester) = (terms.epoch, terms.requester);
        let of_session = self.stages.leased.iter().filter(|(key, _)| key.session == terms.key.session);
        let known: Vec<(StageKey, PeerKey, Epoch)> = of_session
            .map(|(&key, leased)| (key, leased.stage.terms().requester, leased.stage.terms().epoch))
            .collect();
        if known.iter().any(|&(_, owner, newest)| owner != requester || newest > epoch) {
            return Err(DeclineReason::Fenced);
        }
        let in_the_way =
            |&(key, _, older): &(StageKey, PeerKey, Epoch)| older < epoch && key.range.overlaps(terms.range);
        for (key, _, _) in known.into_iter().filter(in_the_way) {
            self.with_stage(key, now, LeasedStage::on_superseded);
        }
        Ok(())
    }

    /// How important the work of a requester is here.
    pub(super) fn class(&self, requester: PeerKey) -> Class {
        if requester == self.me {
            Class::Own
        } else if self.config.allowed.contains(&requester) {
            Class::Trusted
        } else {
            Class::Other
        }
    }

    /// Memory that journals may use: caches come first.
    pub(super) fn room_for_journals(&self) -> Bytes {
        self.config.limits.journals.min(self.room())
    }

    /// Memory that caches may still take. Journals make way for them.
    fn room(&self) -> Bytes {
        self.config.memory.minus(self.holdings.weights(&self.models)).minus(self.cache())
    }

    fn stock(&self, requester: PeerKey) -> Stock {
        let limits = self.config.limits;
        let of_requester = || self.of(requester);
        let is_own = self.class(requester) == Class::Own;
        Stock {
            leases: limits.leases.saturating_sub(self.stages.len()),
            memory: self.room(),
            journals: self.room_for_journals().minus(self.stages.journals_reserved()),
            own_leases: of_requester().count(),
            own_memory: of_requester().map(|leased| leased.reserved.cache).sum(),
            most: if is_own { usize::MAX } else { limits.leases_per_requester },
        }
    }

    fn of(&self, requester: PeerKey) -> impl Iterator<Item = &Leased> {
        self.stages.leased.values().filter(move |leased| leased.stage.terms().requester == requester)
    }

    fn busy(&self, shortage: Shortage, requester: PeerKey) -> Decline {
        let (reason, ends) = match shortage {
            Shortage::Leases => (DeclineReason::Busy, self.frees(self.stages.leased.values(), Bytes::ZERO)),
            Shortage::Share => (DeclineReason::Busy, self.frees(self.of(requester), Bytes::ZERO)),
            Shortage::Memory(lacking) => (DeclineReason::NoMemory, self.frees(self.stages.leased.values(), lacking)),
        };
        Decline { reason, retry_after: ends }
    }

    /// When one of `leases` will have ended, and so many bytes be free, if each session uses all of its positions: in a pass of the
    /// engine it goes on by one, behind what waits. `None` if they are never free.
    fn frees<'a>(&self, leases: impl Iterator<Item = &'a Leased>, lacking: Bytes) -> Option<Span> {
        let mut ends: Vec<(Position, Bytes)> =
            leases.map(|leased| (leased.stage.left(), leased.reserved.cache)).collect();
        ends.sort_unstable();
        let mut free = Bytes::ZERO;
        let (left, _) = ends.into_iter().find(|(_, cache)| {
            free = free.plus(*cache);
            lacking <= free
        })?;
        let pass = self.stages.pass_time;
        if pass == Span::ZERO {
            return Some(UNKNOWN);
        }
        Some(pass.times(u64::from(left.0)).plus(self.stages.queue()).clamp(RETRY.0, RETRY.1))
    }
}

fn cache_of(terms: &Terms) -> Bytes {
    terms.shape.kv_bytes(terms.range, terms.budget)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const STOCK: Stock = Stock {
        leases: 8,
        memory: Bytes(1_000),
        journals: Bytes(100),
        own_leases: 0,
        own_memory: Bytes::ZERO,
        most: 20,
    };

    fn wants(cache: u64, journal: u64) -> Reservation {
        Reservation { cache: Bytes(cache), journal: Bytes(journal) }
    }

    #[test]
    fn what_an_idle_peer_has_is_given_to_anyone() {
        assert_eq!(STOCK.reserve(wants(1_000, 0), Claim::Fair), Ok(wants(1_000, 0)));
        assert_eq!(STOCK.reserve(wants(1_001, 0), Claim::Prior), Err(Shortage::Memory(Bytes(1))));
        let none = Stock { leases: 0, ..STOCK };
        assert_eq!(none.reserve(wants(1, 0), Claim::Prior), Err(Shortage::Leases));
    }

    #[test]
    fn a_journal_that_does_not_fit_is_no_reason_to_refuse() {
        assert_eq!(STOCK.reserve(wants(500, 100), Claim::Fair), Ok(wants(500, 100)));
        assert_eq!(STOCK.reserve(wants(500, 101), Claim::Fair), Ok(wants(500, 0)));
        assert_eq!(STOCK.reserve(wants(950, 51), Claim::Fair), Ok(wants(950, 0)), "the cache comes first");
    }

    #[test]
    fn whoever_has_its_share_gets_no_more_unless_it_is_this_peers_own_or_under_way() {
        let held = |own_leases, own_memory| Stock { own_leases, own_memory: Bytes(own_memory), ..STOCK };

        assert!(held(7, 100).reserve(wants(100, 0), Claim::Fair).is_ok());
        assert_eq!(held(8, 100).reserve(wants(100, 0), Claim::Fair), Err(Shortage::Share));
        assert_eq!(held(1, 3_700).reserve(wants(100, 0), Claim::Fair), Err(Shortage::Share));
        assert!(held(8, 3_700).reserve(wants(100, 0), Claim::Prior).is_ok());
        assert_eq!(held(20, 0).reserve(wants(1, 0), Claim::Prior), Err(Shortage::Share));
    }

    /// What happens at a peer's desk.
    #[derive(Clone, Debug)]
    enum Deed {
        Offer { requester: u8, cache: u64, journal: u64, claim: Claim },
        End { index: usize },
    }

    fn deeds() -> impl Strategy<Value = Vec<Deed>> {
        let claim = prop_oneof![4 => Just(Claim::Fair), 1 => Just(Claim::Prior)];
        let offer = (0..5_u8, 1..80_u64, 0..50_u64, claim).prop_map(|(requester, cache, journal, claim)| Deed::Offer {
            requester,
            cache,
            journal,
            claim,
        });
        let end = any::<usize>().prop_map(|index| Deed::End { index });
        proptest::collection::vec(prop_oneof![3 => offer, 1 => end], 1..120)
    }

    /// A peer's desk with what it has given.
    #[derive(Default)]
    struct Desk(Vec<(u8, Reservation)>);

    impl Desk {
        const LEASES: usize = 24;
        const MEMORY: Bytes = Bytes(1_000);
        const JOURNALS: Bytes = Bytes(120);

        fn stock(&self, requester: u8) -> Stock {
            let own = || self.0.iter().filter(|(of, _)| *of == requester);
            let memory = Self::MEMORY.minus(self.0.iter().map(|(_, reserved)| reserved.cache).sum());
            Stock {
                leases: Self::LEASES - self.0.len(),
                memory,
                journals: Self::JOURNALS.min(memory).minus(self.0.iter().map(|(_, reserved)| reserved.journal).sum()),
                own_leases: own().count(),
                own_memory: own().map(|(_, reserved)| reserved.cache).sum(),
                most: Self::LEASES,
            }
        }
    }

    proptest! {
        /// Whatever is asked for and given back, no more is given than there is.
        #[test]
        fn what_is_reserved_is_there(deeds in deeds()) {
            let mut desk = Desk::default();
            for deed in deeds {
                match deed {
                    Deed::Offer { requester, cache, journal, claim } => {
                        let stock = desk.stock(requester);
                        if let Ok(reserved) = stock.reserve(wants(cache, journal), claim) {
                            desk.0.push((requester, reserved));
                        }
                    }
                    Deed::End { index } if !desk.0.is_empty() => {
                        let index = index % desk.0.len();
                        desk.0.swap_remove(index);
                    }
                    Deed::End { .. } => {}
                }
                let sum = |part: fn(&Reservation) -> Bytes| desk.0.iter().map(|(_, reserved)| part(reserved)).sum::<Bytes>();
                prop_assert!(desk.0.len() <= Desk::LEASES);
                prop_assert!(sum(|reserved| reserved.cache) <= Desk::MEMORY);
                prop_assert!(sum(|reserved| reserved.journal) <= Desk::JOURNALS);
            }
        }

        /// However much the others want, none of them gets much more than another, and a newcomer finds something.
        #[test]
        fn the_greedy_get_equal_parts_and_leave_something(crowd in 1..5_u8, cache in 1..20_u64) {
            let mut desk = Desk::default();
            loop {
                let before = desk.0.len();
                for requester in 0..crowd {
                    if let Ok(reserved) = desk.stock(requester).reserve(wants(cache, 0), Claim::Fair) {
                        desk.0.push((requester, reserved));
                    }
                }
                if desk.0.len() == before {
                    break;
                }
            }

            let mut counts: BTreeMap<u8, usize> = BTreeMap::new();
            desk.0.iter().for_each(|(requester, _)| *counts.entry(*requester).or_default() += 1);
            let (least, most) = (counts.values().min().unwrap(), counts.values().max().unwrap());
            prop_assert!(most - least <= 1, "{:?}", counts);
            prop_assert!(desk.stock(99).reserve(wants(cache, 0), Claim::Fair).is_ok());
        }
    }
}
