//! The thread that owns models and sessions, and its handle.

use std::any::Any;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io;
use std::num::NonZeroUsize;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::sync::Arc;
use std::thread;

use tokio::sync::mpsc;

use crate::amounts::Bytes;
use crate::amounts::Span;
use crate::amounts::Time;
use crate::engine::batch;
use crate::engine::batch::Session;
use crate::engine::command::EngineCommand;
use crate::engine::command::EngineEvent;
use crate::engine::command::Load;
use crate::engine::command::Open;
use crate::engine::command::StageKey;
use crate::engine::command::Step;
use crate::engine::command::StepResult;
use crate::engine::device::Device;
use crate::engine::error::LoadError;
use crate::engine::error::OpenError;
use crate::engine::error::StepError;
use crate::engine::pool::Pool;
use crate::engine::stage::StageModel;
use crate::engine::workspace::Workspace;
use crate::ids::ModelId;
use crate::units::UnitRange;

/// Events waiting for whoever listens. The engine waits when it is full, so it bounds how far the listener may be behind.
const EVENT_CAPACITY: usize = 1024;

/// Reads the monotonic clock, which this floor may not do by itself.
pub type Clock = Arc<dyn Fn() -> Time + Send + Sync>;

/// Starts the engine.
///
/// - `device`: what computes the stages
/// - `threads`: how many compute, the engine's own included; nothing else in the process computes
/// - `capacity`: commands that may wait, at least 1
///
/// The listener must never wait to send a command while it does not take events, or the two may wait for each other.
///
/// # Errors
/// The system's, if the threads cannot be started.
pub fn start(
    device: Device,
    threads: NonZeroUsize,
    capacity: NonZeroUsize,
    clock: Clock,
) -> io::Result<(EngineHandle, mpsc::Receiver<EngineEvent>)> {
    let (commands, inbox) = mpsc::channel(capacity.get());
    let (events, outbox) = mpsc::channel(EVENT_CAPACITY);
    let (ready, started) = std::sync::mpsc::sync_channel(1);
    let installs = commands.downgrade();
    thread::Builder::new().name("engine".to_owned()).spawn(move || {
        // The pool's first thread is this one, so that a step starts without waking another.
        match Pool::new(threads) {
            Ok(pool) if ready.send(Ok(())).is_ok() => {
                Engine::new(device, Workspace::new(pool), events, installs, clock).run(inbox)
            }
            // Whoever started the engine has gone.
            Ok(_) => {}
            Err(error) => drop(ready.send(Err(error))),
        }
    })?;
    started.recv().map_err(|_| io::Error::other("the engine's threads could not be started"))??;
    Ok((EngineHandle { commands }, outbox))
}

/// Sends commands to the engine. When the last handle is dropped, the engine stops.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    commands: mpsc::Sender<Message>,
}

/// The command came back, and why.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// As many commands wait as may.
    #[error("the engine has as many commands waiting as it takes")]
    Busy(Box<EngineCommand>),
    /// The engine has stopped.
    #[error("the engine has stopped")]
    Stopped,
}

impl EngineHandle {
    /// Sends a command, waiting while as many as may wait already.
    ///
    /// # Errors
    /// [`SendError::Stopped`].
    pub async fn send(&self, command: EngineCommand) -> Result<(), SendError> {
        self.commands.send(Message::Command(command)).await.map_err(|_| SendError::Stopped)
    }

    /// Sends a command if there is room.
    ///
    /// # Errors
    /// [`SendError`], with the command if there is no room.
    pub fn try_send(&self, command: EngineCommand) -> Result<(), SendError> {
        self.commands.try_send(Message::Command(command)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(Message::Command(command)) => SendError::Busy(Box::new(command)),
            mpsc::error::TrySendError::Full(Message::Read(_)) | mpsc::error::TrySendError::Closed(_) => {
                SendError::Stopped
            }
        })
    }
}

/// What the engine thread takes: commands, and what its loaders have read.
#[derive(Debug)]
enum Message {
    Command(EngineCommand),
    Read(Box<ReadRange>),
}

/// A range as a loader leaves it.
#[derive(Debug)]
struct ReadRange {
    model: ModelId,
    range: UnitRange,
    result: Result<StageModel, LoadError>,
    took: Span,
}

/// Nobody takes the events any more.
struct Abandoned;

/// What the engine thread owns.
struct Engine {
    device: Device,
    models: BTreeMap<(ModelId, UnitRange), Arc<StageModel>>,
    loading: BTreeSet<(ModelId, UnitRange)>,
    sessions: BTreeMap<StageKey, Session>,
    workspace: Workspace,
    events: mpsc::Sender<EngineEvent>,
    installs: mpsc::WeakSender<Message>,
    clock: Clock,
}

impl Engine {
    fn new(
        device: Device,
        workspace: Workspace,
        events: mpsc::Sender<EngineEvent>,
        installs: mpsc::WeakSender<Message>,
        clock: Clock,
    ) -> Self {
        let (models, loading, sessions) = Default::default();
        Self { device, models, loading, sessions, workspace, events, installs, clock }
    }

    fn run(mut self, mut inbox: mpsc::Receiver<Message>) {
        while let Some(message) = inbox.blocking_recv() {
            let done = match message {
                Message::Command(EngineCommand::Stop) => break,
                Message::Command(EngineCommand::Load(load)) => self.on_load(load),
                Message::Command(EngineCommand::Unload { model, range }) => self.on_unload(model, range),
                Message::Command(EngineCommand::Open(open)) => self.on_open(*open),
                Message::Command(EngineCommand::Steps(steps)) => self.on_steps(steps),
                Message::Command(EngineCommand::Free { key }) => {
                    self.sessions.remove(&key);
                    Ok(())
                }
                Message::Read(read) => self.on_read(*read),
            };
            if done.is_err() {
                return;
            }
        }
        // If nobody listens, nobody needs to know.
        let _ = self.emit(EngineEvent::Stopped);
    }

    fn emit(&self, event: EngineEvent) -> Result<(), Abandoned> {
        self.events.blocking_send(event).map_err(|_| Abandoned)
    }

    /// Reads the range on a thread of its own, so that sessions go on meanwhile; with the help of more where there are none.
    fn on_load(&mut self, load: Load) -> Result<(), Abandoned> {
        let Load { model, range, .. } = load;
        if let Some(loaded) = self.models.get(&(model, range)) {
            return self.emit(EngineEvent::Loaded { model, range, bytes: loaded.bytes(), took: Span::ZERO });
        }
        if !self.loading.insert((model, range)) {
            // The load under way will answer both.
            return Ok(());
        }
        let idle = self.loading.len() == 1 && self.sessions.is_empty();
        let threads = if idle { self.workspace.pool().threads() } else { 1 };
        let (events, installs, clock) = (self.events.clone(), self.installs.clone(), Arc::clone(&self.clock));
        let device = self.device.clone();
        let loader = thread::Builder::new().name("engine-load".to_owned());
        let spawned = loader.spawn(move || {
            let read = read_range(load, &device, threads, &events, &clock);
            if let Some(installs) = installs.upgrade() {
                // If the engine has stopped, nobody waits for the range.
                let _ = installs.blocking_send(Message::Read(Box::new(read)));
            }
        });
        let Err(error) = spawned else { return Ok(()) };
        self.loading.remove(&(model, range));
        let error = LoadError::Panicked { message: error.to_string() };
        self.emit(EngineEvent::LoadFailed { model, range, error })
    }

    fn on_read(&mut self, read: ReadRange) -> Result<(), Abandoned> {
        let ReadRange { model, range, result, took } = read;
        if !self.loading.remove(&(model, range)) {
            // Unloaded meanwhile.
            return Ok(());
        }
        match result {
            Ok(loaded) => {
                let bytes = loaded.bytes();
                self.models.insert((model, range), Arc::new(loaded));
                self.emit(EngineEvent::Loaded { model, range, bytes, took })
            }
            Err(error) => self.emit(EngineEvent::LoadFailed { model, range, error }),
        }
    }

    fn on_unload(&mut self, model: ModelId, range: UnitRange) -> Result<(), Abandoned> {
        self.models.remove(&(model, range));
        self.loading.remove(&(model, range));
        self.emit(EngineEvent::Unloaded { model, range })
    }

    fn on_open(&mut self, open: Open) -> Result<(), Abandoned> {
        let key = open.key;
        match self.open(open) {
            Ok(()) => self.emit(EngineEvent::Opened { key }),
            Err(error) => self.emit(EngineEvent::OpenFailed { key, error }),
        }
    }

    fn open(&mut self, open: Open) -> Result<(), OpenError> {
        let Open { key, model, range, capacity, rounding, tail } = open;
        if self.sessions.contains_key(&key) {
            return Err(OpenError::AlreadyOpen);
        }
        let mut loaded = self.models.iter().filter(|((id, held), _)| *id == model && held.covers(range));
        let (_, model) = loaded.next().ok_or(OpenError::NotLoaded { range })?;
        if tail.is_some() && !range.contains(model.shape().head_unit()) {
            return Err(OpenError::NotTail { range });
        }
        let state = model.open(range, capacity, &rounding)?;
        self.sessions.insert(key, Session { model: Arc::clone(model), state, tail });
        Ok(())
    }

    /// Makes the steps, in as few passes as there are loaded ranges among them.
    fn on_steps(&mut self, steps: Vec<Step>) -> Result<(), Abandoned> {
        let mut left = steps;
        while !left.is_empty() {
            let (pass, later) = batch::one_pass(&self.sessions, left);
            let began = (self.clock)();
            let results = self.make(&pass);
            let took = (self.clock)().since(began);
            let rows = pass.iter().map(|step| u64::from(step.count)).sum();
            let keys: Vec<StageKey> = pass.iter().map(|step| step.key).collect();
            for (Step { key, first, count, .. }, result) in pass.into_iter().zip(results) {
                let share = share(took, count, rows);
                self.emit(EngineEvent::Stepped { key, first, count, result, took, share })?;
            }
            self.make_room(&keys);
            left = later;
        }
        Ok(())
    }

    /// Allocates what the next steps need while nobody waits for it.
    fn make_room(&mut self, keys: &[StageKey]) {
        for key in keys {
            if let Some(Session { model, state, .. }) = self.sessions.get_mut(key) {
                model.make_room(state, &mut self.workspace);
            }
        }
    }

    fn make(&mut self, pass: &[Step]) -> Vec<Result<StepResult, StepError>> {
        // After a panic only caches may be half written, and each session's length says how far its own is whole.
        match caught(|| Ok(batch::make(&mut self.sessions, pass, &mut self.workspace))) {
            Ok(results) => results,
            Err(error) if pass.len() == 1 => vec![Err(error)],
            // Only those fail that panic alone too.
            Err(_) => pass.chunks(1).flat_map(|step| self.make(step)).collect(),
        }
    }
}

/// A step's part of the time of its pass, by its rows.
fn share(took: Span, rows: u32, of: u64) -> Span {
    let share = u128::from(took.0) * u128::from(rows) / u128::from(of.max(1));
    Span(u64::try_from(share).unwrap_or(u64::MAX))
}

/// Turns a panic into an error of the step, so that it ends neither the thread nor other sessions.
fn caught<T>(step: impl FnOnce() -> Result<T, StepError>) -> Result<T, StepError> {
    catch_unwind(AssertUnwindSafe(step))
        .unwrap_or_else(|panic| Err(StepError::Panicked { message: message_of(panic.as_ref()) }))
}

fn read_range(
    load: Load,
    device: &Device,
    threads: usize,
    events: &mpsc::Sender<EngineEvent>,
    clock: &Clock,
) -> ReadRange {
    let Load { model, shape, range, source } = load;
    let began = clock();
    let mut progress = |done: Bytes| {
        // A listener that is behind misses some progress, nothing else.
        let _ = events.try_send(EngineEvent::Loading { model, range, done });
    };
    // What threads do not start cannot help.
    let pool = NonZeroUsize::new(threads).and_then(|threads| Pool::new(threads).ok()).unwrap_or_else(Pool::alone);
    let load = || StageModel::load_on(device, &pool, shape, range, source.as_ref(), &mut progress);
    let result = catch_unwind(AssertUnwindSafe(load))
        .unwrap_or_else(|panic| Err(LoadError::Panicked { message: message_of(panic.as_ref()) }));
    ReadRange { model, range, result, took: clock().since(began) }
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
#[path = "thread_tests.rs"]
mod tests;
