//! The merges of SentencePiece's tokenizers, which `tokenizer.json` has instead of scores.
//!
//! SentencePiece joins two neighbours if together they are a token, the token with the best score first. A list of merges says the same
//! if it has every pair that makes a token, and all pairs that make the same token follow each other; their place in the list is then the
//! score. Other lists mean something else and are refused. (Of pairs that make the same token at two places of a text, SentencePiece
//! joins the leftmost and a list its better one first; converters write lists for which that makes no difference but in rare texts.)

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::weights::huggingface::error::FolderError;
use crate::weights::huggingface::tokenizer::Merge;
use crate::wire::vocabulary::TokenType;

/// The score of each token, by id; that of tokens that nothing is joined to is the lowest.
///
/// - `types`: of each token; only texts are joined
pub(super) fn scores(
    vocab: &BTreeMap<String, u32>,
    merges: &[Merge],
    types: &[TokenType],
) -> Result<Vec<f32>, FolderError> {
    let pairs = pairs(vocab, merges)?;
    let mut ranks: BTreeMap<u32, usize> = BTreeMap::new();
    let mut last = None;
    for (rank, (_, whole)) in pairs.iter().enumerate() {
        if last != Some(*whole) && ranks.insert(*whole, rank).is_some() {
            return Err(FolderError::tokenizer("merges in an order that no scores give"));
        }
        last = Some(*whole);
    }
    check_complete(vocab, types, &pairs)?;
    let score = |token: u32| 0.0 - *ranks.get(&token).unwrap_or(&pairs.len()) as f32;
    Ok((0..types.len() as u32).map(score).collect())
}

/// The tokens of each merge and the token that they make.
fn pairs(vocab: &BTreeMap<String, u32>, merges: &[Merge]) -> Result<Vec<([u32; 2], u32)>, FolderError> {
    let ids = |merge: &Merge| {
        let (left, right) = merge.pair()?;
        Some(([*vocab.get(left)?, *vocab.get(right)?], *vocab.get(&format!("{left}{right}"))?))
    };
    let pairs = merges.iter().map(ids).collect::<Option<Vec<_>>>();
    // Beyond 2²⁴ not every rank is a float.
    let pairs = pairs.filter(|pairs| pairs.len() < 1 << 24);
    pairs.ok_or_else(|| FolderError::words("a merge is not of two tokens that make a third"))
}

/// Checks that whatever two tokens make a third are in the list.
fn check_complete(
    vocab: &BTreeMap<String, u32>,
    types: &[TokenType],
    pairs: &[([u32; 2], u32)],
) -> Result<(), FolderError> {
    let listed: BTreeSet<[u32; 2]> = pairs.iter().map(|(pair, _)| *pair).collect();
    let of = |text: &str| {
        let is_text = |token: &u32| types.get(*token as usize) == Some(&TokenType::Normal);
        vocab.get(text).copied().filter(is_text)
    };
    for text in vocab.keys().filter(|text| of(text).is_some()) {
        let cuts = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
        let mut pairs = cuts.filter_map(|(left, right)| Some([of(left)?, of(right)?]));
        if pairs.any(|pair| !listed.contains(&pair)) {
            return Err(FolderError::tokenizer(format!("only some of the merges that make \"{text}\"")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complete_list_in_order_gives_scores() {
        let scores = of(&["a b", "b c", "ab c", "a bc"]).unwrap();

        // a, ab, abc, b, bc, c
        assert_eq!(scores, [-4.0, 0.0, -2.0, -4.0, -1.0, -4.0]);
    }

    #[test]
    fn a_list_that_no_scores_give_is_refused() {
        assert!(of(&["a b", "b c", "ab c"]).unwrap_err().to_string().contains("\"abc\""));
        assert!(of(&["a b", "ab c", "a bc"]).unwrap_err().to_string().contains("\"bc\""));
        assert!(of(&["b c", "a bc", "a b", "ab c"]).unwrap_err().to_string().contains("order"));
        assert!(matches!(of(&["a c"]), Err(FolderError::Words { .. })));
        assert!(matches!(of(&["ab"]), Err(FolderError::Words { .. })));
    }

    fn of(merges: &[&str]) -> Result<Vec<f32>, FolderError> {
        let vocab = ["a", "ab", "abc", "b", "bc", "c"].into_iter().map(str::to_owned).zip(0..).collect();
        let merges: Vec<Merge> = merges.iter().map(|line| Merge::Line((*line).to_owned())).collect();
        scores(&vocab, &merges, &[TokenType::Normal; 6])
    }
}
