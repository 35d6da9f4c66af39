//! Tensors that are made here by quantising others.
//!
//! What they are made of is fetched like any tensor, but little of it at a time, so that the disk need not hold the source of all that is made;
//! it is removed when nothing is to be made of it any more, unless it is wanted for itself. They are made one after the other.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::amounts::Bytes;
use crate::daemon::pull::HEAL_AGAIN;
use crate::daemon::pull::Heard;
use crate::daemon::pull::Job;
use crate::daemon::pull::Task;
use crate::daemon::pull::Wish;
use crate::daemon::pull::survey::Lack;
use crate::daemon::pull::survey::Made;
use crate::daemon::pull::survey::PASSING;
use crate::ids::BlobHash;
use crate::weights::lookup::Missing;
use crate::weights::lookup::Recipe;

/// A tensor that is made here.
pub(super) struct Product {
    pub(super) recipe: Recipe,
    /// Whose it is.
    missing: Missing,
    /// Whether it was found damaged, and is wanted whatever becomes of jobs.
    pub(super) heals: bool,
    state: State,
}

/// A tensor that is to be made when there is room for what it is made of.
pub(super) struct Later {
    lack: Lack,
    heals: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// What it is made of is being fetched.
    Fetching,
    /// What it is made of is here, and stays or not.
    Ready { stays: bool },
    /// It is being made.
    Making { stays: bool },
}

impl Task {
    /// What is being fetched, made, or waits for that.
    pub(super) fn on_their_way(&self) -> BTreeSet<BlobHash> {
        let later = self.later.iter().map(|later| later.lack.missing.tensor);
        self.wanted.keys().chain(self.products.keys()).copied().chain(later).collect()
    }

    /// What is fetched for a tensor: itself, or what it is made of.
    pub(super) fn fetched_for(&self, tensor: BlobHash) -> BlobHash {
        self.products.get(&tensor).map_or(tensor, |product| product.recipe.source.tensor)
    }

    /// Bytes that are to be fetched for a tensor that waits to be made.
    pub(super) fn to_be_fetched_later(&self, tensor: BlobHash) -> Option<Bytes> {
        let waits = self.later.iter().find(|later| later.lack.missing.tensor == tensor);
        waits.map(|later| later.lack.fetched())
    }

    pub(super) fn is_making(&self) -> bool {
        self.products.values().any(|product| matches!(product.state, State::Making { .. }))
    }

    /// Has a tensor made, as soon as there is room for what it is made of.
    pub(super) fn make(&mut self, lack: Lack, heals: bool) {
        let tensor = lack.missing.tensor;
        if let Some(product) = self.products.get_mut(&tensor) {
            product.heals |= heals;
        } else if let Some(later) = self.later.iter_mut().find(|later| later.lack.missing.tensor == tensor) {
            later.heals |= heals;
        } else {
            self.later.push_back(Later { lack, heals });
            self.go_on_making();
        }
    }

    /// All of a tensor is here: what waited for it can be made.
    pub(super) fn make_of(&mut self, source: BlobHash, stays: bool) {
        let of_it = self.products.values_mut().filter(|product| product.recipe.source.tensor == source);
        for product in of_it.filter(|product| product.state == State::Fetching) {
            product.state = State::Ready { stays };
        }
        self.go_on_making();
    }

    /// A tensor is made, or could not be.
    pub(super) fn made(&mut self, tensor: BlobHash, made: Result<(), String>) {
        let Some(product) = self.products.remove(&tensor) else { return };
        if product.state == (State::Making { stays: false }) {
            self.discard(product.recipe.source.tensor, product.recipe.source.bytes);
        }
        match made {
            Ok(()) => {
                if product.heals {
                    tracing::info!(tensor = tensor.short(), "weights that were damaged are whole again");
                    self.changed(product.missing.model);
                }
                self.is_here(tensor);
            }
            Err(reason) => {
                self.give_up_all_that_lack(tensor, &reason);
                self.try_to_heal_later(product);
            }
        }
        self.go_on_making();
    }

    /// What tensors are made of cannot be had.
    pub(super) fn cannot_make_of(&mut self, source: BlobHash) {
        let of_it = self.products.iter().filter(|(_, product)| product.recipe.source.tensor == source);
        let of_it: Vec<BlobHash> =
            of_it.filter(|(_, product)| product.state == State::Fetching).map(|(tensor, _)| *tensor).collect();
        for product in of_it.iter().filter_map(|tensor| self.products.remove(tensor)).collect::<Vec<_>>() {
            self.try_to_heal_later(product);
        }
    }

    /// A tensor that no job lacks is not made any more, unless it heals. One that is just being made, is.
    pub(super) fn unmake(&mut self, tensor: BlobHash) {
        self.later.retain(|later| later.heals || later.lack.missing.tensor != tensor);
        let is_idle = |product: &Product| !product.heals && !matches!(product.state, State::Making { .. });
        if self.products.get(&tensor).is_some_and(is_idle)
            && let Some(product) = self.products.remove(&tensor)
        {
            let source = product.recipe.source;
            if self.wanted.get(&source.tensor).is_some_and(|wanted| !wanted.stays) {
                self.unwant(source.tensor);
            }
            if product.state == (State::Ready { stays: false }) {
                self.discard(source.tensor, source.bytes);
            }
        }
    }

    /// Begins with what there is room for, and makes the next of what can be made.
    pub(super) fn go_on_making(&mut self) {
        while self.has_room_for_next()
            && let Some(later) = self.later.pop_front()
        {
            self.begin_making(later);
        }
        if self.is_making() {
            return;
        }
        let ready = self.products.iter_mut().find_map(|(tensor, product)| match product.state {
            State::Ready { stays } => {
                product.state = State::Making { stays };
                Some((*tensor, product.recipe.clone()))
            }
            State::Fetching | State::Making { .. } => None,
        });
        let Some((tensor, recipe)) = ready else { return };
        let (library, heard) = (self.library.clone(), self.heard.clone());
        tokio::spawn(async move {
            let made = tokio::task::spawn_blocking(move || library.make(&recipe)).await;
            let made = made.map_err(|error| error.to_string()).and_then(|made| made.map_err(|error| error.to_string()));
            // The task that is gone needs no news.
            let _ = heard.send(Heard::Made(tensor, made)).await;
        });
    }

    fn has_room_for_next(&self) -> bool {
        let Some(next) = self.later.front() else { return false };
        let passing: BTreeMap<BlobHash, Bytes> = self
            .products
            .values()
            .filter(|product| !matches!(product.state, State::Ready { stays: true } | State::Making { stays: true }))
            .map(|product| (product.recipe.source.tensor, product.recipe.source.bytes))
            .collect();
        passing.is_empty() || passing.into_values().sum::<Bytes>().plus(next.lack.fetched()) <= PASSING
    }

    fn begin_making(&mut self, Later { lack, heals }: Later) {
        let Lack { missing, made: Some(Made { recipe, of }), .. } = lack else { return };
        let (tensor, source) = (missing.tensor, recipe.source.clone());
        let state = if of.is_some() { State::Fetching } else { State::Ready { stays: true } };
        self.products.insert(tensor, Product { recipe, missing, heals, state });
        let Some(of) = of else { return };
        self.want(*of, Wish { heals: false, stays: false });
        if self.wanted.contains_key(&source.tensor) {
            return;
        }
        // It was on its way when somebody looked, and is not any more.
        if self.library.tensors().holds(source.tensor, source.bytes) {
            return self.make_of(source.tensor, true);
        }
        self.products.remove(&tensor);
        let lacking = self.jobs.iter().filter(|(_, lacking)| lacking.tensors.contains(&tensor));
        for job in lacking.map(|(job, _)| *job).collect::<Vec<Job>>() {
            self.jobs.remove(&job);
            self.new.push_back(job);
        }
    }

    /// Removes what tensors were made of, if no other is to be made of it and it is not wanted for itself.
    fn discard(&self, source: BlobHash, bytes: Bytes) {
        let is_material = self.products.values().any(|product| product.recipe.source.tensor == source);
        if is_material || self.wanted.contains_key(&source) {
            return;
        }
        if let Err(error) = self.library.tensors().remove(source, bytes) {
            tracing::warn!(tensor = source.short(), %error, "what a tensor was made of cannot be removed");
        }
    }

    fn try_to_heal_later(&mut self, product: Product) {
        if product.heals {
            tracing::error!(tensor = product.missing.tensor.short(), "damaged weights cannot be made again yet");
            self.damaged.push(product.missing);
            self.heal_again = self.clock.now().after(HEAL_AGAIN);
        }
    }
}
