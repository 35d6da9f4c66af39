//! Which chains this peer's own requests take: what routing is asked, and with what view of the mesh.

use std::collections::BTreeMap;

use crate::amounts::Time;
use crate::ids::PeerKey;
use crate::ids::ReplicaIndex;
use crate::ids::RequestId;
use crate::node::Node;
use crate::node::requests::no_cover;
use crate::routing;
use crate::routing::Apart;
use crate::routing::TooFew;
use crate::routing::View;
use crate::session::replicas::Effect;
use crate::session::replicas::Redundancy;
use crate::session::replicas::Wish;
use crate::units::Chain;

impl Node {
    /// Plans the chains of a request. Those that are compared are of one arithmetic class: across classes bits differ.
    pub(super) fn plan_all(&mut self, id: RequestId, redundancy: Redundancy, now: Time) -> Vec<Effect> {
        let Some(request) = self.requests.get(&id) else { return Vec::new() };
        let view = self.view(request, now);
        let (class, planned) = match redundancy {
            Redundancy::NONE => (None, routing::several(&view, 1)),
            _ => self.several_of_one_class(&view, redundancy.chains(), now),
        };
        let Some(request) = self.requests.get_mut(&id) else { return Vec::new() };
        request.class = class;
        match planned {
            Ok(chains) => request.replicas.begin(chains, &mut self.ids, now),
            Err(TooFew { found, cause }) => {
                let units = request.replicas.job().shape.units();
                request.replicas.too_few(found, no_cover(cause, units), now)
            }
        }
    }

    /// In the class of most holders that has so many chains; if none has, in that which has most.
    fn several_of_one_class(&self, view: &View, count: u8, now: Time) -> (Option<String>, Result<Vec<Chain>, TooFew>) {
        let mut sizes: BTreeMap<String, usize> = BTreeMap::new();
        for holder in &view.holders {
            *sizes.entry(self.arithmetic_of(holder.peer, now)).or_default() += 1;
        }
        let mut classes: Vec<(usize, String)> = sizes.into_iter().map(|(class, size)| (size, class)).collect();
        classes.sort_by(|(one, first), (other, second)| other.cmp(one).then_with(|| first.cmp(second)));
        let mut fewest = None;
        for (_, class) in classes {
            match routing::several(&self.only_class(view.clone(), &class, now), count) {
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
        let nobody = || routing::several(view, count).map(|_| Vec::new());
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

    /// Plans one chain of a request.
    pub(super) fn plan(&mut self, id: RequestId, index: ReplicaIndex, now: Time) -> Vec<Effect> {
        let Some(request) = self.requests.get(&id) else { return Vec::new() };
        let Some(wish) = request.replicas.wish(index) else { return Vec::new() };
        let Wish { avoided, severed, survivors, others, decides, cuts } = wish;
        let view = View { avoid: avoided, severed, ..self.view(request, now) };
        let view = match &request.class {
            Some(class) => self.only_class(view, class, now),
            None => view,
        };
        let is_refused_here = view.avoid.contains(&self.me);
        let planned = routing::apart(&view, survivors.as_deref(), &Apart { others, may_share: decides, cuts });
        let Some(request) = self.requests.get_mut(&id) else { return Vec::new() };
        match planned {
            Ok(plan) => {
                // Another peer does; nobody has to make way.
                self.stages.lacking = None;
                request.replicas.lease(index, plan.chain, &mut self.ids, now)
            }
            Err(no_route) => {
                let units = request.replicas.job().shape.units();
                let effects = request.replicas.no_chain(index, no_cover(no_route, units), now);
                if is_refused_here {
                    self.make_way(now);
                }
                effects
            }
        }
    }
}
