//! The credit log on disk.
//!
//! Rows are only ever added. They are kept in the order of their coming, and found by what they say: an entry by
//! requester and number, a proof of cheating by requester. What is appended is on disk before the call returns, so
//! that a plan of the ledger can be committed and acknowledged after it.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::ids::PeerKey;
use crate::ledger::Row;
use crate::wire::credit::CreditEntry;

mod sled_store;
#[cfg(test)]
mod tests;

pub use sled_store::SledStore;

/// Keeps the rows of the ledger of one network.
pub trait LogStore: Send {
    /// Adds rows in one transaction and waits until they are on disk. Rows that are known are passed over.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing may be acknowledged, and after a restart either all rows or none are there.
    fn append(&mut self, rows: &[Row]) -> Result<(), StoreError>;

    /// Every row, in the order in which they were added.
    fn rows(&self) -> Box<dyn Iterator<Item = Result<Row, StoreError>> + '_>;

    /// The entry of `requester` with the number `sequence`, if there is one.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be read.
    fn entry(&self, requester: PeerKey, sequence: u64) -> Result<Option<CreditEntry>, StoreError>;
}

/// What was found when a store was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// A sound log, or a new one.
    Sound,
    /// A damaged log, which was moved aside; the store is new and empty.
    SetAside {
        /// Where the damaged one is.
        to: PathBuf,
        /// What was wrong with it, for people.
        reason: String,
    },
}

/// Why the log could not be read or written. Always this machine's fault.
#[derive(Debug, Error)]
pub enum StoreError {
    /// No room on the disk.
    #[error("the disk is full: the credit log cannot be written")]
    DiskFull,
    /// Another process has it open.
    #[error("the credit log {} is in use by another process", .path.display())]
    InUse {
        /// The log's folder.
        path: PathBuf,
    },
    /// What was read is not what was written.
    #[error("the credit log is damaged: {reason}")]
    Damaged {
        /// What was found.
        reason: String,
    },
    /// A damaged log could not be moved aside.
    #[error("the damaged credit log {} cannot be moved aside", .path.display())]
    NotSetAside {
        /// The log's folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// An earlier write failed. What is on disk is known only after opening again.
    #[error("the credit log takes no more after a failed write")]
    Failed,
    /// Any other failure to read or write.
    #[error("the credit log cannot be {doing}")]
    Io {
        /// What was tried: opened, read or written.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}
