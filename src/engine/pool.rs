//! The threads that compute: the caller's own and some workers that stay.
//!
//! A dispatch is opened by the caller, drained by it and by every worker that comes in time, and closed by the caller
//! when no task is left; then it waits for the workers inside. A worker that sleeps too long misses a dispatch, which costs
//! nothing but its help, so a busy machine never holds a dispatch up for a thread that has not begun.
//!
//! ```text
//!  caller ── open(epoch + 1) ── drain ── close ── wait until nobody is inside ──▶ returns
//!  worker ── spin, then sleep ──▶ enter (once per epoch) ── drain ── leave ──▶ spin, then sleep
//! ```
//!
//! Which thread does a task never matters for what it computes. Nothing is allocated per dispatch.

mod pieces;

use std::any::Any;
use std::cell::Cell;
use std::cell::UnsafeCell;
use std::fmt;
use std::hint;
use std::io;
use std::mem;
use std::num::NonZeroUsize;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::thread::JoinHandle;

use crate::engine::float_control;
pub use crate::engine::pool::pieces::Grid;
pub use crate::engine::pool::pieces::Tile;

/// How often a thread without work looks again before it sleeps. The pauses between the dispatches of a pass are a few
/// microseconds and waking takes about fifty, so it looks for about as long: 32 µs on a Xeon of the fourth generation at 2.1 GHz
/// (measured), up to 150 µs on processors that pause for longest. Not critical.
const SPINS: u32 = 3_000;

/// Threads that share the tasks of one caller.
///
/// It may move to another thread but not be used from two ([`Cell`] sees to it), so a task cannot use the pool that
/// runs it:
///
/// ```compile_fail
/// use brigade::engine::pool::Pool;
/// let pool = Pool::alone();
/// pool.run(2, &|_, _| pool.run(2, &|_, _| ()));
/// ```
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Whether a dispatch is under way.
    busy: Cell<bool>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} threads)", self.threads())
    }
}

impl Pool {
    /// Starts one worker less than `threads`; the last thread is the caller's. Every worker, and the thread that calls this,
    /// rounds to nearest and keeps denormals from here on.
    ///
    /// # Errors
    /// If a thread cannot be started, or does not round as it should.
    pub fn new(threads: NonZeroUsize) -> io::Result<Self> {
        float_control::make_canonical()?;
        let mut pool = Self::alone();
        let (ready, started) = sync_channel(threads.get());
        for worker in 1..threads.get() {
            let (shared, ready) = (Arc::clone(&pool.shared), ready.clone());
            let builder = thread::Builder::new().name(format!("engine-{worker}"));
            pool.workers.push(builder.spawn(move || work(&shared, worker, &ready))?);
        }
        drop(ready);
        for _ in 1..threads.get() {
            started.recv().map_err(|_| io::Error::other("a thread ended before it began"))??;
        }
        Ok(pool)
    }

    /// A pool of the caller's thread only.
    pub fn alone() -> Self {
        Self { shared: Arc::new(Shared::new()), workers: Vec::new(), busy: Cell::new(false) }
    }

    /// How many threads compute, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Does the tasks `0..tasks`, each once: `task(thread, number)`, where `thread` is below [`Self::threads`] and no two
    /// tasks of one thread overlap. Returns when all are done.
    ///
    /// # Panics
    /// If a task panics, with its payload and after every thread has let go of the tasks; some may then not have been done. Also
    /// if a task of this pool calls it.
    pub fn run(&self, tasks: usize, task: &(dyn Fn(usize, usize) + Sync)) {
        let _busy = Busy::enter(&self.busy);
        if tasks <= 1 || self.workers.is_empty() {
            return (0..tasks).for_each(|number| task(0, number));
        }
        self.shared.open(task, tasks);
        let own = catch_unwind(AssertUnwindSafe(|| self.shared.drain(0)));
        if own.is_err() {
            self.shared.abandon();
        }
        self.shared.close();
        let theirs = lock(&self.shared.panic).take();
        if let Some(panic) = own.err().or(theirs) {
            resume_unwind(panic);
        }
    }

    /// As [`Self::run`], on the caller's thread alone.
    fn run_here(&self, tasks: usize, task: &dyn Fn(usize, usize)) {
        let _busy = Busy::enter(&self.busy);
        (0..tasks).for_each(|number| task(0, number));
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state.0.fetch_or(STOP, Ordering::SeqCst);
        let guard = lock(&self.shared.sleep);
        self.shared.work.notify_all();
        drop(guard);
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its tasks, so it ends in order.
            let _ = worker.join();
        }
    }
}

/// Marks the pool as used for as long as it lives.
struct Busy<'a>(&'a Cell<bool>);

impl<'a> Busy<'a> {
    fn enter(busy: &'a Cell<bool>) -> Self {
        assert!(!busy.replace(true), "a task must not use the pool that runs it");
        Self(busy)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

/// The state's bit that says that workers may enter.
const OPEN: u64 = 1 << 16;

/// The state's bit that says that workers are to end.
const STOP: u64 = 1 << 17;

/// The state's lowest bits: workers inside.
const INSIDE: u64 = OPEN - 1;

/// Where the state's dispatch number begins.
const EPOCH: u32 = 32;

type Task<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// What a dispatch is to do.
#[derive(Clone, Copy)]
struct Job {
    task: *const Task<'static>,
    tasks: usize,
}

/// A cache line of its own (two, since some processors fetch them in pairs), so that threads don't disturb each other.
#[repr(align(128))]
struct Apart<T>(T);

struct Shared {
    /// Number of the dispatch, whether it is open, workers inside.
    state: Apart<AtomicU64>,
    /// The first task that nobody has taken.
    next: Apart<AtomicUsize>,
    /// Written only while the state is closed with nobody inside, read only by those inside and by the caller.
    job: UnsafeCell<Job>,
    /// The first panic of a worker's task.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleep: Mutex<()>,
    /// Workers asleep, or about to.
    sleepers: AtomicUsize,
    work: Condvar,
    /// Whether the caller sleeps until nobody is inside.
    caller_sleeps: AtomicBool,
    done: Condvar,
}

// SAFETY: all fields are `Sync` but `job`, whose pointer is to something `Sync`. It is written by the caller alone (`Pool` is not
// `Sync`, and `Busy` keeps the caller from a second dispatch) while the state is closed with nobody inside; workers
// read it only between entering, which needs an open state, and leaving. Entering acquires what opening released, and the
// caller's look at the state acquires what leaving released, so writes and reads never overlap.
unsafe impl Sync for Shared {}

// SAFETY: as above; `Job`'s pointer is not owned.
unsafe impl Send for Shared {}

impl Shared {
    fn new() -> Self {
        let nothing: &Task<'static> = &|_, _| ();
        Self {
            state: Apart(AtomicU64::new(0)),
            next: Apart(AtomicUsize::new(0)),
            job: UnsafeCell::new(Job { task: nothing, tasks: 0 }),
            panic: Mutex::new(None),
            sleep: Mutex::new(()),
            sleepers: AtomicUsize::new(0),
            work: Condvar::new(),
            caller_sleeps: AtomicBool::new(false),
            done: Condvar::new(),
        }
    }

    /// Lets workers in. The caller must [`Self::close`] before `task` ends.
    fn open(&self, task: &Task<'_>, tasks: usize) {
        // SAFETY: only the lifetime changes. Nobody uses the task after `close`, which `run` calls before it returns or
        // unwinds, and `task` outlives `run`.
        let task = unsafe { mem::transmute::<&Task<'_>, &Task<'static>>(task) };
        // SAFETY: the state is closed and nobody is inside (`close` waited for that), so nobody else looks at the job.
        unsafe { *self.job.get() = Job { task, tasks } };
        self.next.0.store(0, Ordering::Relaxed);
        let epoch = (self.state.0.load(Ordering::Relaxed) >> EPOCH).wrapping_add(1);
        self.state.0.store(epoch << EPOCH | OPEN, Ordering::SeqCst);
        // Either the sleeper sees the state just stored, or it is counted here: both sides are sequentially consistent.
        let asleep = self.sleepers.load(Ordering::SeqCst);
        if asleep > 0 {
            let _guard = lock(&self.sleep);
            (0..asleep.min(tasks - 1)).for_each(|_| self.work.notify_one());
        }
    }

    /// Does tasks until none is left. For the caller between `open` and `close`, and for workers inside.
    fn drain(&self, thread: usize) {
        // SAFETY: the caller has opened the dispatch, or this worker has entered it; until it is closed and this thread has
        // left, nobody writes the job.
        let Job { task, tasks } = unsafe { *self.job.get() };
        // SAFETY: as above, and `close` is called before what the task borrows ends.
        let task = unsafe { &*task };
        loop {
            let number = self.next.0.fetch_add(1, Ordering::Relaxed);
            if number >= tasks {
                return;
            }
            task(thread, number);
        }
    }

    /// Leaves the tasks that nobody has taken undone.
    fn abandon(&self) {
        // Half of the range, so that no thread's next look overflows.
        self.next.0.store(usize::MAX / 2, Ordering::Relaxed);
    }

    /// Lets nobody in any more and waits for those inside.
    fn close(&self) {
        self.state.0.fetch_and(!OPEN, Ordering::SeqCst);
        for _ in 0..SPINS {
            if self.state.0.load(Ordering::Acquire) & INSIDE == 0 {
                return;
            }
            hint::spin_loop();
        }
        let mut guard = lock(&self.sleep);
        self.caller_sleeps.store(true, Ordering::SeqCst);
        while self.state.0.load(Ordering::SeqCst) & INSIDE != 0 {
            guard = self.done.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.caller_sleeps.store(false, Ordering::SeqCst);
    }

    /// Waits for a dispatch after `last` and enters it; `None` when the worker is to end.
    fn enter(&self, last: u64) -> Option<u64> {
        let mut spins = 0;
        loop {
            let state = self.state.0.load(Ordering::Acquire);
            if state & STOP != 0 {
                return None;
            }
            if wanted(state, last) {
                let inside = self.state.0.compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Relaxed);
                if inside.is_ok() {
                    return Some(state >> EPOCH);
                }
            } else if spins < SPINS {
                spins += 1;
                hint::spin_loop();
            } else {
                self.sleep(last);
                spins = 0;
            }
        }
    }

    fn sleep(&self, last: u64) {
        let guard = lock(&self.sleep);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let state = self.state.0.load(Ordering::SeqCst);
        if state & STOP == 0 && !wanted(state, last) {
            drop(self.work.wait(guard).unwrap_or_else(PoisonError::into_inner));
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    fn leave(&self) {
        let before = self.state.0.fetch_sub(1, Ordering::SeqCst);
        let was_last = before & (OPEN | INSIDE) == 1;
        if was_last && self.caller_sleeps.load(Ordering::SeqCst) {
            let _guard = lock(&self.sleep);
            self.done.notify_one();
        }
    }
}

/// Whether the state is that of an open dispatch other than `last`.
fn wanted(state: u64, last: u64) -> bool {
    state & OPEN != 0 && state >> EPOCH != last
}

fn work(shared: &Shared, worker: usize, ready: &SyncSender<io::Result<()>>) {
    let canonical = float_control::make_canonical();
    let usable = canonical.is_ok();
    // Whoever starts the pool waits for this, unless it has failed already.
    if ready.send(canonical).is_err() || !usable {
        return;
    }
    let mut last = 0;
    while let Some(epoch) = shared.enter(last) {
        last = epoch;
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| shared.drain(worker))) {
            shared.abandon();
            lock(&shared.panic).get_or_insert(panic);
        }
        shared.leave();
    }
}

/// A panic never leaves what these locks guard half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
