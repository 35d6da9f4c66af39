//! When a generation ends: one rule, by which the tail ends it and the requester checks that it did.

use crate::amounts::Position;
use crate::ids::Token;
use crate::wire::control::TailFinish;

/// What ends a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Tokens of the prompt: the position of the first new token.
    pub prompt_length: Position,
    /// New tokens at most.
    pub max_tokens: u32,
    /// Ids that end the generation, ascending.
    pub end_of_generation: Vec<Token>,
    /// Positions that the session may use.
    pub budget: Position,
}

impl Ending {
    /// Why the generation ends with `token` at `position`, if it does.
    pub fn of(&self, position: Position, token: Token) -> Option<TailFinish> {
        let after = position.plus(Position(1));
        if self.end_of_generation.binary_search(&token).is_ok() {
            Some(TailFinish::EndOfGeneration)
        } else if after.minus(self.prompt_length).0 >= self.max_tokens {
            Some(TailFinish::MaxTokens)
        } else if after >= self.budget {
            Some(TailFinish::Budget)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_ends_by_token_count_or_budget() {
        let ending = Ending {
            prompt_length: Position(5),
            max_tokens: 4,
            end_of_generation: vec![Token(2), Token(9)],
            budget: Position(8),
        };

        assert_eq!(ending.of(Position(5), Token(9)), Some(TailFinish::EndOfGeneration));
        assert_eq!(ending.of(Position(6), Token(3)), None);
        assert_eq!(ending.of(Position(7), Token(3)), Some(TailFinish::Budget));
        assert_eq!(ending.of(Position(8), Token(3)), Some(TailFinish::MaxTokens));
    }
}
