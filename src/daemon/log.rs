//! Writes the credit log on a thread of its own, since a flush may take long.

use std::io;
use std::thread;

use tokio::sync::mpsc;

use crate::ledger::Fork;
use crate::ledger::Row;
use crate::node::io::Input;
use crate::store::LogStore;
use crate::wire::credit::CreditEntry;

/// Entries waiting to be written. The node waits for each before it acknowledges, so sessions bound them; gossip
/// beyond it is not stored and comes again.
const CAPACITY: usize = 1024;

/// Hands entries to the thread that writes them.
#[derive(Clone, Debug)]
pub(super) struct LogWriter {
    rows: mpsc::Sender<Row>,
}

impl LogWriter {
    /// Starts the thread. It ends when the writer is dropped, after everything waiting is written.
    pub(super) fn start(store: Box<dyn LogStore>, inputs: mpsc::Sender<Input>) -> io::Result<Self> {
        let (rows, waiting) = mpsc::channel(CAPACITY);
        thread::Builder::new().name("credit-log".to_owned()).spawn(move || write(store, waiting, &inputs))?;
        Ok(Self { rows })
    }

    /// Queues an entry; what to tell the node if there is no room.
    pub(super) fn store(&self, entry: CreditEntry) -> Option<Input> {
        let queued = self.rows.try_send(Row::Entry(Box::new(entry.clone())));
        queued.is_err().then_some(Input::EntryNotStored(entry))
    }

    /// Queues a proof of cheating. One that finds no room is found again with the next entry.
    pub(super) fn store_fork(&self, fork: Box<Fork>) {
        if self.rows.try_send(Row::Fork(fork)).is_err() {
            tracing::warn!("a proof of cheating finds no room in the queue of the log");
        }
    }
}

fn write(mut store: Box<dyn LogStore>, mut waiting: mpsc::Receiver<Row>, inputs: &mpsc::Sender<Input>) {
    while let Some(row) = waiting.blocking_recv() {
        let written = store.append(std::slice::from_ref(&row));
        if let Err(error) = &written {
            tracing::error!(%error, "the credit log could not be written");
        }
        let Row::Entry(entry) = row else { continue };
        let done = if written.is_ok() { Input::EntryStored(*entry) } else { Input::EntryNotStored(*entry) };
        if inputs.blocking_send(done).is_err() {
            // The daemon has stopped; what still waits is written all the same.
            tracing::debug!("an entry was written after the end");
        }
    }
}
