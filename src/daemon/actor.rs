//! The loop: translates what happens into the node's inputs, and performs its actions in order.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::sync::oneshot;

use crate::amounts::Time;
use crate::clock;
use crate::clock::Clock;
use crate::config::Config;
use crate::daemon::answer::Answer;
use crate::daemon::bridge::Bridge;
use crate::daemon::departure::Departure;
use crate::daemon::evidence::Evidence;
use crate::daemon::handle::ChangeError;
use crate::daemon::handle::Command;
use crate::daemon::handle::GENERATION_CAPACITY;
use crate::daemon::handle::GenerateError;
use crate::daemon::handle::GenerateRequest;
use crate::daemon::handle::Generation;
use crate::daemon::handle::ImportError;
use crate::daemon::handle::ModelChange;
use crate::daemon::library::Known;
use crate::daemon::library::Library;
use crate::daemon::listings;
use crate::daemon::log::LogWriter;
use crate::daemon::prepare;
use crate::daemon::prepare::Policy;
use crate::daemon::prepare::Prepared;
use crate::daemon::providing::Providing;
use crate::daemon::publisher::Publisher;
use crate::daemon::pull::Puller;
use crate::daemon::replicas;
use crate::daemon::replicas::Computed;
use crate::daemon::streams::Streams;
use crate::daemon::views::ChangedView;
use crate::daemon::views::FoundLieView;
use crate::daemon::views::ImportedView;
use crate::daemon::wishes::Wish;
use crate::daemon::wishes::Wishes;
use crate::engine::command::EngineEvent;
use crate::ids::ModelId;
use crate::ids::PeerKey;
use crate::ids::RequestId;
use crate::ids::SessionId;
use crate::mesh::Mesh;
use crate::mesh::MeshEvent;
use crate::node::Node;
use crate::node::io::Action;
use crate::node::io::Delivery;
use crate::node::io::EngineAction;
use crate::node::io::EngineInput;
use crate::node::io::GenerateFailure;
use crate::node::io::HoldPolicy;
use crate::node::io::Input;
use crate::node::io::ModelFacts;
use crate::session::text::TextAssembler;
use crate::units::UnitRange;
use crate::weights::catalogue::Imported;
use crate::weights::lookup::Weights;
use crate::wire::gossip::Gossip;
use crate::wire::profile::Stored;

/// Inputs from streams, answers and the log that the loop has not taken; their tasks wait when it is full.
pub(super) const INPUT_CAPACITY: usize = 1024;

/// Work done beside the loop that has not come back.
pub(super) const DONE_CAPACITY: usize = 64;

/// Everything that the loop owns.
pub(super) struct Daemon {
    pub(super) config: Config,
    pub(super) clock: Clock,
    pub(super) node: Node,
    pub(super) mesh: Mesh,
    pub(super) streams: Streams,
    pub(super) bridge: Bridge,
    pub(super) library: Library,
    pub(super) log: LogWriter,
    pub(super) evidence: Evidence,
    pub(super) publisher: Publisher,
    pub(super) puller: Puller,
    pub(super) providing: Providing,
    /// Models to serve that no peer has described yet.
    pub(super) wishes: Wishes,
    /// Why weights could not be brought here, last time.
    pub(super) lacks: BTreeMap<(ModelId, UnitRange), String>,
    pub(super) inputs: mpsc::Sender<Input>,
    pub(super) done: mpsc::Sender<Done>,
    /// Where each request's deliveries go.
    pub(super) answers: BTreeMap<RequestId, mpsc::Sender<Delivery>>,
    pub(super) last_request: RequestId,
    pub(super) counts: Counts,
    #[cfg(feature = "faults")]
    pub(super) faults: crate::daemon::faults::Faults,
    pub(super) departure: Departure,
}

/// What the loop listens to.
pub(super) struct Sources {
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) mesh: mpsc::Receiver<MeshEvent>,
    pub(super) engine: mpsc::Receiver<EngineEvent>,
    pub(super) inputs: mpsc::Receiver<Input>,
    pub(super) done: mpsc::Receiver<Done>,
}

/// What is counted for the metrics.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) requests: u64,
    pub(super) finished: u64,
    pub(super) failed: u64,
    pub(super) tokens: u64,
    /// Chains that took the place of broken ones.
    pub(super) mended: u64,
    /// Lies that were found.
    pub(super) lies: u64,
}

/// Work that was done beside the loop.
pub(super) enum Done {
    /// A request is ready to be submitted, or not.
    Prepared {
        prepared: Result<Box<Prepared>, GenerateError>,
        submitted: Time,
        reply: oneshot::Sender<Result<Generation, GenerateError>>,
    },
    /// The weights of a range of units are here, or not.
    Obtained { model: ModelId, range: UnitRange, weights: Result<Box<Weights>, String> },
    /// Somebody wants to know who gives which weights.
    Holders(oneshot::Sender<Vec<(PeerKey, Stored)>>),
    /// A model that was wished for is described, or not.
    Described { wish: Wish, model: Result<ModelId, String> },
    /// A model's weights were looked through, or something was done to it.
    Changed(ModelId),
    /// The units of a model whose weights are here and given to others.
    Given(ModelId, Vec<UnitRange>),
    /// A file was imported, or not.
    Imported { imported: Result<Box<Imported>, ImportError>, reply: oneshot::Sender<Result<ImportedView, ImportError>> },
}

impl Daemon {
    /// Runs until it may go after it was told to stop, or until every handle is gone.
    pub(super) async fn run(mut self, mut sources: Sources) {
        while !self.departure.is_over(self.node.is_drained(), self.clock.now()) {
            let next =
                self.departure.until().into_iter().chain(self.wishes.deadline()).chain(self.providing.deadline());
            let next = next.fold(self.node.deadline(), Time::min);
            let wait = next.since(self.clock.now()).duration();
            tokio::select! {
                command = sources.commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => break,
                },
                Some(done) = sources.done.recv() => self.done(done),
                Some(event) = sources.mesh.recv() => self.mesh_event(event),
                Some(event) = sources.engine.recv() => {
                    if let Some(input) = self.bridge.event(event) {
                        self.feed(Input::Engine(input));
                    }
                }
                Some(input) = sources.inputs.recv() => self.feed(input),
                () = tokio::time::sleep(wait) => self.feed(Input::Tick),
            }
            self.try_wishes();
            self.provide();
        }
        self.stop().await;
    }

    /// Tells the node, and performs what it asks for.
    pub(super) fn feed(&mut self, input: Input) {
        let mut waiting = VecDeque::from([input]);
        while let Some(input) = waiting.pop_front() {
            #[cfg(feature = "faults")]
            let inputs = self.suffer_input(input);
            #[cfg(not(feature = "faults"))]
            let inputs = [input];
            for input in inputs {
                let actions = self.node.handle(input, self.clock.now());
                waiting.extend(actions.into_iter().flat_map(|action| self.perform(action)));
            }
        }
    }

    /// Performs one action; what it gives rise to at once is returned.
    fn perform(&mut self, action: Action) -> Vec<Input> {
        #[cfg(feature = "faults")]
        let (mut heard, is_done) = self.suffer_action(&action);
        #[cfg(feature = "faults")]
        if !is_done {
            return heard;
        }
        #[cfg(not(feature = "faults"))]
        let mut heard = Vec::new();
        heard.extend(self.do_it(action));
        heard
    }

    fn do_it(&mut self, action: Action) -> Vec<Input> {
        match action {
            Action::OpenControl(stream, peer) => self.streams.open_control(stream, peer),
            Action::OpenHop(stream, peer, open) => self.streams.open_hop(stream, peer, open),
            Action::Send(stream, message) => return self.streams.send(stream, message).into_iter().collect(),
            Action::Close(stream) => self.streams.close(stream),
            Action::Engine(EngineAction::Load(model, range)) => return self.obtain(model, range).into_iter().collect(),
            Action::Engine(action) => return self.bridge.perform(action).into_iter().map(Input::Engine).collect(),
            Action::Publish(gossip) => {
                let peers = self.node.membership().count(self.clock.now());
                self.publisher.publish(&gossip, peers);
            }
            Action::Store(entry) => return self.log.store(entry).into_iter().collect(),
            Action::StoreFork(fork) => self.log.store_fork(fork),
            Action::Deliver(request, delivery) => return self.deliver(request, delivery).into_iter().collect(),
            Action::Dial(peer) => self.streams.dial(peer),
        }
        Vec::new()
    }

    /// Has the weights brought here that are not, to be loaded then.
    fn obtain(&self, model: ModelId, range: UnitRange) -> Option<Input> {
        let failed = |reason: &str| Input::Engine(EngineInput::LoadFailed(model, range, reason.to_owned()));
        (!self.puller.obtain(model, range)).then(|| failed("too many ranges of units are being fetched"))
    }

    /// Loads weights that are here now.
    fn obtained(&mut self, model: ModelId, range: UnitRange, weights: Result<Box<Weights>, String>) {
        self.tell_given(model);
        let heard = match weights {
            Ok(weights) => {
                // Placement may have chosen other units than those that could not be had.
                self.lacks.retain(|(of, _), _| *of != model);
                self.bridge.load(model, range, Arc::from(weights))
            }
            Err(reason) => {
                tracing::error!(model = %model.short(), units = %range, reason, "weights could not be brought here");
                self.lacks.insert((model, range), reason.clone());
                vec![EngineInput::LoadFailed(model, range, reason)]
            }
        };
        heard.into_iter().for_each(|input| self.feed(Input::Engine(input)));
    }

    /// Tells the node which of a model's weights are given to others, once somebody has looked beside the loop.
    fn tell_given(&self, model: ModelId) {
        let (library, done) = (self.library.clone(), self.done.clone());
        tokio::spawn(async move {
            if let Ok(given) = tokio::task::spawn_blocking(move || library.given(model)).await {
                // The loop that is gone gives nothing.
                let _ = done.send(Done::Given(model, given)).await;
            }
        });
    }

    fn deliver(&mut self, request: RequestId, delivery: Delivery) -> Option<Input> {
        match &delivery {
            Delivery::Started(..) | Delivery::Waiting(_) => {}
            Delivery::Caught(lie) => {
                self.counts.lies += 1;
                let found = FoundLieView { found: clock::unix_seconds(), lie: replicas::lie(lie) };
                if let Err(error) = self.evidence.keep(&found) {
                    tracing::error!(%error, "a lie was found and cannot be kept");
                }
            }
            Delivery::Mended(_) => self.counts.mended += 1,
            Delivery::Token { .. } => self.counts.tokens += 1,
            Delivery::Finished(_) => self.counts.finished += 1,
            Delivery::Failed(_) => self.counts.failed += 1,
        }
        let is_last = matches!(delivery, Delivery::Finished(_) | Delivery::Failed(_));
        let sent = self.answers.get(&request)?.try_send(delivery);
        if is_last || sent.is_err() {
            self.answers.remove(&request);
        }
        // A reader that is too slow, or gone, ends its request.
        (sent.is_err() && !is_last).then_some(Input::Cancel(request))
    }

    fn mesh_event(&mut self, event: MeshEvent) {
        let input = match event {
            MeshEvent::PeerUp(peer) => {
                self.providing.peer_came(self.clock.now());
                Input::PeerUp(peer)
            }
            MeshEvent::PeerDown(peer) => Input::PeerDown(peer),
            MeshEvent::RoundTrip { peer, span } => Input::RoundTrip(peer, span),
            MeshEvent::Gossip { message, .. } => {
                self.publisher.heard(&message);
                if let Gossip::Card(card) = &message {
                    self.entitle(card.value.model, &card.value.title);
                }
                Input::Gossip(message)
            }
            MeshEvent::Control(server) => self.streams.control_arrived(server),
            MeshEvent::Hop(server) => self.streams.hop_arrived(server),
            MeshEvent::Listening(address) => return tracing::info!(address, "listening"),
            MeshEvent::AddressConfirmed(address) => return tracing::info!(address, "reached by another peer"),
            MeshEvent::Refused(reason) => return tracing::warn!(reason, "a connection came to nothing"),
        };
        self.feed(input);
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Generate(request, reply) => self.generate(*request, reply),
            Command::Import(file, reply) => self.import(file, reply),
            Command::Change(name, change, reply) => self.change(&name, change, reply),
            Command::Describe(name, reply) => self.tell_about(&name, reply),
            #[cfg(feature = "faults")]
            Command::Faults(faults, reply) => {
                self.faults.arm(faults);
                // Whoever asked may have gone.
                let _ = reply.send(());
            }
            Command::Stop(reply) => self.leave(reply),
            Command::Status(reply) => self.answer_with_mesh(reply, listings::status),
            Command::Peers(reply) => drop(reply.send(listings::peers(self))),
            Command::Models(reply) => drop(reply.send(listings::models(self))),
            Command::Lies(reply) => drop(reply.send(self.evidence.all())),
            Command::Credits(reply) => drop(reply.send(listings::credits(self))),
            Command::Metrics(reply) => drop(reply.send(listings::metrics(self))),
            Command::Invite(reply) => self.answer_with_mesh(reply, listings::invite),
        }
    }

    /// Answers with a listing that needs a look at the mesh, whose task is asked beside the loop.
    fn answer_with_mesh<T: Send + 'static, F>(&self, reply: oneshot::Sender<T>, listing: impl FnOnce(&Self) -> F)
    where
        F: FnOnce(Option<crate::mesh::MeshStatus>) -> T + Send + 'static,
    {
        let (mesh, finish) = (self.mesh.clone(), listing(self));
        tokio::spawn(async move { reply.send(finish(mesh.status().await)) });
    }

    fn generate(&mut self, request: GenerateRequest, reply: oneshot::Sender<Result<Generation, GenerateError>>) {
        self.counts.requests += 1;
        if self.departure.until().is_some() {
            self.counts.failed += 1;
            return drop(reply.send(Err(GenerateFailure::Draining.into())));
        }
        let submitted = self.clock.now();
        let chosen = match listings::choose(self, request.model.as_deref()) {
            Ok(chosen) => chosen,
            Err(error) => {
                self.counts.failed += 1;
                return drop(reply.send(Err(error)));
            }
        };
        let policy = Policy { trust: self.config.trust, patience: self.config.patience };
        let (library, mesh, done) = (self.library.clone(), self.mesh.clone(), self.done.clone());
        tokio::spawn(async move {
            let prepared = prepare::prepare(library, mesh, chosen, request, policy).await.map(Box::new);
            // The loop that is gone answers nobody.
            let _ = done.send(Done::Prepared { prepared, submitted, reply }).await;
        });
    }

    fn import(&self, file: PathBuf, reply: oneshot::Sender<Result<ImportedView, ImportError>>) {
        let (library, done) = (self.library.clone(), self.done.clone());
        tokio::spawn(async move {
            let worked = tokio::task::spawn_blocking(move || library.import(&file)).await;
            let imported = match worked {
                Ok(Ok(imported)) => Ok(Box::new(imported)),
                Ok(Err(error)) => Err(ImportError::Refused(error.to_string())),
                Err(error) => Err(ImportError::Refused(error.to_string())),
            };
            let _ = done.send(Done::Imported { imported, reply }).await;
        });
    }

    /// Does something to a model of the catalogue, beside the loop.
    fn change(&self, name: &str, change: ModelChange, reply: oneshot::Sender<Result<ChangedView, ChangeError>>) {
        let refused = |reason: String| Err(ChangeError::Refused(reason));
        let model = match self.library.resolve(name) {
            Ok(model) => model,
            Err(error) => return drop(reply.send(refused(error.to_string()))),
        };
        let family = self.node.family(model);
        let is_held = self.node.holdings().iter().any(|holding| family.contains(&holding.model));
        if change == ModelChange::Remove && is_held {
            let reason = "this peer serves the model: start it without the model first".to_owned();
            return drop(reply.send(refused(reason)));
        }
        let (library, done) = (self.library.clone(), self.done.clone());
        tokio::spawn(async move {
            let worked = tokio::task::spawn_blocking(move || library.change(model, change)).await;
            let changed = worked
                .map_err(|error| error.to_string())
                .and_then(|changed| changed.map_err(|error| error.to_string()));
            let _ = done.send(Done::Changed(model)).await;
            // Whoever asked may have gone.
            let _ = reply.send(changed.map_err(ChangeError::Refused));
        });
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Prepared { prepared: Ok(prepared), submitted, reply } => self.submit(*prepared, submitted, reply),
            Done::Prepared { prepared: Err(error), reply, .. } => {
                self.counts.failed += 1;
                drop(reply.send(Err(error)));
            }
            Done::Obtained { model, range, weights } => self.obtained(model, range, weights),
            Done::Holders(reply) => {
                let offered = self.node.membership().present(self.clock.now());
                let stored = offered.flat_map(|profile| profile.stored.iter().map(|stored| (profile.peer, *stored)));
                // Whoever asked may have gone.
                drop(reply.send(stored.collect()));
            }
            Done::Described { wish, model } => self.described(wish, model),
            Done::Changed(model) => self.tell_given(model),
            Done::Given(model, given) => {
                let is_public = self.library.entry(model).is_some_and(|entry| !entry.private);
                let is_given = is_public && !given.is_empty();
                if self.providing.set(model, is_given, self.clock.now()) && !is_given {
                    let mesh = self.mesh.clone();
                    tokio::spawn(async move { mesh.withdraw(model).await });
                }
                self.feed(Input::Given(model, given));
            }
            Done::Imported { imported, reply } => {
                let view = imported.map(|imported| {
                    self.know(imported.id);
                    ImportedView::from(&*imported)
                });
                drop(reply.send(view));
            }
        }
    }

    fn submit(
        &mut self,
        prepared: Prepared,
        submitted: Time,
        reply: oneshot::Sender<Result<Generation, GenerateError>>,
    ) {
        let Prepared { facts, derived, tokenizer, spec, stop } = prepared;
        let mut session = [0; SessionId::LEN];
        if let Err(error) = getrandom::fill(&mut session) {
            return drop(reply.send(Err(GenerateError::Prompt(format!("no randomness from the system: {error}")))));
        }
        self.last_request = self.last_request.next();
        let request = self.last_request;
        let (queue, deliveries) = mpsc::channel(GENERATION_CAPACITY);
        let (events, reader) = mpsc::channel(GENERATION_CAPACITY);
        let answer = Answer {
            request,
            computed: Computed {
                model: facts.id,
                weights: None,
                formats: derived.iter().chain([&facts]).map(|facts| (facts.id, facts.format)).collect(),
            },
            prompt_tokens: u32::try_from(spec.prompt.len()).unwrap_or(u32::MAX),
            tokenizer,
            text: TextAssembler::new(stop),
            deliveries,
            events,
            inputs: self.inputs.clone(),
            clock: self.clock,
            submitted,
        };
        self.answers.insert(request, queue);
        tokio::spawn(answer.run());
        // A caller that has gone has dropped the reader, on which the answer's task cancels.
        drop(reply.send(Ok(Generation { model: facts.id.to_string(), events: reader })));
        self.known(&facts, &derived);
        self.feed(Input::Submit { request, session: SessionId::new(session), spec });
    }

    /// Tells the node of a model, and of those that can be made of it. Who serves those is said where the model is spoken of.
    fn known(&mut self, facts: &Arc<ModelFacts>, derived: &[Arc<ModelFacts>]) {
        self.publisher.follow(facts.id);
        self.feed(Input::ModelKnown(Arc::clone(facts)));
        for made in derived {
            self.publisher.belongs(made.id, facts.id);
            self.feed(Input::ModelKnown(Arc::clone(made)));
        }
    }

    /// Tells the node of a model in the catalogue.
    pub(super) fn know(&mut self, model: ModelId) -> Option<Known> {
        match self.library.known(model) {
            Ok(known) => {
                self.known(&known.facts, &known.derived);
                self.tell_given(model);
                Some(known)
            }
            Err(error) => {
                tracing::warn!(model = %model.short(), %error, "a model of the catalogue cannot be used");
                None
            }
        }
    }

    /// Says in the DHT what is given to others, when that is due.
    fn provide(&mut self) {
        let models = self.providing.due(self.clock.now());
        if !models.is_empty() {
            let mesh = self.mesh.clone();
            tokio::spawn(async move {
                for model in models {
                    mesh.provide(model).await;
                }
            });
        }
    }

    /// Gives a model a title that was described by whom the DHT named, who says none.
    fn entitle(&mut self, model: ModelId, title: &str) {
        let has_none = self.node.facts(model).is_some_and(|facts| facts.title.is_empty());
        if !has_none || title.is_empty() {
            return;
        }
        match self.library.entitle(model, title) {
            Ok(()) => drop(self.know(model)),
            Err(error) => tracing::warn!(model = %model.short(), %error, "a model's title cannot be kept"),
        }
    }

    /// Serves a model of the catalogue under a policy.
    pub(super) fn serve(&mut self, model: ModelId, policy: HoldPolicy) {
        let Some(known) = self.know(model) else { return };
        for facts in known.derived.iter().chain([&known.facts]) {
            self.bridge.offer(Arc::clone(facts));
        }
        self.feed(Input::Serve { model, policy });
    }

    /// Begins to take leave: no new leases and requests, and those that others have are handed over.
    fn leave(&mut self, reply: oneshot::Sender<()>) {
        let is_first = self.departure.until().is_none();
        self.departure.ask(reply, self.clock.now());
        if is_first {
            self.feed(Input::Drain);
            let (sessions, requests) = (self.node.sessions(), self.node.requests());
            tracing::info!(sessions, requests, "leaving");
        }
    }

    /// Is gone: what could not be waited for ends, and there is a moment for what is queued to go out.
    async fn stop(mut self) {
        self.feed(Input::Drain);
        let requests: Vec<RequestId> = self.answers.keys().copied().collect();
        for request in requests {
            self.feed(Input::Cancel(request));
        }
        self.publisher.flush().await;
        self.mesh.stop().await;
        self.departure.over();
    }
}
