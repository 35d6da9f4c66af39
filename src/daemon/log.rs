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
        let refused = self.rows.try_send(Row::Entry(Box::new(entry))).err()?;
        told(refused.into_inner(), Input::EntryNotStored)
    }

    /// Queues a proof of cheating. Without room it is lost with this process: whoever has the entries makes it again.
    pub(super) fn store_fork(&self, fork: Box<Fork>) {
        if self.rows.try_send(Row::Fork(fork)).is_err() {
            tracing::warn!("a proof of cheating was not stored");
        }
    }
}

fn write(mut store: Box<dyn LogStore>, mut waiting: mpsc::Receiver<Row>, inputs: &mpsc::Sender<Input>) {
    while let Some(row) = waiting.blocking_recv() {
        let done = match store.append(std::slice::from_ref(&row)) {
            Ok(()) => told(row, Input::EntryStored),
            Err(error) => {
                tracing::error!(%error, "a row of the credit log could not be written");
                told(row, Input::EntryNotStored)
            }
        };
        if done.is_some_and(|done| inputs.blocking_send(done).is_err()) {
            // The daemon has stopped; what still waits is written all the same.
            tracing::debug!("an entry was written after the end");
        }
    }
}

/// What the node is told of a row: it waits for entries only.
fn told(row: Row, tell: fn(CreditEntry) -> Input) -> Option<Input> {
    match row {
        Row::Entry(entry) => Some(tell(*entry)),
        Row::Fork(_) => None,
    }
}
