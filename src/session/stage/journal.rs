//! What a stage has computed for the next one, by position: a cache that makes rebuilding cheap, never the only copy.

use bytes::Bytes;
use bytes::BytesMut;

use crate::amounts::Position;
#[cfg(feature = "mutants")]
use crate::mutants::Mutant;
#[cfg(feature = "mutants")]
use crate::mutants::is_planted;
use crate::session::stage::outflow::Rows;

/// Rows from position 0 on, without a gap, in the parts in which they were computed.
#[derive(Debug)]
pub(super) struct Journal {
    row_bytes: usize,
    parts: Vec<Rows>,
    bytes: u64,
}

impl Journal {
    pub(super) fn new(row_bytes: usize) -> Self {
        Self { row_bytes, parts: Vec::new(), bytes: 0 }
    }

    /// Adds rows. Those that it has from the first of them on are forgotten: they were computed again.
    pub(super) fn push(&mut self, rows: Rows) {
        self.truncate(rows.first);
        self.bytes += rows.payload.len() as u64;
        self.parts.push(rows);
    }

    /// Forgets all rows from `end` on.
    pub(super) fn truncate(&mut self, end: Position) {
        #[cfg(feature = "mutants")]
        if is_planted(Mutant::ForgetToRewind) {
            return;
        }
        while let Some(part) = self.parts.pop_if(|part| end < part.end()) {
            self.bytes -= part.payload.len() as u64;
            if part.first < end {
                let kept = part.until(end, self.row_bytes);
                self.bytes += kept.payload.len() as u64;
                self.parts.push(kept);
            }
        }
    }

    /// The rows from `first` on, joined, at most `most` of them and none from `end` on. `None` if there are none.
    pub(super) fn rows(&self, first: Position, end: Position, most: u32) -> Option<Rows> {
        let end = end.min(first.plus(Position(most)));
        if end <= first {
            return None;
        }
        let begins = self.parts.partition_point(|part| part.end() <= first);
        let parts = self.parts[begins..].iter().take_while(|part| part.first < end);
        let pieces: Vec<Rows> =
            parts.map(|part| part.clone().until(end, self.row_bytes).since(first, self.row_bytes)).collect();
        let rows = Rows {
            first: pieces.first()?.first,
            count: pieces.iter().map(|piece| piece.count).sum(),
            payload: join(pieces),
        };
        Some(rows)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// One piece stays where it is.
fn join(mut pieces: Vec<Rows>) -> Bytes {
    if pieces.len() == 1 {
        return pieces.swap_remove(0).payload;
    }
    let mut joined = BytesMut::with_capacity(pieces.iter().map(|piece| piece.payload.len()).sum());
    pieces.iter().for_each(|piece| joined.extend_from_slice(&piece.payload));
    joined.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(first: u32, values: &[u8]) -> Rows {
        Rows { first: Position(first), count: values.len() as u32, payload: Bytes::copy_from_slice(values) }
    }

    fn journal(parts: &[(u32, &[u8])]) -> Journal {
        let mut journal = Journal::new(1);
        parts.iter().for_each(|(first, values)| journal.push(rows(*first, values)));
        journal
    }

    fn all(journal: &Journal) -> Option<Rows> {
        journal.rows(Position(0), Position(u32::MAX), u32::MAX)
    }

    #[test]
    fn rows_are_had_again_in_pieces_of_any_size() {
        let journal = journal(&[(0, &[0, 1, 2]), (3, &[3]), (4, &[4, 5])]);

        assert_eq!(all(&journal), Some(rows(0, &[0, 1, 2, 3, 4, 5])));
        assert_eq!(journal.rows(Position(1), Position(5), 3), Some(rows(1, &[1, 2, 3])));
        assert_eq!(journal.rows(Position(4), Position(5), 3), Some(rows(4, &[4])));
        assert_eq!(journal.rows(Position(6), Position(9), 3), None);
        assert_eq!(journal.rows(Position(1), Position(1), 3), None, "in the middle of a part");
    }

    #[test]
    fn rows_that_are_computed_again_take_the_place_of_those_before() {
        let mut journal = journal(&[(0, &[0, 1, 2]), (3, &[3]), (2, &[7, 8])]);
        assert_eq!(all(&journal), Some(rows(0, &[0, 1, 7, 8])));
        assert_eq!(journal.bytes(), 4);

        journal.truncate(Position(1));

        assert_eq!(all(&journal), Some(rows(0, &[0])));
        assert_eq!(journal.bytes(), 1);
    }
}
