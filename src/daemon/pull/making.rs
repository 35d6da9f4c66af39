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
use crate::daemon::quantising::MakeError;
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
    /// What it is made of is here.
    Ready,
    /// It is being made.
    Making,
}

/// Tensors that could not be quantised, at most (arbitrary).
const MAX_HOPELESS: usize = 1_024;

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
        self.products.values().any(|product| product.state == State::Making)
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

    /// Bytes that what is made here, and what is fetched for it, will yet take on the disk.
    pub(super) fn room_for_products(&self) -> Bytes {
        let products = self.products.values().map(|product| product.recipe.bytes);
        let later = self.later.iter().map(|later| later.lack.missing.bytes);
        let all: Bytes = products.chain(later).sum();
        if self.later.is_empty() { all } else { all.plus(PASSING) }
    }

    /// Why a tensor that is lacked cannot be made, if that was tried.
    pub(super) fn is_hopeless(&self, lack: &Lack) -> Option<String> {
        self.hopeless.get(&lack.missing.tensor).cloned()
    }

    /// All of a tensor is here: what waited for it can be made.
    pub(super) fn make_of(&mut self, source: BlobHash) {
        let of_it = self.products.values_mut().filter(|product| product.recipe.source.tensor == source);
        for product in of_it.filter(|product| product.state == State::Fetching) {
            product.state = State::Ready;
        }
        self.go_on_making();
    }

    /// A tensor is made, or could not be.
    pub(super) fn made(&mut self, tensor: BlobHash, made: Result<(), MakeError>) {
        let Some(product) = self.products.remove(&tensor) else { return };
        self.discard(&product.recipe.source);
        if let Err(error) = &made
            && error.is_final()
            && self.hopeless.len() < MAX_HOPELESS
        {
            self.hopeless.insert(tensor, error.to_string());
        }
        match made.map_err(|error| error.to_string()) {
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
        self.go_on_making();
    }

    /// What was found damaged and cannot be made again, since nobody has what it is made of, makes room for others.
    pub(super) fn put_off_unsourced(&mut self, unsourced: &BTreeSet<BlobHash>) {
        let is_lacked = |tensor: &BlobHash| self.jobs.values().any(|lacking| lacking.tensors.contains(tensor));
        let idle = self.products.iter().filter(|(tensor, product)| {
            product.state == State::Fetching && unsourced.contains(&product.recipe.source.tensor) && !is_lacked(tensor)
        });
        for tensor in idle.map(|(tensor, _)| *tensor).collect::<Vec<_>>() {
            if let Some(product) = self.products.remove(&tensor) {
                self.unwant_material(product.recipe.source.tensor);
                self.try_to_heal_later(product);
            }
        }
    }

    /// A tensor that no job lacks is not made any more, unless it heals. One that is just being made, is.
    pub(super) fn unmake(&mut self, tensor: BlobHash) {
        self.later.retain(|later| later.heals || later.lack.missing.tensor != tensor);
        let is_idle = |product: &Product| !product.heals && product.state != State::Making;
        if self.products.get(&tensor).is_some_and(is_idle)
            && let Some(product) = self.products.remove(&tensor)
        {
            self.unwant_material(product.recipe.source.tensor);
            self.discard(&product.recipe.source);
        }
    }

    /// What a tensor is made of that is not made any more is not fetched any more, unless it is wanted for itself.
    fn unwant_material(&mut self, source: BlobHash) {
        if self.wanted.get(&source).is_some_and(|wanted| !wanted.stays) {
            self.unwant(source);
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
            State::Ready => {
                product.state = State::Making;
                Some((*tensor, product.recipe.clone()))
            }
            State::Fetching | State::Making => None,
        });
        let Some((tensor, recipe)) = ready else { return };
        let (library, heard) = (self.library.clone(), self.heard.clone());
        tokio::spawn(async move {
            let made = tokio::task::spawn_blocking(move || library.make(&recipe)).await;
            let made = made.unwrap_or_else(|error| Err(MakeError::BrokeOff(error.to_string())));
            // The task that is gone needs no news.
            let _ = heard.send(Heard::Made(tensor, made)).await;
        });
    }

    fn has_room_for_next(&self) -> bool {
        let Some(next) = self.later.front() else { return false };
        let is_passing = |source: &Missing| self.library.tensors().is_passing(source.tensor);
        let sources = self.products.values().map(|product| &product.recipe.source).filter(|source| is_passing(source));
        let passing: BTreeMap<BlobHash, Bytes> = sources.map(|source| (source.tensor, source.bytes)).collect();
        let fetched = next.lack.fetched();
        let source = next.lack.made.as_ref().map(|made| made.recipe.source.tensor);
        let costs_nothing = fetched == Bytes::ZERO || source.is_some_and(|source| passing.contains_key(&source));
        costs_nothing || passing.is_empty() || passing.into_values().sum::<Bytes>().plus(fetched) <= PASSING
    }

    fn begin_making(&mut self, Later { lack, heals }: Later) {
        let Lack { missing, made: Some(Made { recipe, of }), .. } = lack else { return };
        let (tensor, source) = (missing.tensor, recipe.source.clone());
        // It may have come since somebody looked.
        let of = of.filter(|_| !self.library.tensors().holds(source.tensor, source.bytes));
        let state = if of.is_some() { State::Fetching } else { State::Ready };
        self.products.insert(tensor, Product { recipe, missing, heals, state });
        let Some(of) = of else { return };
        let is_new = !self.wanted.contains_key(&source.tensor);
        if is_new && let Err(error) = self.library.tensors().set_passing(source.tensor, true) {
            tracing::warn!(tensor = source.tensor.short(), %error, "what tensors are made of will not be removed");
        }
        self.want(*of, Wish { heals: false, stays: false });
        if self.wanted.contains_key(&source.tensor) {
            return;
        }
        // It was on its way when somebody looked, and is not any more.
        if let Some(product) = self.products.remove(&tensor) {
            self.try_to_heal_later(product);
        }
        let lacking = self.jobs.iter().filter(|(_, lacking)| lacking.tensors.contains(&tensor));
        for job in lacking.map(|(job, _)| *job).collect::<Vec<Job>>() {
            self.jobs.remove(&job);
            self.new.push_back(job);
        }
    }

    /// Removes what tensors were made of, if it was only passing, no other is to be made of it, and it is not on its way. What has come of one
    /// that is not whole stays for the next attempt, like that of any tensor.
    fn discard(&self, source: &Missing) {
        let tensors = self.library.tensors();
        let is_material = self.products.values().any(|product| product.recipe.source.tensor == source.tensor);
        let is_on_its_way = self.wanted.contains_key(&source.tensor) || !tensors.holds(source.tensor, source.bytes);
        if is_material || is_on_its_way || !tensors.is_passing(source.tensor) {
            return;
        }
        if let Err(error) = tensors.remove(source.tensor, source.bytes) {
            tracing::warn!(tensor = source.tensor.short(), %error, "what a tensor was made of cannot be removed");
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
