//! This peer's own requests.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::VecDeque;

use crate::amounts::Position;
use crate::amounts::Span;
use crate::amounts::Time;
use crate::ids::ModelId;
use crate::ids::PeerKey;
use crate::ids::RequestId;
use crate::ids::SessionId;
use crate::membership::Event;
use crate::membership::Failure;
use crate::node::Departure;
use crate::node::Node;
use crate::node::config::Privacy;
use crate::node::credit::Debt;
use crate::node::io::Action;
use crate::node::io::Delivery;
use crate::node::io::GenerateFailure;
use crate::node::io::GenerateSpec;
use crate::node::io::Outgoing;
use crate::node::io::Trust;
use crate::node::streams::Owner;
use crate::routing;
use crate::routing::Holder;
use crate::routing::NoRoute;
use crate::routing::View;
use crate::session::replicas::Effect;
use crate::session::replicas::Replicas;
use crate::session::requester::Fault;
use crate::session::requester::Job;
use crate::session::streams::StreamIds;
use crate::shape::WeightFormat;
use crate::units::UnitRange;
use crate::units::UnitWeights;
use crate::wire::control::Commits;
use crate::wire::profile::HoldingState;

/// The round trip between peers that nobody measured (arbitrary: a continent's).
const DEFAULT_ROUND_TRIP: Span = Span::millis(20);

/// The time of one position through one unit where no holder knows (arbitrary: a small model's).
const DEFAULT_PER_UNIT: Span = Span::millis(1);

/// A request under way.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) replicas: Replicas,
    trust: Trust,
    /// The arithmetic class of its chains, if they are compared.
    pub(super) class: Option<String>,
    /// The coarsest format that weights may have, if not any.
    pub(super) min_quant: Option<WeightFormat>,
}

impl Node {
    pub(super) fn on_submit(&mut self, request: RequestId, session: SessionId, spec: GenerateSpec, now: Time) {
        let (trust, redundancy, min_quant) = (spec.trust, spec.redundancy, spec.min_quant);
        match self.job(request, session, spec) {
            Ok(job) => {
                let (replicas, effects) = Replicas::new(job, redundancy);
                self.requests.insert(request, Request { replicas, trust, class: None, min_quant });
                self.perform_for_request(request, effects, now);
            }
            Err(failure) => self.actions.push(Action::Deliver(request, Delivery::Failed(failure))),
        }
    }

    fn job(&self, request: RequestId, session: SessionId, spec: GenerateSpec) -> Result<Job, GenerateFailure> {
        if self.departure == Departure::Draining {
            return Err(GenerateFailure::Draining);
        }
        let is_full = self.requests.len() >= self.config.limits.requests || self.credit.is_behind();
        if is_full || self.requests.contains_key(&request) {
            return Err(GenerateFailure::Busy);
        }
        let shape = self.models.get(&spec.model).ok_or(GenerateFailure::UnknownModel(spec.model))?.shape;
        if spec.prompt.is_empty() || spec.max_tokens == 0 {
            return Err(GenerateFailure::NothingAsked);
        }
        let prompt = u32::try_from(spec.prompt.len()).unwrap_or(u32::MAX);
        if Position(prompt).plus(Position(spec.max_tokens)).0 > shape.context {
            let (max_tokens, context) = (spec.max_tokens, shape.context);
            return Err(GenerateFailure::TooLong { prompt, max_tokens, context });
        }
        Ok(Job {
            session,
            model: spec.model,
            weights: UnitWeights::whole(spec.model, shape.units()),
            shape,
            prompt: spec.prompt,
            parameters: spec.parameters,
            max_tokens: spec.max_tokens,
            end_of_generation: spec.end_of_generation,
            wire: spec.wire,
            patience: spec.patience,
            rounding: None,
            commits: Commits::No,
        })
    }

    /// Does something with a request, if it is still under way, and what follows from it.
    pub(super) fn with_request(
        &mut self,
        id: RequestId,
        now: Time,
        act: impl FnOnce(&mut Replicas, &mut StreamIds) -> Vec<Effect>,
    ) {
        if let Some(request) = self.requests.get_mut(&id) {
            let effects = act(&mut request.replicas, &mut self.ids);
            self.perform_for_request(id, effects, now);
        }
    }

    fn perform_for_request(&mut self, id: RequestId, effects: Vec<Effect>, now: Time) {
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Begin(redundancy) => effects.extend(self.plan_all(id, redundancy, now)),
                Effect::Plan(index) => effects.extend(self.plan(id, index, now)),
                Effect::OpenControl(stream, peer) => {
                    self.owners.insert(stream, Owner::Request(id));
                    self.actions.push(Action::OpenControl(stream, peer));
                }
                Effect::Send(stream, message) => self.send(stream, Outgoing::ToStage(message)),
                Effect::Close(stream) => self.close(stream),
                Effect::Started(chain) => {
                    if let Some(request) = self.requests.get(&id) {
                        let weights = request.replicas.job().weights.clone();
                        self.deliver(id, Delivery::Started(chain, weights));
                    }
                }
                Effect::Waiting(failure) => self.deliver(id, Delivery::Waiting(failure)),
                Effect::Mended(mended) => self.deliver(id, Delivery::Mended(mended)),
                Effect::Token { position, token, logprobs } => {
                    self.deliver(id, Delivery::Token { position, token, logprobs });
                }
                Effect::Caught(lie) => self.deliver(id, Delivery::Caught(lie)),
                Effect::Owe { session, positions, lines } => {
                    if let Some(request) = self.requests.get(&id) {
                        let model = request.replicas.job().model;
                        self.owe(Debt { request: id, session, model, positions, lines }, now);
                    }
                }
                Effect::Praise(peer) => self.tell_membership(Event::PeerSucceeded(peer), now),
                Effect::Reproach(peer, fault) => self.reproach(peer, fault, now),
                Effect::Finished(finish) => self.deliver(id, Delivery::Finished(finish)),
                Effect::Failed(failure) => self.deliver(id, Delivery::Failed(failure)),
                Effect::Ended => {
                    self.requests.remove(&id);
                }
            }
        }
    }

    fn deliver(&mut self, request: RequestId, delivery: Delivery) {
        self.actions.push(Action::Deliver(request, delivery));
    }

    fn reproach(&mut self, peer: PeerKey, fault: Fault, now: Time) {
        // One does not spoil one's own reputation with oneself.
        if peer != self.me {
            let failure = match fault {
                Fault::Unreachable => Failure::Dial,
                Fault::Broke => Failure::Lease,
                Fault::Lied => Failure::Lie,
            };
            self.tell_membership(Event::PeerFailed { peer, failure }, now);
        }
    }

    /// What a chain of a request may be made of: holders of the model, or of those made of it that it accepts.
    pub(super) fn view(&self, request: &Request, now: Time) -> View {
        self.view_of(request, |format| request.accepts(format), now)
    }

    /// The same, whatever their formats are.
    pub(super) fn view_of_any(&self, request: &Request, now: Time) -> View {
        self.view_of(request, |_| true, now)
    }

    fn view_of(&self, request: &Request, accepts: impl Fn(WeightFormat) -> bool, now: Time) -> View {
        let job = request.replicas.job();
        let precisions = (0..).zip(self.precisions(job.model));
        let accepted = precisions.filter(|(_, (_, format))| accepts(*format));
        let holders = accepted.flat_map(|(coarser, (model, _))| self.holders(model, coarser, now));
        let holders: Vec<Holder> = holders.collect();
        View {
            me: self.me,
            units: job.shape.units(),
            round_trips: self.round_trips(holders.iter().map(|holder| holder.peer).collect(), now),
            default_per_unit: usual_pace(&holders),
            holders,
            default_round_trip: DEFAULT_ROUND_TRIP,
            avoid: BTreeSet::new(),
            severed: BTreeSet::new(),
            trust: self.trusted(request.trust),
            seed: seed(job.session),
        }
    }

    /// The models that can take a model's place, with their formats, from the most precise to the coarsest.
    pub(super) fn precisions(&self, model: ModelId) -> Vec<(ModelId, WeightFormat)> {
        let precisions = self.models.get(&model).map_or(&[][..], |facts| &facts.precisions);
        precisions.iter().filter_map(|model| Some((*model, self.models.get(model)?.format))).collect()
    }

    /// Everyone who has units of the model ready, this peer included. `coarser`: than the model that was asked for.
    fn holders(&self, model: ModelId, coarser: u8, now: Time) -> Vec<Holder> {
        // A peer that leaves gives no lease, not even to itself.
        let is_staying = self.departure == Departure::Staying;
        let own = self.holdings.ready(model).filter(|_| is_staying).map(|range| Holder {
            peer: self.me,
            range,
            weights: model,
            coarser,
            per_unit: self.holdings.pace(model),
            queue: self.stages.queue(),
        });
        let others = self.membership.holders(model, now).into_iter();
        let ready = others.filter(|holder| holder.holding.state == HoldingState::Ready);
        let others = ready.map(|holder| Holder {
            peer: holder.profile.peer,
            range: holder.holding.range,
            weights: model,
            coarser,
            per_unit: holder.holding.per_unit,
            queue: holder.profile.queue,
        });
        own.chain(others).collect()
    }

    fn trusted(&self, trust: Trust) -> routing::Trust {
        match (trust, self.config.privacy) {
            (Trust::Open, _) | (Trust::Known, Privacy::Private) => routing::Trust::Any,
            (Trust::Known, Privacy::Open) => routing::Trust::Only(self.config.allowed.clone()),
        }
    }

    fn round_trips(&self, peers: BTreeSet<PeerKey>, now: Time) -> BTreeMap<(PeerKey, PeerKey), Span> {
        let mine = peers.iter().filter_map(|&peer| Some((self.me, peer, self.membership.round_trip(peer)?)));
        let theirs = peers.iter().filter_map(|&peer| self.membership.peer(peer, now)?.profile).flat_map(|profile| {
            let named = |neighbour: &[u8]| peers.iter().copied().find(|peer| peer.as_bytes().starts_with(neighbour));
            let trips = profile.round_trips.iter();
            trips.filter_map(move |trip| Some((profile.peer, named(&trip.neighbour)?, trip.span)))
        });
        // What was measured here comes last and so counts most.
        let measured = theirs.chain(mine).map(|(one, other, span)| (routing::pair(one, other), span)).collect();
        with_ways_round(measured)
    }
}

impl Request {
    /// Whether weights may have this format.
    pub(super) fn accepts(&self, format: WeightFormat) -> bool {
        self.min_quant.is_none_or(|least| format.precision() >= least.precision())
    }
}

/// The time of one position through one unit at a holder that has computed nothing yet: as at the one in the middle of the others.
fn usual_pace(holders: &[Holder]) -> Span {
    let mut known: Vec<Span> = holders.iter().map(|holder| holder.per_unit).filter(|pace| *pace > Span::ZERO).collect();
    known.sort_unstable();
    known.get(known.len() / 2).copied().unwrap_or(DEFAULT_PER_UNIT)
}

/// Adds the round trips of peers that have not measured each other, as long as the shortest way over a third that both have. Without
/// them such a chain would take a stage at that third peer instead.
fn with_ways_round(measured: BTreeMap<(PeerKey, PeerKey), Span>) -> BTreeMap<(PeerKey, PeerKey), Span> {
    let mut near: BTreeMap<PeerKey, Vec<(PeerKey, Span)>> = BTreeMap::new();
    for (&(one, other), &span) in &measured {
        near.entry(one).or_default().push((other, span));
        near.entry(other).or_default().push((one, span));
    }
    let mut trips = measured.clone();
    for neighbours in near.values() {
        for (index, &(one, way)) in neighbours.iter().enumerate() {
            for &(other, further) in &neighbours[index + 1..] {
                let pair = routing::pair(one, other);
                let round = way.plus(further);
                if round < DEFAULT_ROUND_TRIP && !measured.contains_key(&pair) {
                    trips.entry(pair).and_modify(|known| *known = round.min(*known)).or_insert(round);
                }
            }
        }
    }
    trips
}

fn seed(session: SessionId) -> u64 {
    session.as_bytes().iter().take(8).fold(0, |seed, &byte| seed << 8 | u64::from(byte))
}

pub(super) fn no_cover(no_route: NoRoute, units: u16) -> GenerateFailure {
    match no_route {
        NoRoute::Uncovered { missing, excluded } if missing.is_empty() => {
            GenerateFailure::NoCover { missing: excluded, held_by_untrusted: true }
        }
        NoRoute::Uncovered { missing, .. } => GenerateFailure::NoCover { missing, held_by_untrusted: false },
        NoRoute::Severed | NoRoute::TooLong { .. } => {
            let missing = UnitRange::whole(units).into_iter().collect();
            GenerateFailure::NoCover { missing, held_by_untrusted: false }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_that_have_not_measured_each_other_are_as_far_as_the_shortest_way_over_a_third() {
        let trips = |trips: &[(u8, u8, u64)]| -> BTreeMap<_, _> {
            let key = |n| PeerKey::new([n; 32]);
            trips.iter().map(|&(one, other, millis)| ((key(one), key(other)), Span::millis(millis))).collect()
        };
        let measured = [(1, 2, 1), (1, 3, 3), (1, 4, 90), (2, 3, 9), (2, 5, 2), (3, 5, 4)];

        let all = with_ways_round(trips(&measured));

        // Pairs that were measured stay as they are, and whoever is far is no nearer than any stranger.
        assert_eq!(all, trips(&[&measured[..], &[(1, 5, 3)]].concat()));
    }

    #[test]
    fn a_holder_that_has_computed_nothing_is_taken_for_an_ordinary_one() {
        let holder = |micros| Holder {
            peer: PeerKey::new([1; 32]),
            range: UnitRange::new(0, 1).unwrap(),
            weights: ModelId::new([7; 32]),
            coarser: 0,
            per_unit: Span(micros),
            queue: Span::ZERO,
        };

        assert_eq!(usual_pace(&[0, 90, 70, 0, 4_000].map(holder)), Span(90));
        assert_eq!(usual_pace(&[0, 0].map(holder)), DEFAULT_PER_UNIT);
    }
}
