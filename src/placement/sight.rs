//! What the others say, how long they have been saying it, and who goes before whom.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::amounts::Span;
use crate::amounts::Time;
use crate::ids::ModelId;
use crate::ids::PeerKey;
use crate::placement::Other;
use crate::placement::PlacementConfig;
use crate::placement::choice::Choice;
use crate::placement::fit::Fit;
use crate::units::Cover;
use crate::units::UnitRange;
use crate::wire::profile::Holding;
use crate::wire::profile::HoldingState;

/// Who goes first: newcomers before those that serve already, then by hash.
pub(super) type Precedence = (Class, [u8; 8], PeerKey);

/// Whether a peer serves the model already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    Newcomer,
    Serving,
}

/// The others' view of the model.
#[derive(Clone, Debug)]
pub(super) struct Sight {
    me: PeerKey,
    model: ModelId,
    /// What counts as that model: itself at every precision.
    family: BTreeSet<ModelId>,
    units: u16,
    config: PlacementConfig,
    others: Vec<Other>,
    /// Since when somebody says that a range is intended or loading.
    since: BTreeMap<(PeerKey, UnitRange, HoldingState), Time>,
    now: Time,
}

impl Sight {
    pub(super) fn new(
        me: PeerKey,
        model: ModelId,
        family: BTreeSet<ModelId>,
        units: u16,
        config: PlacementConfig,
    ) -> Self {
        Self { me, model, family, units, config, others: Vec::new(), since: BTreeMap::new(), now: Time::ZERO }
    }

    pub(super) fn seen(&mut self, others: Vec<Other>, now: Time) {
        let (me, family, units) = (self.me, &self.family, self.units);
        self.others = others;
        self.others.retain(|other| other.peer != me);
        self.others.sort_by_key(|other| other.peer);
        for other in &mut self.others {
            other.holdings.retain(|holding| family.contains(&holding.model) && holding.range.end() <= units);
        }
        let since = std::mem::take(&mut self.since);
        let said = self.others.iter().flat_map(|other| other.holdings.iter().map(|holding| (other.peer, holding)));
        for (peer, holding) in said.filter(|(_, holding)| holding.state != HoldingState::Ready) {
            let key = (peer, holding.range, holding.state);
            // The same range may be said of two precisions.
            let first = since.get(&key).copied().unwrap_or(now);
            self.since.entry(key).or_insert(first);
        }
    }

    pub(super) fn expire(&mut self, now: Time) {
        self.now = now;
    }

    /// A number of this peer's own for this model.
    pub(super) fn fraction(&self) -> u16 {
        let (_, [first, second, ..], _) = self.precedence(self.me, Class::Newcomer);
        u16::from_be_bytes([first, second])
    }

    /// Whether somebody is about to change.
    pub(super) fn unsettled(&self) -> bool {
        self.others.iter().any(|other| self.live(other).any(|holding| holding.state != HoldingState::Ready))
    }

    /// Who is ready or loading, per unit.
    pub(super) fn committed(&self) -> Cover {
        self.cover(|_, holding| holding.state != HoldingState::Intended)
    }

    /// Who is ready, loading or about to, per unit.
    pub(super) fn expected(&self) -> Cover {
        self.cover(|_, _| true)
    }

    /// Who is ready, per unit.
    pub(super) fn ready(&self) -> Cover {
        self.cover(|_, holding| holding.state == HoldingState::Ready)
    }

    /// Newcomers' intents, and those of serving peers, best first.
    pub(super) fn intents(&self) -> Vec<(Precedence, UnitRange)> {
        let of = |other: &Other| {
            let precedence = self.precedence(other.peer, self.class(other));
            let intended = self.live(other).filter(|holding| holding.state == HoldingState::Intended);
            intended.map(move |holding| (precedence, holding.range)).collect::<Vec<_>>()
        };
        let mut intents: Vec<_> = self.others.iter().flat_map(of).collect();
        intents.sort_unstable();
        intents
    }

    pub(super) fn my_precedence(&self, class: Class) -> Precedence {
        self.precedence(self.me, class)
    }

    /// Whether others that go first take, or have, a unit of `wanted`, for a peer that serves already.
    pub(super) fn taken_before_me(&self, wanted: UnitRange) -> bool {
        let mine = self.my_precedence(Class::Serving);
        let held = self.committed();
        let intents = self.intents();
        let mut before = intents.iter().filter(|(precedence, _)| *precedence < mine);
        before.any(|(_, range)| range.overlaps(wanted))
            || wanted.iter().any(|unit| held.counts().get(usize::from(unit)).is_some_and(|count| *count > 0))
    }

    /// Whether each of `units` is ready at another peer that will keep it: one that is not about to change, or whose
    /// intent must yield to this one's.
    pub(super) fn hold_besides_me(&self, units: &[u16]) -> bool {
        let mine = self.my_precedence(Class::Serving);
        let keeps = |other: &Other| {
            let says = |state| self.live(other).any(|holding| holding.state == state);
            let yields = self.precedence(other.peer, Class::Serving) > mine;
            !says(HoldingState::Loading) && (yields || !says(HoldingState::Intended))
        };
        let keepers: Vec<_> = self.others.iter().filter(|other| keeps(other)).collect();
        let ready = |other: &Other, unit: u16| {
            other.holdings.iter().any(|holding| holding.state == HoldingState::Ready && holding.range.contains(unit))
        };
        units.iter().all(|unit| keepers.iter().any(|other| ready(other, *unit)))
    }

    /// How many others, ranked better, could carry out the like of `choice`.
    pub(super) fn better_ranked(&self, choice: &Choice, joining: bool, fit: &Fit) -> u64 {
        let class = if joining { Class::Newcomer } else { Class::Serving };
        let mine = self.my_precedence(class);
        let cover = self.ready();
        let twice = |unit: u16| cover.counts().get(usize::from(unit)).is_some_and(|count| *count > 1);
        let able = |other: &Other| match class {
            Class::Newcomer => self.class(other) == Class::Newcomer,
            Class::Serving if choice.leave.is_empty() => other.memory_free >= fit.unit_bytes(choice.purpose.start()),
            Class::Serving => other.holdings.iter().any(|holding| holding.range.iter().all(twice)),
        };
        let better = |other: &&Other| self.precedence(other.peer, self.class(other)) < mine;
        let count = self.others.iter().filter(better).filter(|other| able(other)).count();
        u64::try_from(count).unwrap_or(u64::MAX)
    }

    /// How many others that hold some of `range` are ranked better.
    pub(super) fn rank_among_holders(&self, range: UnitRange) -> u64 {
        let mine = self.my_precedence(Class::Serving);
        let holds = |other: &&Other| other.holdings.iter().any(|holding| holding.range.overlaps(range));
        let better = |other: &&Other| self.precedence(other.peer, Class::Serving) < mine;
        u64::try_from(self.others.iter().filter(holds).filter(better).count()).unwrap_or(u64::MAX)
    }

    /// How many of a range's ends meet what a peer on the same LAN holds or is about to.
    pub(super) fn ends_near(&self, range: UnitRange) -> usize {
        let near = self.others.iter().filter(|other| other.is_near).flat_map(|other| self.live(other));
        let (mut before, mut behind) = (false, false);
        for holding in near {
            before |= holding.range.end() == range.start();
            behind |= holding.range.start() == range.end();
        }
        usize::from(before) + usize::from(behind)
    }

    /// Ready holdings of the others.
    pub(super) fn ready_holdings(&self) -> impl Iterator<Item = &Holding> {
        let holdings = self.others.iter().flat_map(|other| &other.holdings);
        holdings.filter(|holding| holding.state == HoldingState::Ready)
    }

    fn cover(&self, counts: impl Fn(&Other, &Holding) -> bool) -> Cover {
        let mut cover = Cover::empty(self.units);
        for other in &self.others {
            self.live(other).filter(|holding| counts(other, holding)).for_each(|holding| cover.add(holding.range));
        }
        cover
    }

    /// The holdings that still count: an intent or a load that leads to nothing is not believed for ever.
    fn live<'a>(&'a self, other: &'a Other) -> impl Iterator<Item = &'a Holding> {
        other.holdings.iter().filter(|holding| {
            let said = self.since.get(&(other.peer, holding.range, holding.state));
            let age = said.map_or(Span::ZERO, |since| self.now.since(*since));
            match holding.state {
                HoldingState::Intended => age < self.config.intent_expires,
                HoldingState::Loading => age < self.config.load_expires,
                HoldingState::Ready => true,
            }
        })
    }

    fn class(&self, other: &Other) -> Class {
        let serves = other.holdings.iter().any(|holding| holding.state != HoldingState::Intended);
        if serves { Class::Serving } else { Class::Newcomer }
    }

    fn precedence(&self, peer: PeerKey, class: Class) -> Precedence {
        let mut hasher = blake3::Hasher::new();
        hasher.update(peer.as_bytes()).update(self.model.as_bytes());
        let mut rank = [0; 8];
        hasher.finalize_xof().fill(&mut rank);
        (class, rank, peer)
    }
}
