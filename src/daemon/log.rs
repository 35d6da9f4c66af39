//! Writes the credit log on a thread of its own, since a flush may take long.

use std::io;
use std::thread;

use tokio::sync::mpsc;

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
    entries: mpsc::Sender<CreditEntry>,
}

impl LogWriter {
    /// Starts the thread. It ends when the writer is dropped, after everything waiting is written.
    pub(super) fn start(store: Box<dyn LogStore>, inputs: mpsc::Sender<Input>) -> io::Result<Self> {
        let (entries, waiting) = mpsc::channel(CAPACITY);
        thread::Builder::new().name("credit-log".to_owned()).spawn(move || write(store, waiting, &inputs))?;
        Ok(Self { entries })
    }

    /// Queues an entry; what to tell the node if there is no room.
    pub(super) fn store(&self, entry: CreditEntry) -> Option<Input> {
        let refused = self.entries.try_send(entry).err()?;
        Some(Input::EntryNotStored(refused.into_inner()))
    }
}

fn write(mut store: Box<dyn LogStore>, mut waiting: mpsc::Receiver<CreditEntry>, inputs: &mpsc::Sender<Input>) {
    while let Some(entry) = waiting.blocking_recv() {
        let done = match store.append(&[Row::Entry(Box::new(entry.clone()))]) {
            Ok(()) => Input::EntryStored(entry),
            Err(error) => {
                tracing::error!(%error, "a credit entry could not be written");
                Input::EntryNotStored(entry)
            }
        };
        if inputs.blocking_send(done).is_err() {
            // The daemon has stopped; what still waits is written all the same.
            tracing::debug!("an entry was written after the end");
        }
    }
}
