//! A whole run from one seed: a mesh, prompts, a safety phase in which things go wrong, and a liveness phase without.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::mem;

use crate::amounts::Bytes;
use crate::amounts::Position;
use crate::amounts::Span;
use crate::amounts::Time;
use crate::ids::PeerKey;
use crate::ids::RequestId;
use crate::node::config::Limits;
use crate::node::io::Delivery;
use crate::node::io::GenerateSpec;
use crate::node::io::HoldPolicy;
use crate::node::io::Redundancy;
use crate::node::sim::World;
use crate::node::sim::agenda::Event;
use crate::node::sim::chance::Chance;
use crate::node::sim::fault::Blow;
use crate::node::sim::fault::BlowKind;
use crate::node::sim::fault::Fault;
use crate::node::sim::fault::Moment;
use crate::node::sim::invariants::Invariants;
use crate::node::sim::invariants::Violation;
use crate::node::sim::setting;
use crate::node::sim::setting::PATIENCE;
use crate::node::sim::trace::Trace;
use crate::shape::WireDtype;
use crate::units::UnitRange;
use crate::wire::control::SamplingParameters;

/// Units of the toy model.
const UNITS: u16 = 6;

/// How long things go wrong.
const SAFETY: Span = Span::seconds(20);

/// How long the answers may take when nothing goes wrong any more: those that wait try again within seconds.
const LIVENESS: Span = Span::seconds(240);

/// How long after the last answer everything must be free: the longest lease, with clocks that differ.
const AFTERMATH: Span = Span::seconds(45);

/// How often the invariants look at the whole world.
const LOOK: Span = Span::seconds(1);

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) seed: u64,
    pub(super) trace: Trace,
    pub(super) violations: Vec<Violation>,
    /// How many faults of each kind befell it.
    pub(super) faults: BTreeMap<&'static str, u64>,
    /// How much time passed in it.
    pub(super) lasted: Span,
    /// How many chains took the place of broken ones.
    pub(super) mended: u64,
    /// How many lies were found.
    pub(super) caught: u64,
}

/// A run that is about to be made.
struct Scenario {
    chance: Chance,
    world: World,
    /// Those that hold something.
    holders: Vec<PeerKey>,
    /// Those that ask.
    askers: Vec<PeerKey>,
    faults: BTreeMap<&'static str, u64>,
}

/// Runs the scenario of a seed to its end.
pub(super) fn run(seed: u64) -> Report {
    let mut scenario = Scenario::new(seed);
    scenario.prompts();
    scenario.weather();
    scenario.blows();
    if scenario.chance.percent(30) {
        scenario.departures();
    }
    scenario.run(seed)
}

/// Runs a scenario in which nothing happens but that peers are asked to stop.
pub(super) fn run_departures(seed: u64) -> Report {
    let mut scenario = Scenario::new(seed);
    scenario.prompts();
    scenario.departures();
    scenario.run(seed)
}

/// Runs a scenario in which one peer lies and nothing else is wrong, but that some are slow.
pub(super) fn run_lies(seed: u64) -> Report {
    let mut scenario = Scenario::of(seed, 3);
    let liar = scenario.chance.pick(&scenario.holders.clone());
    let from = scenario.chance.pick(&[0, 3, 150, 300, 700]) + scenario.chance.below(100);
    scenario.world.host(liar).engine.lies_from = Some(Position(from as u32));
    scenario.world.invariants = Invariants::among_liars([liar].into());
    for _ in 0..1 + scenario.chance.below(3) {
        let at = scenario.world.now.after(scenario.chance.span(Span::ZERO, Span::seconds(10)));
        let spec = scenario.question();
        let redundancy = scenario.redundancy();
        let peer = scenario.askers[0];
        scenario.world.agenda.schedule(at, Event::Ask(peer, Box::new(GenerateSpec { redundancy, ..spec })));
    }
    let safe = scenario.world.now.after(SAFETY);
    scenario.pass_until(safe, |_| false);
    let latest = scenario.world.now.after(LIVENESS);
    scenario.pass_until(latest, |world| (0..world.requests).map(RequestId).all(|request| world.ended(request)));
    let latest = scenario.world.now.after(AFTERMATH);
    scenario.pass_until(latest, |_| false);
    scenario.report(seed)
}

impl Scenario {
    /// Lets what was planned happen, then makes all of it right and waits for what is under way.
    fn run(mut self, seed: u64) -> Report {
        let safe = self.world.now.after(SAFETY);
        self.pass_until(safe, |_| false);
        self.world.heal();
        let requests: Vec<RequestId> = (0..self.world.requests).map(RequestId).collect();
        let latest = self.world.now.after(LIVENESS);
        self.pass_until(latest, |world| {
            let gone = |request: &RequestId| world.ended(*request) || !world.is_asked(*request);
            requests.iter().all(gone)
        });
        let latest = self.world.now.after(AFTERMATH);
        self.pass_until(latest, |_| false);
        self.report(seed)
    }

    fn new(seed: u64) -> Self {
        let mut scenario = Self::of(seed, 2);
        if scenario.chance.percent(40) {
            let holder = scenario.chance.pick(&scenario.holders);
            scenario.askers.push(holder);
        }
        scenario.world.invariants = Invariants::all();
        scenario
    }

    /// A mesh in which every part of the model has so many holders, or one more.
    fn of(seed: u64, holders_of_each: u64) -> Self {
        let mut chance = Chance::new(seed);
        let delay = chance.pick(&[Span::millis(1), Span::millis(8), Span::millis(40)]);
        let mut world = World::new(chance.next(), delay);
        let columns = columns(&mut chance);
        let mut holders = Vec::new();
        for range in columns {
            for _ in 0..holders_of_each + chance.below(2) {
                let name = holders.len() as u8 + 1;
                let range = if chance.percent(20) { wider(range) } else { range };
                add(&mut world, name, &[range], &mut chance);
                holders.push(setting::key(name));
            }
        }
        let askers = vec![setting::key(100)];
        add(&mut world, 100, &[], &mut chance);
        world.run_for(Span::seconds(3));
        Self { chance, world, holders, askers, faults: BTreeMap::new() }
    }

    /// Prompts over the first part of the safety phase.
    fn prompts(&mut self) {
        for _ in 0..1 + self.chance.below(4) {
            let at = self.world.now.after(self.chance.span(Span::ZERO, Span::seconds(10)));
            let peer = self.chance.pick(&self.askers);
            let mut spec = self.question();
            if self.chance.percent(30) {
                spec.redundancy = self.redundancy();
            }
            self.world.agenda.schedule(at, Event::Ask(peer, Box::new(spec)));
        }
    }

    fn question(&mut self) -> GenerateSpec {
        let length = 1 + if self.chance.percent(50) { self.chance.below(20) } else { self.chance.below(900) };
        let mut spec = setting::spec(setting::prompt(length as u32), 1 + self.chance.below(200) as u32);
        spec.patience = PATIENCE;
        if self.chance.percent(25) {
            spec.wire = WireDtype::F16;
        }
        if self.chance.percent(40) {
            spec.parameters = SamplingParameters { repetition_penalty: 1.1, ..SamplingParameters::default() };
        }
        spec
    }

    fn redundancy(&mut self) -> Redundancy {
        Redundancy::new(2 + self.chance.below(2) as u8).expect("two and three chains can be asked for")
    }

    /// Faults over the safety phase; many runs have only some of the kinds, so that each is also met alone.
    fn weather(&mut self) {
        if self.chance.percent(30) {
            self.world.network.doubled = 10;
        }
        for kind in 0..8 {
            if self.chance.percent(70) {
                continue;
            }
            for _ in 0..1 + self.chance.below(3) {
                let at = self.world.now.after(self.chance.span(Span::ZERO, SAFETY));
                self.fault(kind, at);
            }
        }
    }

    /// Blows to chains that answers are on their way through, often one upon another, so that what takes a lost stage's place is
    /// lost in its turn.
    fn blows(&mut self) {
        const KINDS: [BlowKind; 7] = [
            BlowKind::Crash,
            BlowKind::Freeze,
            BlowKind::Hang,
            BlowKind::Break,
            BlowKind::Cut,
            BlowKind::BreakControl,
            BlowKind::Slow,
        ];
        if self.chance.percent(15) {
            return;
        }
        let kinds: Vec<BlowKind> = KINDS.into_iter().filter(|_| self.chance.percent(50)).collect();
        for _ in 0..self.chance.below(5) {
            let mut at = self.world.now.after(self.chance.span(Span::ZERO, Span::seconds(14)));
            while !kinds.is_empty() {
                let kind = self.chance.pick(&kinds);
                let lasts = self.chance.span(Span::millis(100), Span::seconds(12));
                self.world.agenda.schedule(at, Event::Strike(Blow { kind, lasts }));
                at = at.after(self.chance.span(Span::ZERO, Span::seconds(2)));
                if self.chance.percent(50) {
                    break;
                }
            }
        }
    }

    /// Peers in the midst of answers are asked to stop.
    fn departures(&mut self) {
        for _ in 0..1 + self.chance.below(3) {
            let at = self.world.now.after(self.chance.span(Span::ZERO, Span::seconds(14)));
            self.world.agenda.schedule(at, Event::Strike(Blow { kind: BlowKind::Leave, lasts: Span::ZERO }));
        }
    }

    fn fault(&mut self, kind: u64, at: Time) {
        let (one, other) = self.two();
        let over = at.after(self.chance.span(Span::millis(200), Span::seconds(15)));
        match kind {
            0 => self.plan(&[(at, Fault::Crash(one))]),
            1 => self.plan(&[(at, Fault::Crash(one)), (over, Fault::Restart(one))]),
            2 => {
                let moment = self.chance.pick(&[Moment::BeforeWrite, Moment::AfterWrite]);
                self.plan(&[(at, Fault::CrashAtStore(one, moment)), (over, Fault::Restart(one))]);
            }
            3 => self.plan(&[(at, Fault::Freeze(one)), (over, Fault::Thaw(one))]),
            4 => self.plan(&[(at, Fault::Break(one, other))]),
            5 => {
                self.plan(&[(at, Fault::Cut(one, other)), (over, Fault::Mend(one, other))]);
                if self.chance.percent(50) {
                    self.plan(&[(at, Fault::Cut(other, one)), (over, Fault::Mend(other, one))]);
                }
            }
            6 => self.plan(&[(at, Fault::Hang(one)), (over, Fault::Unhang(one))]),
            _ => {
                let factor = 2 + self.chance.below(40);
                self.plan(&[(at, Fault::Slow(one, factor)), (over, Fault::Slow(one, 1))]);
            }
        }
    }

    fn plan(&mut self, faults: &[(Time, Fault)]) {
        for &(at, fault) in faults {
            *self.faults.entry(fault.kind()).or_default() += 1;
            self.world.agenda.schedule(at, Event::Befall(fault));
        }
    }

    /// Two peers, of which the first is mostly one that holds something.
    fn two(&mut self) -> (PeerKey, PeerKey) {
        let everybody: BTreeSet<PeerKey> = self.holders.iter().chain(&self.askers).copied().collect();
        let one =
            if self.chance.percent(90) { self.chance.pick(&self.holders) } else { self.chance.pick(&self.askers) };
        let others: Vec<PeerKey> = everybody.into_iter().filter(|peer| *peer != one).collect();
        (one, self.chance.pick(&others))
    }

    fn pass_until(&mut self, latest: Time, done: impl Fn(&World) -> bool) {
        while self.world.now < latest && !done(&self.world) {
            let span = LOOK.min(latest.since(self.world.now));
            self.world.run_until(span, |world| !world.invariants.violations.is_empty());
            let mut invariants = mem::take(&mut self.world.invariants);
            invariants.look(&self.world);
            self.world.invariants = invariants;
            if !self.world.invariants.violations.is_empty() {
                return;
            }
        }
    }

    fn report(self, seed: u64) -> Report {
        let Self { mut world, mut faults, .. } = self;
        for (kind, count) in &world.struck {
            *faults.entry(kind).or_default() += count;
        }
        let mut invariants = mem::take(&mut world.invariants);
        if invariants.violations.is_empty() {
            invariants.end(&world);
        }
        let lasted = world.now.since(Time::ZERO);
        let told = world.hosts.values().flat_map(|host| &host.deliveries);
        let mended = told.clone().filter(|(_, _, told)| matches!(told, Delivery::Mended(_))).count() as u64;
        let caught = told.filter(|(_, _, told)| matches!(told, Delivery::Caught(_))).count() as u64;
        Report { seed, trace: world.trace, violations: invariants.violations, faults, lasted, mended, caught }
    }
}

/// Cuts the model into one to four parts.
fn columns(chance: &mut Chance) -> Vec<UnitRange> {
    let mut cuts: BTreeSet<u16> = (0..chance.below(4)).map(|_| 1 + chance.below(u64::from(UNITS) - 1) as u16).collect();
    cuts.extend([0, UNITS]);
    let cuts: Vec<u16> = cuts.into_iter().collect();
    cuts.windows(2).map(|ends| setting::range(ends[0], ends[1])).collect()
}

/// A range with a unit more at each side, so that ranges overlap.
fn wider(range: UnitRange) -> UnitRange {
    setting::range(range.start().saturating_sub(1), (range.end() + 1).min(UNITS))
}

fn add(world: &mut World, name: u8, ranges: &[UnitRange], chance: &mut Chance) {
    let journals = chance.pick(&[Limits::default().journals, Limits::default().journals, Bytes(1_500), Bytes::ZERO]);
    world.add_with(name, |config| config.limits.journals = journals);
    let peer = setting::key(name);
    // Two hours apart, and up to 200 µs a second, as cheap quartz is.
    let (offset, drift) = (chance.below(7_200_000_000), chance.below(400) as i64 - 200);
    world.set_clock(peer, offset, drift);
    world.befall(Fault::Slow(peer, 1 + chance.below(40)));
    world.give(peer, ranges.iter().map(|range| HoldPolicy::Pinned(*range)).collect());
}
