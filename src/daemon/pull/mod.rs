//! Brings weights from other peers to this one's disk: drives the pure [`Download`] with fetch streams and files.
//!
//! ```text
//!  actor ──Obtain──▶ ┌──────┐ ──Errand──▶ source (a task and a stream for each peer) ──▶ mesh
//!        ◀─Obtained─ │ task │                  └─▶ target: verifies and writes, on a thread for blocking work
//!        ──holders─▶ └──────┘ ◀──Heard─────────────────┘
//! ```
//!
//! Tensors of a model that is made of another are not fetched but made: what they are made of is fetched, a little at a time, quantised, and
//! removed again (see `making`).
//!
//! A job is a range of units that is to be loaded. It is done when all of its tensors are on this machine, and given up when the disk is
//! full or nobody brings anything; what has come until then stays for the next attempt. Tensors that were found damaged are wanted
//! without a job, until they are whole.

mod making;
mod source;
mod survey;
mod target;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::sync::watch;

use crate::amounts::Bytes;
use crate::amounts::Span;
use crate::amounts::Time;
use crate::clock::Clock;
use crate::daemon::actor::Done;
use crate::daemon::library::Library;
use crate::daemon::pull::making::Later;
use crate::daemon::pull::making::Product;
use crate::daemon::pull::source::Errand;
use crate::daemon::pull::survey::Damaged;
use crate::daemon::pull::survey::Lack;
use crate::daemon::pull::survey::Survey;
use crate::daemon::pull::target::Target;
use crate::daemon::quantising::MakeError;
use crate::ids::BlobHash;
use crate::ids::ModelId;
use crate::ids::PeerKey;
use crate::mesh::Mesh;
use crate::swarm::download::Ask;
use crate::swarm::download::Download;
use crate::swarm::download::Failure;
use crate::swarm::download::Had;
use crate::swarm::download::PER_SOURCE;
use crate::swarm::download::Part;
use crate::units::UnitRange;
use crate::weights::lookup::Missing;
use crate::weights::tensors::TensorError;
use crate::wire::profile::Stored;

/// Jobs that the task has not taken. A model has at most 8 holdings.
const ORDER_CAPACITY: usize = 64;

/// News that the task has not taken; whoever has some waits.
const HEARD_CAPACITY: usize = 64;

/// How often to ask who has what, and to look for what was found damaged.
const ASK_AROUND: Span = Span::seconds(1);

/// How often to log how far it is.
const REPORT: Span = Span::seconds(10);

/// How long a job waits for somebody to show up who has what it lacks (arbitrary: several rounds of gossip).
const NO_SOURCE: Span = Span::seconds(30);

/// How long a job waits for the next piece (arbitrary).
const STALLED: Span = Span::seconds(120);

/// How long after damaged tensors could not be fetched they are tried again (arbitrary).
const HEAL_AGAIN: Span = Span::seconds(60);

/// A job: whose units.
type Job = (ModelId, UnitRange);

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pulling {
    pub(super) model: ModelId,
    pub(super) range: UnitRange,
    /// Bytes that are there of those that were not at its beginning.
    pub(super) had: Bytes,
    pub(super) wanted: Bytes,
}

/// A handle on the task.
#[derive(Debug)]
pub(super) struct Puller {
    orders: mpsc::Sender<Job>,
    shown: watch::Receiver<Vec<Pulling>>,
}

/// What the task hears.
#[derive(Debug)]
enum Heard {
    /// What is missing for a job.
    Surveyed(Job, Result<Vec<Lack>, String>),
    /// What of the damaged can be fetched again.
    Damaged(Damaged),
    /// Who gives which weights.
    Holders(Vec<(PeerKey, Stored)>),
    /// An answer of so many bytes was right and is written.
    Taken(Ask, Arc<Target>, u64),
    /// An ask came to nothing.
    Failed(Ask, Arc<Target>, Failure),
    /// An answer was right, but cannot be written.
    Disk(Ask, Arc<Target>, TensorError),
    /// A tensor is whole, or could not be made so.
    Whole(Arc<Target>, Result<(), String>),
    /// A tensor is made, or could not be.
    Made(BlobHash, Result<(), MakeError>),
    /// A source's task has ended.
    Ended(PeerKey, u64),
}

impl Puller {
    pub(super) fn start(mesh: Mesh, library: Library, clock: Clock, done: mpsc::Sender<Done>) -> Self {
        let (orders, queue) = mpsc::channel(ORDER_CAPACITY);
        let (heard, news) = mpsc::channel(HEARD_CAPACITY);
        let (show, shown) = watch::channel(Vec::new());
        let task = Task {
            mesh,
            library,
            clock,
            done,
            heard,
            show,
            download: Download::default(),
            wanted: BTreeMap::new(),
            products: BTreeMap::new(),
            later: VecDeque::new(),
            hopeless: BTreeMap::new(),
            new: VecDeque::new(),
            damaged: Vec::new(),
            heal_again: Time::ZERO,
            surveys: false,
            jobs: BTreeMap::new(),
            links: BTreeMap::new(),
            last_link: 0,
            last_piece: Time::ZERO,
            asked_around: Time::ZERO,
            reported: Time::ZERO,
        };
        tokio::spawn(task.run(queue, news));
        Self { orders, shown }
    }

    /// Brings what is missing for a range of units. `Done::Obtained` follows, or false.
    pub(super) fn obtain(&self, model: ModelId, range: UnitRange) -> bool {
        self.orders.try_send((model, range)).is_ok()
    }

    /// What is on its way.
    pub(super) fn progress(&self) -> Vec<Pulling> {
        self.shown.borrow().clone()
    }
}

/// A tensor that is wanted.
struct Wanted {
    target: Arc<Target>,
    /// The models that it is part of and the units that need it: whoever gives one of them has it.
    of: Vec<Missing>,
    /// Whether it was found damaged, and is wanted whatever becomes of jobs.
    heals: bool,
    /// Whether it is wanted for itself, and not only because others are made of it.
    stays: bool,
}

/// How a tensor is wanted.
#[derive(Clone, Copy)]
struct Wish {
    heals: bool,
    stays: bool,
}

/// A stream to a source.
struct Link {
    serial: u64,
    errands: mpsc::Sender<Errand>,
}

/// What a job still lacks.
struct Lacking {
    tensors: BTreeSet<BlobHash>,
    /// Bytes that were missing at its beginning.
    bytes: Bytes,
}

struct Task {
    mesh: Mesh,
    library: Library,
    clock: Clock,
    done: mpsc::Sender<Done>,
    heard: mpsc::Sender<Heard>,
    show: watch::Sender<Vec<Pulling>>,
    download: Download,
    wanted: BTreeMap<BlobHash, Wanted>,
    /// What is made here of others.
    products: BTreeMap<BlobHash, Product>,
    /// What is to be made when what is being made of others has made room.
    later: VecDeque<Later>,
    /// What cannot be made, with the reason: the source's weights are not such as can be quantised.
    hopeless: BTreeMap<BlobHash, String>,
    /// Jobs for which it is not known yet what is missing.
    new: VecDeque<Job>,
    /// What was found damaged and is not wanted yet, and when to try.
    damaged: Vec<Missing>,
    heal_again: Time,
    /// Whether somebody looks at the disk.
    surveys: bool,
    jobs: BTreeMap<Job, Lacking>,
    links: BTreeMap<PeerKey, Link>,
    last_link: u64,
    /// When something came last, or something new was wanted.
    last_piece: Time,
    asked_around: Time,
    reported: Time,
}

impl Task {
    async fn run(mut self, mut orders: mpsc::Receiver<Job>, mut news: mpsc::Receiver<Heard>) {
        loop {
            let now = self.clock.now();
            let next = now.after(ASK_AROUND).min(self.download.deadline(now).unwrap_or(Time(u64::MAX)));
            tokio::select! {
                job = orders.recv() => match job {
                    Some(job) => self.new.push_back(job),
                    None => return,
                },
                // This task keeps a sender, so there is always one.
                Some(heard) = news.recv() => self.hear(heard),
                () = tokio::time::sleep(next.since(now).duration()) => {}
            }
            self.look();
            self.ask();
        }
    }

    /// Finds out what is missing for the next job, or of what was damaged, beside the loop.
    fn survey(&mut self, now: Time) {
        let heals = !self.damaged.is_empty() && self.heal_again <= now;
        if self.surveys || (self.new.is_empty() && !heals) {
            return;
        }
        self.surveys = true;
        let (had, wanted) = self.download.progress();
        let expected = wanted.minus(had).plus(self.room_for_products());
        let survey = Survey { library: self.library.clone(), wanted: self.on_their_way(), expected };
        let job = self.new.pop_front();
        let damaged = if job.is_none() { std::mem::take(&mut self.damaged) } else { Vec::new() };
        let heard = self.heard.clone();
        tokio::spawn(async move {
            let worked = tokio::task::spawn_blocking(move || match job {
                Some((model, range)) => Heard::Surveyed((model, range), survey.of(model, range)),
                None => Heard::Damaged(survey.of_damaged(damaged)),
            });
            let found = worked.await.unwrap_or_else(|error| match job {
                Some(job) => Heard::Surveyed(job, Err(error.to_string())),
                None => Heard::Damaged(Damaged { reason: Some(error.to_string()), ..Damaged::default() }),
            });
            // The task that is gone needs no news.
            let _ = heard.send(found).await;
        });
    }

    fn hear(&mut self, heard: Heard) {
        let now = self.clock.now();
        match heard {
            Heard::Surveyed(job, found) => {
                self.surveys = false;
                match found {
                    Ok(lacks) => self.begin(job, lacks),
                    Err(reason) => self.tell(job, Err(reason)),
                }
            }
            Heard::Damaged(found) => {
                self.surveys = false;
                self.heal(found, now);
            }
            Heard::Holders(holders) => self.download.sources(self.sources(&holders)),
            Heard::Taken(ask, target, bytes) => {
                self.library.received(bytes);
                if self.is_wanted(&target) {
                    self.last_piece = now;
                    self.taken(ask, now);
                }
            }
            Heard::Failed(ask, target, failure) => {
                if failure == Failure::Wrong {
                    tracing::warn!(peer = %ask.peer.short(), "a peer sent wrong weights and is not asked again");
                    self.links.remove(&ask.peer);
                }
                if self.is_wanted(&target) || failure == Failure::Wrong {
                    self.download.failed(ask, failure, now);
                }
            }
            Heard::Disk(ask, target, error) => {
                if self.is_wanted(&target) {
                    self.download.failed(ask, Failure::Lost, now);
                    self.cannot_have(ask.blob, &error.to_string());
                }
            }
            Heard::Whole(target, finished) => {
                if self.is_wanted(&target) {
                    match finished {
                        Ok(()) => self.whole(target.tensor),
                        Err(reason) => self.cannot_have(target.tensor, &reason),
                    }
                }
            }
            Heard::Made(product, made) => self.made(product, made),
            Heard::Ended(peer, serial) => {
                if self.links.get(&peer).is_some_and(|link| link.serial == serial) {
                    self.links.remove(&peer);
                }
            }
        }
    }

    /// Whether news is of what is wanted now, and not of what was given up meanwhile.
    fn is_wanted(&self, target: &Arc<Target>) -> bool {
        self.wanted.get(&target.tensor).is_some_and(|wanted| Arc::ptr_eq(&wanted.target, target))
    }

    fn begin(&mut self, job: Job, lacks: Vec<Lack>) {
        let is_here = |lack: &Lack| self.library.tensors().holds(lack.missing.tensor, lack.missing.bytes);
        let lacks: Vec<Lack> = lacks.into_iter().filter(|lack| !is_here(lack)).collect();
        let on_their_way = self.on_their_way();
        let is_new = |lack: &Lack| lack.begun.is_some() || lack.made.is_some();
        let was_given_up = |lack: &Lack| !is_new(lack) && !on_their_way.contains(&lack.missing.tensor);
        let sources = lacks.iter().filter_map(|lack| lack.made.as_ref()?.of.as_deref());
        if lacks.iter().chain(sources).any(was_given_up) {
            return self.new.push_back(job);
        }
        if lacks.is_empty() {
            return self.tell(job, Ok(()));
        }
        if let Some(reason) = lacks.iter().find_map(|lack| self.is_hopeless(lack)) {
            return self.tell(job, Err(reason));
        }
        let bytes = lacks.iter().map(Lack::fetched).sum();
        let tensors: BTreeSet<BlobHash> = lacks.iter().map(|lack| lack.missing.tensor).collect();
        tracing::info!(model = %job.0.short(), units = %job.1, %bytes, "fetching weights from other peers");
        self.jobs.insert(job, Lacking { tensors, bytes });
        self.asked_around = Time::ZERO;
        let contradicted = lacks.into_iter().map(|lack| self.contradicts(lack)).filter(|is| *is).count();
        if contradicted > 0 {
            self.give_up(job, "the manifest of another model gives some of its tensors another length".to_owned());
        }
    }

    /// Wants a tensor. Whether another model says that it has another length.
    fn contradicts(&mut self, lack: Lack) -> bool {
        let is_other = |wanted: &Wanted| wanted.target.bytes != lack.missing.bytes;
        if self.wanted.get(&lack.missing.tensor).is_some_and(is_other) {
            return true;
        }
        if lack.made.is_some() {
            self.make(lack, false);
        } else {
            self.want(lack, Wish { heals: false, stays: true });
        }
        false
    }

    fn heal(&mut self, found: Damaged, now: Time) {
        let Damaged { lacks, others, reason } = found;
        if let Some(reason) = reason {
            tracing::error!(reason, "damaged weights cannot be fetched again yet");
            self.heal_again = now.after(HEAL_AGAIN);
        }
        self.damaged.extend(others);
        let models: BTreeSet<ModelId> = lacks.iter().map(|lack| lack.missing.model).collect();
        models.into_iter().for_each(|model| self.changed(model));
        for lack in lacks {
            if lack.made.is_some() {
                self.make(lack, true);
            } else {
                self.want(lack, Wish { heals: true, stays: true });
            }
        }
    }

    fn want(&mut self, lack: Lack, Wish { heals, stays }: Wish) {
        let Lack { missing, begun, .. } = lack;
        if stays {
            self.keep(missing.tensor);
        }
        if let Some(product) = self.products.get_mut(&missing.tensor) {
            product.heals |= heals;
            return;
        }
        if let Some(wanted) = self.wanted.get_mut(&missing.tensor) {
            wanted.heals |= heals;
            wanted.stays |= stays;
            if !wanted.of.contains(&missing) {
                wanted.of.push(missing);
            }
            return;
        }
        let Some((target, there)) = begun else { return };
        self.last_piece = self.clock.now();
        let is_whole = there.as_ref().is_some_and(|there| target.is_whole(there));
        let target = Arc::new(target);
        if is_whole {
            self.finish(&target);
        } else {
            self.download.want(missing.tensor, target.bytes, there.as_ref());
        }
        self.wanted.insert(missing.tensor, Wanted { target, of: vec![missing], heals, stays });
    }

    /// A tensor is wanted for itself, and not only until others were made of it.
    fn keep(&self, tensor: BlobHash) {
        if let Err(error) = self.library.tensors().set_passing(tensor, false) {
            tracing::warn!(tensor = tensor.short(), %error, "a tensor will have to be fetched again");
        }
    }

    /// Who has what of all that is wanted.
    fn sources(&self, holders: &[(PeerKey, Stored)]) -> BTreeMap<PeerKey, BTreeSet<BlobHash>> {
        let mut sources: BTreeMap<PeerKey, BTreeSet<BlobHash>> = BTreeMap::new();
        for (peer, stored) in holders {
            let gives = |missing: &Missing| {
                missing.model == stored.model && missing.units.iter().any(|&unit| stored.range.contains(unit))
            };
            let tensors = self.wanted.iter().filter(|(_, wanted)| wanted.of.iter().any(gives));
            sources.entry(*peer).or_default().extend(tensors.map(|(tensor, _)| *tensor));
        }
        sources
    }

    fn taken(&mut self, ask: Ask, now: Time) {
        match ask.part {
            Part::Outline => self.download.outlined(ask, now),
            Part::Piece(_) => match self.download.had(ask, now) {
                Had::Twice | Had::New => {}
                Had::Last => {
                    if let Some(target) = self.wanted.get(&ask.blob).map(|wanted| Arc::clone(&wanted.target)) {
                        self.finish(&target);
                    }
                }
            },
        }
    }

    /// Gives a tensor its name, beside the loop.
    fn finish(&self, target: &Arc<Target>) {
        let (target, heard) = (Arc::clone(target), self.heard.clone());
        tokio::spawn(async move {
            let ended = Arc::clone(&target);
            let finished = tokio::task::spawn_blocking(move || target.finish()).await;
            let finished = finished.map_err(|error| error.to_string());
            let finished = finished.and_then(|finished| finished.map_err(|error| error.to_string()));
            // The task that is gone needs no news.
            let _ = heard.send(Heard::Whole(ended, finished)).await;
        });
    }

    fn whole(&mut self, tensor: BlobHash) {
        let wanted = self.wanted.remove(&tensor);
        if let Some(wanted) = wanted.as_ref().filter(|wanted| wanted.heals) {
            tracing::info!(tensor = tensor.short(), "weights that were damaged are whole again");
            wanted.of.iter().for_each(|missing| self.changed(missing.model));
        }
        self.make_of(tensor);
        self.is_here(tensor);
    }

    /// A tensor is on this machine: the jobs that lacked nothing else are done.
    fn is_here(&mut self, tensor: BlobHash) {
        for lacking in self.jobs.values_mut() {
            lacking.tensors.remove(&tensor);
        }
        let done: Vec<Job> =
            self.jobs.iter().filter(|(_, lacking)| lacking.tensors.is_empty()).map(|(job, _)| *job).collect();
        for job in done {
            self.jobs.remove(&job);
            tracing::info!(model = %job.0.short(), units = %job.1, "all weights are here");
            self.tell(job, Ok(()));
        }
        if self.download.is_complete() && self.later.is_empty() {
            // Those who give weights have few places; what is not needed is left to others.
            self.links.clear();
        }
    }

    /// What is to be done from time to time.
    fn look(&mut self) {
        let now = self.clock.now();
        self.download.on_tick(now).into_iter().for_each(|ask| drop(self.links.remove(&ask.peer)));
        self.damaged.extend(self.library.take_damaged());
        self.survey(now);
        if !self.wanted.is_empty() && self.asked_around.after(ASK_AROUND) <= now {
            self.asked_around = now;
            self.ask_around();
        }
        self.give_up_stalled(now);
        self.report(now);
    }

    fn ask_around(&self) {
        let (done, heard) = (self.done.clone(), self.heard.clone());
        tokio::spawn(async move {
            let (reply, answer) = oneshot::channel();
            // A loop that is gone needs no weights.
            if done.send(Done::Holders(reply)).await.is_ok()
                && let Ok(holders) = answer.await
            {
                let _ = heard.send(Heard::Holders(holders)).await;
            }
        });
    }

    fn give_up_stalled(&mut self, now: Time) {
        let waited = now.since(self.last_piece);
        let is_idle = self.jobs.is_empty() && self.products.is_empty();
        if is_idle || waited < NO_SOURCE || self.is_making() {
            return;
        }
        let unsourced: BTreeSet<BlobHash> = self.download.unsourced().into_iter().collect();
        let stalled = self.jobs.iter().find_map(|(&job, Lacking { tensors, .. })| {
            let nobody = tensors.iter().filter(|tensor| unsourced.contains(&self.fetched_for(**tensor))).count();
            if nobody > 0 {
                let all = tensors.len();
                return Some((job, format!("nobody who can be reached gives {nobody} of the {all} tensors missing")));
            }
            (waited >= STALLED).then(|| (job, format!("no weights came for {waited}")))
        });
        if let Some((job, reason)) = stalled {
            self.give_up(job, reason);
        }
        self.put_off_unsourced(&unsourced);
        self.go_on_making();
    }

    /// A tensor cannot be written: those who need it cannot be helped now.
    fn cannot_have(&mut self, tensor: BlobHash, reason: &str) {
        self.give_up_all_that_lack(tensor, reason);
        self.cannot_make_of(tensor);
        let wanted = self.wanted.remove(&tensor);
        self.download.unwant(tensor);
        if let Some(wanted) = wanted.filter(|wanted| wanted.stays) {
            tracing::error!(tensor = tensor.short(), reason, "damaged weights cannot be fetched again yet");
            self.damaged.extend(wanted.of);
            self.heal_again = self.clock.now().after(HEAL_AGAIN);
        }
    }

    /// Gives up the jobs that lack a tensor, or one that is made of it.
    fn give_up_all_that_lack(&mut self, tensor: BlobHash, reason: &str) {
        let is_it = |lacked: &BlobHash| *lacked == tensor || self.fetched_for(*lacked) == tensor;
        let needing = self.jobs.iter().filter(|(_, lacking)| lacking.tensors.iter().any(is_it));
        for job in needing.map(|(job, _)| *job).collect::<Vec<_>>() {
            self.give_up(job, reason.to_owned());
        }
    }

    fn give_up(&mut self, job: Job, reason: String) {
        let Some(lacking) = self.jobs.remove(&job) else { return };
        for tensor in lacking.tensors {
            let is_needed = self.jobs.values().any(|other| other.tensors.contains(&tensor));
            if !is_needed {
                self.unmake(tensor);
                self.unwant(tensor);
            }
        }
        self.tell(job, Err(reason));
        self.go_on_making();
    }

    /// A tensor that no job lacks is not fetched any more, unless it heals or others are to be made of it.
    fn unwant(&mut self, tensor: BlobHash) {
        let heals = self.wanted.get(&tensor).is_some_and(|wanted| wanted.heals);
        let is_material = self.products.values().any(|product| product.recipe.source.tensor == tensor);
        if !heals && !is_material {
            self.wanted.remove(&tensor);
            self.download.unwant(tensor);
        }
    }

    /// Maps the weights, or says why not, beside the loop.
    fn tell(&self, (model, range): Job, obtained: Result<(), String>) {
        let (library, done) = (self.library.clone(), self.done.clone());
        tokio::spawn(async move {
            let worked = tokio::task::spawn_blocking(move || {
                obtained.and_then(|()| library.weights(model, range).map_err(|error| error.to_string()))
            });
            let weights = worked.await.unwrap_or_else(|error| Err(error.to_string()));
            // A loop that is gone needs no weights.
            let _ = done.send(Done::Obtained { model, range, weights: weights.map(Box::new) }).await;
        });
    }

    /// What is here of a model is something else than before.
    fn changed(&self, model: ModelId) {
        let done = self.done.clone();
        // A loop that is gone tells nobody.
        tokio::spawn(async move { done.send(Done::Changed(model)).await });
    }

    /// Sends for what is to be asked for now.
    fn ask(&mut self) {
        let now = self.clock.now();
        for ask in self.download.asks(now) {
            let Some(target) = self.wanted.get(&ask.blob).map(|wanted| Arc::clone(&wanted.target)) else { continue };
            if self.link(ask.peer).try_send(Errand { ask, target }).is_err() {
                self.download.failed(ask, Failure::Lost, now);
            }
        }
    }

    fn link(&mut self, peer: PeerKey) -> &mpsc::Sender<Errand> {
        let link = self.links.entry(peer).or_insert_with(|| {
            self.last_link += 1;
            let (errands, queue) = mpsc::channel(PER_SOURCE);
            tokio::spawn(source::run(self.mesh.clone(), peer, self.last_link, queue, self.heard.clone()));
            Link { serial: self.last_link, errands }
        });
        &link.errands
    }

    fn report(&mut self, now: Time) {
        let progress = |(&(model, range), lacking): (&Job, &Lacking)| {
            let left = |tensor: &BlobHash| {
                let tensor = self.fetched_for(*tensor);
                if let Some(wanted) = self.wanted.get(&tensor) {
                    return Some(wanted.target.bytes.minus(self.download.there(tensor)?));
                }
                self.to_be_fetched_later(tensor)
            };
            let left: Bytes = lacking.tensors.iter().filter_map(left).sum();
            Pulling { model, range, had: lacking.bytes.minus(left), wanted: lacking.bytes }
        };
        let shown: Vec<Pulling> = self.jobs.iter().map(progress).collect();
        if self.reported.after(REPORT) <= now {
            self.reported = now;
            for Pulling { model, range, had, wanted } in &shown {
                tracing::info!(model = %model.short(), units = %range, %had, %wanted, "fetching weights");
            }
        }
        self.show.send_if_modified(|old| {
            let is_new = *old != shown;
            *old = shown;
            is_new
        });
    }
}
