//! This peer's own requests.

use std::collections::BTreeSet;
use std::collections::VecDeque;

use crate::amounts::Position;
use crate::amounts::Span;
use crate::amounts::Time;
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
use crate::units::UnitRange;
use crate::wire::control::Commits;
use crate::wire::profile::HoldingState;

/// The round trip between peers that nobody measured (arbitrary: a continent's).
const DEFAULT_ROUND_TRIP: Span = Span::millis(20);

/// The time of one position through one unit where a holder does not know (arbitrary: a small model's).
const DEFAULT_PER_UNIT: Span = Span::millis(1);

/// A request under way.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) replicas: Replicas,
    trust: Trust,
    /// The arithmetic class of its chains, if they are compared.
    pub(super) class: Option<String>,
}

impl Node {
    pub(super) fn on_submit(&mut self, request: RequestId, session: SessionId, spec: GenerateSpec, now: Time) {
        let (trust, redundancy) = (spec.trust, spec.redundancy);
        match self.job(request, session, spec) {
            Ok(job) => {
                let (replicas, effects) = Replicas::new(job, redundancy);
                self.requests.insert(request, Request { replicas, trust, class: None });
                self.perform_for_request(request, effects, now);
            }
            Err(failure) => self.actions.push(Action::Deliver(request, Delivery::Failed(failure))),
        }
    }

    fn job(&self, request: RequestId, session: SessionId, spec: GenerateSpec) -> Result<Job, GenerateFailure> {
        if self.departure == Departure::Draining {
            return Err(GenerateFailure::Draining);
        }
        if self.requests.len() >= self.config.limits.requests || self.requests.contains_key(&request) {
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
                Effect::Started(chain) => self.deliver(id, Delivery::Started(chain)),
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

    pub(super) fn view(&self, request: &Request, now: Time) -> View {
        let job = request.replicas.job();
        let holders = self.holders(job.model, now);
        View {
            me: self.me,
            units: job.shape.units(),
            round_trips: self.round_trips(holders.iter().map(|holder| holder.peer).collect(), now),
            holders,
            default_round_trip: DEFAULT_ROUND_TRIP,
            default_per_unit: DEFAULT_PER_UNIT,
            avoid: BTreeSet::new(),
            severed: BTreeSet::new(),
            trust: self.trusted(request.trust),
            seed: seed(job.session),
        }
    }

    /// Everyone who has units of the model ready, this peer included.
    fn holders(&self, model: crate::ids::ModelId, now: Time) -> Vec<Holder> {
        let own = self.holdings.ready(model).map(|range| Holder {
            peer: self.me,
            range,
            per_unit: self.holdings.pace(model),
            queue: self.stages.queue(),
        });
        let others = self.membership.holders(model, now).into_iter();
        let ready = others.filter(|holder| holder.holding.state == HoldingState::Ready);
        let others = ready.map(|holder| Holder {
            peer: holder.profile.peer,
            range: holder.holding.range,
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

    fn round_trips(&self, peers: BTreeSet<PeerKey>, now: Time) -> std::collections::BTreeMap<(PeerKey, PeerKey), Span> {
        let mine = peers.iter().filter_map(|&peer| Some((self.me, peer, self.membership.round_trip(peer)?)));
        let theirs = peers.iter().filter_map(|&peer| self.membership.peer(peer, now)?.profile).flat_map(|profile| {
            let named = |neighbour: &[u8]| peers.iter().copied().find(|peer| peer.as_bytes().starts_with(neighbour));
            let trips = profile.round_trips.iter();
            trips.filter_map(move |trip| Some((profile.peer, named(&trip.neighbour)?, trip.span)))
        });
        // What was measured here comes last and so counts most.
        theirs.chain(mine).map(|(one, other, span)| (routing::pair(one, other), span)).collect()
    }
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
