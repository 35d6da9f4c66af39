//! Where each stage of a mended chain goes on: how much of its cache stays.

use crate::amounts::Position;
#[cfg(feature = "mutants")]
use crate::mutants::Mutant;
#[cfg(feature = "mutants")]
use crate::mutants::is_planted;

/// What a stage has when it stands in the mended chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// Positions in its cache.
    pub(super) length: Position,
    /// The first position of its journal, which ends where the cache does.
    pub(super) journal: Position,
}

/// Positions of each stage's cache that stay, driver first.
///
/// Of `known` tokens the last is always fed again, so that the tail has something to sample from. A stage keeps all that it has
/// before that, unless the next one lacks what it cannot send again: then it computes that again, from what it is sent in turn;
/// in the limit from the tokens.
pub(super) fn keeps(chain: &[Held], known: Position) -> Vec<Position> {
    let fed_again = known.minus(Position(1));
    #[cfg(feature = "mutants")]
    let fed_again = if is_planted(Mutant::KeepUnaccepted) { known } else { fed_again };
    let mut keeps = Vec::with_capacity(chain.len());
    let mut next_has = Position(u32::MAX);
    for held in chain.iter().rev() {
        let own = held.length.min(fed_again);
        let can_send = next_has >= own || held.journal <= next_has;
        next_has = if can_send { own } else { next_has };
        keeps.push(next_has);
    }
    keeps.reverse();
    keeps
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: (u32, u32) = (0, 0);

    fn kept(chain: &[(u32, u32)], known: u32) -> Vec<u32> {
        let held = |&(length, journal): &(u32, u32)| Held { length: Position(length), journal: Position(journal) };
        let chain: Vec<Held> = chain.iter().map(held).collect();
        keeps(&chain, Position(known)).into_iter().map(|keep| keep.0).collect()
    }

    #[test]
    fn survivors_keep_all_but_what_was_not_accepted() {
        assert_eq!(kept(&[(40, 0), NEW, (39, 0), (39, 0)], 40), [39, 0, 39, 39]);
        assert_eq!(kept(&[(512, 0), (384, 0), (256, 256)], 600), [512, 384, 256]);
    }

    #[test]
    fn whoever_lost_its_journal_computes_again_what_the_next_lacks() {
        assert_eq!(kept(&[(40, 0), (40, 40), NEW, (39, 0)], 40), [39, 0, 0, 39]);
        assert_eq!(kept(&[(40, 40), (40, 40), NEW], 40), [0, 0, 0]);
        // Nobody lacks anything of it.
        assert_eq!(kept(&[NEW, (40, 40), (39, 39)], 40), [0, 39, 39]);
    }

    #[test]
    fn a_replacement_that_was_lost_in_its_turn_leaves_what_it_had_to_nobody() {
        // The first replacement of the middle got to 17 when the tail died.
        assert_eq!(kept(&[(40, 0), (17, 0), NEW], 40), [39, 17, 0]);
    }

    #[test]
    fn if_all_are_lost_the_tokens_are_enough() {
        assert_eq!(kept(&[NEW, NEW], 40), [0, 0]);
        assert_eq!(kept(&[NEW], 1), [0]);
    }
}
