//! Joins neighbouring symbols, cheapest pair first: what SentencePiece and byte-level BPE have in common.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A run of bytes of the text, and the token that it is, if it is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Symbol {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) token: Option<u32>,
}

/// What joining two neighbours costs and gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Join {
    /// The least is joined first; among equals the leftmost.
    pub(super) cost: i64,
    pub(super) token: u32,
}

/// A pair that was worth joining when it was seen. Neither side may have changed since.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    cost: i64,
    left: usize,
    right: usize,
    end: usize,
    token: u32,
}

#[derive(Clone, Copy)]
struct Links {
    before: Option<usize>,
    after: Option<usize>,
    alive: bool,
}

/// Joins until no pair can be joined, in `n log n` steps for `n` symbols. Symbols must lie end to start.
pub(super) fn merge(mut symbols: Vec<Symbol>, join: impl Fn(&Symbol, &Symbol) -> Option<Join>) -> Vec<Symbol> {
    let count = symbols.len();
    let link = |index: usize| Links {
        before: index.checked_sub(1),
        after: Some(index + 1).filter(|&after| after < count),
        alive: true,
    };
    let mut links: Vec<Links> = (0..count).map(link).collect();
    let candidate = |symbols: &[Symbol], left: usize, right: usize| {
        let Join { cost, token } = join(&symbols[left], &symbols[right])?;
        Some(Reverse(Candidate { cost, left, right, end: symbols[right].end, token }))
    };
    let mut queue: BinaryHeap<_> = (1..count).filter_map(|right| candidate(&symbols, right - 1, right)).collect();
    while let Some(Reverse(Candidate { left, right, end, token, .. })) = queue.pop() {
        let is_current = links[left].alive && links[left].after == Some(right) && symbols[right].end == end;
        if !is_current || symbols[left].end != symbols[right].start {
            continue;
        }
        symbols[left] = Symbol { start: symbols[left].start, end, token: Some(token) };
        links[right].alive = false;
        links[left].after = links[right].after;
        if let Some(after) = links[left].after {
            links[after].before = Some(left);
            queue.extend(candidate(&symbols, left, after));
        }
        if let Some(before) = links[left].before {
            queue.extend(candidate(&symbols, before, left));
        }
    }
    symbols.into_iter().zip(links).filter(|(_, links)| links.alive).map(|(symbol, _)| symbol).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Joins equal neighbours into the next token, the shortest first.
    fn doubling(left: &Symbol, right: &Symbol) -> Option<Join> {
        let token = left.token?;
        (left.token == right.token).then_some(Join { cost: i64::from(token), token: token + 1 })
    }

    fn letters(count: usize) -> Vec<Symbol> {
        (0..count).map(|start| Symbol { start, end: start + 1, token: Some(0) }).collect()
    }

    #[test]
    fn the_cheapest_pair_goes_first_and_the_leftmost_among_equals() {
        let tokens: Vec<_> = merge(letters(7), doubling).iter().map(|symbol| symbol.token).collect();

        assert_eq!(tokens, [Some(2), Some(1), Some(0)]);
    }

    #[test]
    fn a_stale_pair_is_not_joined() {
        // "abc": bc is cheapest; ab was seen before b became part of bc.
        let join = |left: &Symbol, right: &Symbol| match (left.token?, right.token?) {
            (1, 2) => Some(Join { cost: 0, token: 12 }),
            (0, 1) => Some(Join { cost: 1, token: 1 }),
            _ => None,
        };
        let symbols = (0..3).map(|start| Symbol { start, end: start + 1, token: Some(start as u32) }).collect();

        let tokens: Vec<_> = merge(symbols, join).iter().map(|symbol| symbol.token).collect();

        assert_eq!(tokens, [Some(0), Some(12)]);
    }

    #[test]
    fn symbols_still_lie_end_to_start_after_merging_a_long_text() {
        let merged = merge(letters(100_000), doubling);

        assert!(merged.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert_eq!(merged.last().map(|symbol| symbol.end), Some(100_000));
    }
}
