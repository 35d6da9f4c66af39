//! Which chains this peer's own requests take: what routing is asked, and with what view of the mesh.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::amounts::Time;
use crate::ids::ModelId;
use crate::ids::PeerKey;
use crate::ids::ReplicaIndex;
use crate::ids::RequestId;
use crate::node::Node;
use crate::node::io::GenerateFailure;
use crate::node::requests::Request;
use crate::node::requests::no_cover;
use crate::routing;
use crate::routing::Apart;
use crate::routing::NoRoute;
use crate::routing::TooFew;
use crate::routing::View;
use crate::session::replicas::Effect;
use crate::session::replicas::Redundancy;
use crate::session::replicas::Wish;
use crate::units::Chain;
use crate::units::UnitWeights;

/// Chains of one arithmetic class, or why there are not enough.
type Chains = Result<(Vec<Chain>, UnitWeights), TooFew>;

impl Node {
    /// Plans the chains of a request. Those that are compared are of one arithmetic class, across which bits differ, and compute with
    /// the same weights.
    pub(super) fn plan_all(&mut self, id: RequestId, redundancy: Redundancy, now: Time) -> Vec<Effect> {
        let Some(request) = self.requests.get(&id) else { return Vec::new() };
        let view = self.view(request, now);
        let (class, planned) = match redundancy {
            Redundancy::NONE => (None, self.most_precise(request, &view, |view| routing::several(view, 1))),
            _ => self.several_of_one_class(request, &view, redundancy.chains(), now),
        };
        let refusal = planned.as_ref().err().map(|TooFew { cause, .. }| self.refusal(request, cause.clone(), now));
        let Some(request) = self.requests.get_mut(&id) else { return Vec::new() };
        request.class = class;
        match (planned, refusal) {
            (Ok((chains, weights)), _) => {
                request.replicas.weigh(weights);
                request.replicas.begin(chains, &mut self.ids, now)
            }
            (Err(TooFew { found, .. }), Some(refusal)) => request.replicas.too_few(found, refusal, now),
            (Err(_), None) => Vec::new(),
        }
    }

    /// Plans with the most precise weights with which there is a plan: first with the model's own, then also with what is a little
    /// coarser, and so on. So of two chains the one wins whose coarsest weights are finer, whatever it costs.
    fn most_precise<P, E>(&self, request: &Request, view: &View, plan: impl Fn(&View) -> Result<P, E>) -> Result<P, E> {
        let mut finer: Vec<ModelId> = Vec::new();
        for (model, _) in self.precisions(request.replicas.job().model) {
            finer.push(model);
            if view.holders.iter().all(|holder| finer.contains(&holder.weights)) {
                break;
            }
            if let Ok(planned) = plan(&of_these(view, &finer)) {
                return Ok(planned);
            }
        }
        plan(view)
    }

    /// In the class of most holders that has so many chains; if none has, in that which has most.
    fn several_of_one_class(&self, request: &Request, view: &View, count: u8, now: Time) -> (Option<String>, Chains) {
        let mut sizes: BTreeMap<String, usize> = BTreeMap::new();
        for holder in &view.holders {
            *sizes.entry(self.arithmetic_of(holder.peer, now)).or_default() += 1;
        }
        let mut classes: Vec<(usize, String)> = sizes.into_iter().map(|(class, size)| (size, class)).collect();
        classes.sort_by(|(one, first), (other, second)| other.cmp(one).then_with(|| first.cmp(second)));
        let mut fewest = None;
        for (_, class) in classes {
            let of_class = self.only_class(view.clone(), &class, now);
            match self.most_precise(request, &of_class, |view| alike(view, count)) {
                Ok(chains) => return (Some(class), Ok(chains)),
                Err(too_few) => {
                    fewest =
                        Some(fewest.map_or(
                            too_few.clone(),
                            |best: TooFew| if best.found < too_few.found { too_few } else { best },
                        ));
                }
            }
        }
        let nobody = || routing::several(view, count);
        (None, fewest.map_or_else(nobody, Err))
    }

    /// The arithmetic class in which a peer computes, as it says.
    fn arithmetic_of(&self, peer: PeerKey, now: Time) -> String {
        if peer == self.me {
            return self.config.machine.arithmetic.clone();
        }
        let profile = self.membership.peer(peer, now).and_then(|state| state.profile);
        profile.map(|profile| profile.arithmetic.clone()).unwrap_or_default()
    }

    fn only_class(&self, mut view: View, class: &str, now: Time) -> View {
        view.holders.retain(|holder| self.arithmetic_of(holder.peer, now) == class);
        view
    }

    /// Plans one chain of a request. Until an answer that is compared with none has begun, it may take other weights than were planned
    /// before.
    pub(super) fn plan(&mut self, id: RequestId, index: ReplicaIndex, now: Time) -> Vec<Effect> {
        let Some(request) = self.requests.get(&id) else { return Vec::new() };
        let Some(wish) = request.replicas.wish(index) else { return Vec::new() };
        let Wish { avoided, severed, survivors, others, decides, cuts } = wish;
        let view = View { avoid: avoided, severed, ..self.view(request, now) };
        let is_refused_here = view.avoid.contains(&self.me);
        let apart = Apart { others, may_share: decides, cuts };
        let route = |view: &View| routing::apart(view, survivors.as_deref(), &apart);
        let planned = match &request.class {
            None if survivors.is_none() => {
                self.most_precise(request, &view, route).map(|plan| (plan.chain, plan.weights))
            }
            class => {
                let weights = request.replicas.job().weights.clone();
                let view = view.computing_with(&weights);
                let view = match class {
                    Some(class) => self.only_class(view, class, now),
                    None => view,
                };
                route(&view).map(|plan| (plan.chain, weights))
            }
        };
        let refusal = planned.as_ref().err().map(|cause| self.refusal(request, cause.clone(), now));
        let Some(request) = self.requests.get_mut(&id) else { return Vec::new() };
        match (planned, refusal) {
            (Ok((chain, weights)), _) => {
                // Another peer does; nobody has to make way.
                self.stages.lacking = None;
                request.replicas.weigh(weights);
                request.replicas.lease(index, chain, &mut self.ids, now)
            }
            (Err(_), Some(refusal)) => {
                let effects = request.replicas.no_chain(index, refusal, now);
                if is_refused_here {
                    self.make_way(now);
                }
                effects
            }
            (Err(_), None) => Vec::new(),
        }
    }

    /// Why there is no chain: maybe only because the weights would be coarser than is accepted.
    fn refusal(&self, request: &Request, cause: NoRoute, now: Time) -> GenerateFailure {
        let units = request.replicas.job().shape.units();
        let (Some(asked), NoRoute::Uncovered { .. }) = (request.min_quant, &cause) else {
            return no_cover(cause, units);
        };
        let any = self.view_of_any(request, now);
        let formats: BTreeMap<ModelId, _> = self.precisions(request.replicas.job().model).into_iter().collect();
        let coarsest = |weights: &UnitWeights| {
            let formats = weights.runs().iter().filter_map(|(_, model)| formats.get(model).copied());
            formats.min_by_key(|format| format.precision())
        };
        let planned = self.most_precise(request, &any, |view| routing::several(view, 1)).ok();
        match planned.and_then(|(_, weights)| coarsest(&weights)) {
            Some(found) if !request.accepts(found) => GenerateFailure::TooCoarse { asked, found },
            Some(_) | None => no_cover(cause, units),
        }
    }
}

/// Chains that are compared: best all with one model's weights, which more holders can have in common than a mixture.
fn alike(view: &View, count: u8) -> Chains {
    let models: BTreeSet<(u8, ModelId)> = view.holders.iter().map(|holder| (holder.coarser, holder.weights)).collect();
    let uniform = models.iter().filter(|_| models.len() > 1);
    let uniform = uniform.map(|(_, model)| routing::several(&of_these(view, &[*model]), count));
    uniform.filter_map(Result::ok).next().map_or_else(|| routing::several(view, count), Ok)
}

fn of_these(view: &View, models: &[ModelId]) -> View {
    let mut view = view.clone();
    view.holders.retain(|holder| models.contains(&holder.weights));
    view
}
