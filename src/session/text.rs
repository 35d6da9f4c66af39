//! From the bytes of tokens to text that can be shown: never half a character, never any part of a stop string.

use std::mem;

/// What can be shown after a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// This text; empty where all is withheld. Of the tokens pushed so far, the first `tokens` are wholly in what was shown.
    Text {
        /// The text.
        text: String,
        /// Tokens that the whole text shown so far stands for.
        tokens: usize,
    },
    /// A stop string was found: this text before it, and nothing any more.
    Stopped {
        /// The text.
        text: String,
        /// Tokens that the whole text shown stands for: those that end before the stop string begins.
        tokens: usize,
    },
}

/// Assembles the text of one answer.
#[derive(Clone, Debug)]
pub struct TextAssembler {
    stops: Vec<Vec<u8>>,
    /// Bytes that were pushed and not shown.
    withheld: Vec<u8>,
    /// Bytes shown or dropped so far.
    shown: u64,
    /// Where each token that is not wholly shown ends, in bytes from the beginning; and how many went before.
    ends: Vec<u64>,
    tokens: usize,
    stopped: bool,
}

impl TextAssembler {
    /// Empty stop strings are ignored.
    pub fn new(stops: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let stops = stops.into_iter().map(|stop| stop.as_ref().as_bytes().to_vec());
        Self {
            stops: stops.filter(|stop| !stop.is_empty()).collect(),
            withheld: Vec::new(),
            shown: 0,
            ends: Vec::new(),
            tokens: 0,
            stopped: false,
        }
    }

    /// Takes the bytes of the next token.
    pub fn push(&mut self, bytes: &[u8]) -> Shown {
        if self.stopped {
            return Shown::Stopped { text: String::new(), tokens: self.tokens };
        }
        self.withheld.extend_from_slice(bytes);
        self.ends.push(self.shown + self.withheld.len() as u64);
        if let Some(at) = self.stop() {
            return self.stop_at(at);
        }
        let free = self.withheld.len() - self.possible_stop();
        let whole = whole_characters(&self.withheld[..free]);
        let text = self.show(whole);
        Shown::Text { text, tokens: self.tokens }
    }

    /// No more comes: what was withheld. Bytes that are no character become U+FFFD.
    pub fn finish(&mut self) -> Shown {
        let rest = if self.stopped { 0 } else { self.withheld.len() };
        let text = self.show(rest);
        Shown::Text { text, tokens: self.tokens }
    }

    fn stop_at(&mut self, at: usize) -> Shown {
        self.stopped = true;
        let text = self.show(at);
        self.withheld.clear();
        Shown::Stopped { text, tokens: self.tokens }
    }

    /// Where the stop string begins that is the first to be complete; of two that end together, the longer one.
    fn stop(&self) -> Option<usize> {
        first_complete(&self.withheld, self.stops.iter().map(Vec::as_slice))
    }

    /// Length of the longest end of what is withheld that may be the beginning of a stop string.
    fn possible_stop(&self) -> usize {
        let longest = |stop: &Vec<u8>| {
            let most = (stop.len() - 1).min(self.withheld.len());
            (1..=most).rev().find(|&length| self.withheld.ends_with(&stop[..length])).unwrap_or(0)
        };
        self.stops.iter().map(longest).max().unwrap_or(0)
    }

    fn show(&mut self, count: usize) -> String {
        let rest = self.withheld.split_off(count);
        let bytes = mem::replace(&mut self.withheld, rest);
        self.shown += count as u64;
        let whole = self.ends.iter().take_while(|&&end| end <= self.shown).count();
        self.ends.drain(..whole);
        self.tokens += whole;
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Completion decides, since it does not depend on how the bytes were cut into tokens.
fn first_complete<'a>(bytes: &[u8], stops: impl Iterator<Item = &'a [u8]>) -> Option<usize> {
    let found =
        |stop: &[u8]| bytes.windows(stop.len()).position(|window| window == stop).map(|at| (at + stop.len(), at));
    stops.filter_map(found).min().map(|(_, at)| at)
}

/// How many of `bytes` can be decoded whatever follows: all but a character that has only begun.
fn whole_characters(bytes: &[u8]) -> usize {
    // A character takes at most four bytes, so only the last three can be a beginning.
    let tail = bytes.len().saturating_sub(3);
    let begun = (tail..bytes.len()).find(|&at| is_begun(&bytes[at..]));
    begun.unwrap_or(bytes.len())
}

/// Whether `bytes` are the beginning of one character and not yet all of it.
fn is_begun(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(shown: &Shown) -> &str {
        match shown {
            Shown::Text { text, .. } | Shown::Stopped { text, .. } => text,
        }
    }

    fn run(stops: &[&str], pieces: &[&[u8]]) -> (Vec<String>, usize) {
        let mut assembler = TextAssembler::new(stops);
        let mut parts: Vec<String> = pieces.iter().map(|piece| text(&assembler.push(piece)).to_owned()).collect();
        parts.push(text(&assembler.finish()).to_owned());
        (parts, assembler.tokens)
    }

    #[test]
    fn a_character_is_shown_when_it_is_whole() {
        assert_eq!(run(&[], &[b"a\xe2", b"\x82", b"\xac!"]).0, ["a", "", "€!", ""]);
    }

    #[test]
    fn what_can_be_no_character_is_shown_as_such() {
        assert_eq!(run(&[], &[b"\xff", b"\xe2\x28", b"\xe2"]).0, ["\u{fffd}", "\u{fffd}(", "", "\u{fffd}"]);
    }

    #[test]
    fn a_possible_stop_string_is_withheld_until_it_is_none() {
        assert_eq!(
            run(&["STOP"], &[b"go ST", b"A", b"ST", b"OP more"]),
            (vec!["go ".into(), "STA".into(), String::new(), String::new(), String::new()], 2)
        );
    }

    #[test]
    fn the_first_stop_string_to_be_complete_counts() {
        let mut assembler = TextAssembler::new(["cd", "b"]);

        assert_eq!(assembler.push(b"abcd"), Shown::Stopped { text: "a".to_owned(), tokens: 0 });
        assert_eq!(assembler.push(b"more"), Shown::Stopped { text: String::new(), tokens: 0 });
    }

    #[test]
    fn a_token_counts_once_all_of_it_is_shown() {
        let mut assembler = TextAssembler::new(["!!"]);

        assert_eq!(assembler.push(b"one"), Shown::Text { text: "one".to_owned(), tokens: 1 });
        assert_eq!(assembler.push(b"two!"), Shown::Text { text: "two".to_owned(), tokens: 1 });
        assert_eq!(assembler.push(b"?"), Shown::Text { text: "!?".to_owned(), tokens: 3 });
    }

    /// The text before the first stop string in `bytes`, decoded at once.
    fn reference(bytes: &[u8], stops: &[String]) -> String {
        let stops = || stops.iter().filter(|stop| !stop.is_empty());
        let ended = |end: usize| stops().filter(|stop| bytes[..end].ends_with(stop.as_bytes())).map(String::len).max();
        let stop = (0..=bytes.len()).find_map(|end| ended(end).map(|length| end - length));
        String::from_utf8_lossy(&bytes[..stop.unwrap_or(bytes.len())]).into_owned()
    }

    proptest! {
        #[test]
        fn any_chunking_shows_what_decoding_at_once_shows(
            pieces in prop::collection::vec(prop_oneof![
                "[ab€ ]{0,3}".prop_map(String::into_bytes),
                prop::collection::vec(prop_oneof![Just(0xe2), Just(0x82), Just(0xac), Just(0xf0), Just(0x9f), Just(b'a'), any::<u8>()], 0..4),
            ], 0..24),
            stops in prop::collection::vec("[ab€]{0,3}", 0..3),
        ) {
            let mut assembler = TextAssembler::new(&stops);
            let mut whole = String::new();
            for piece in &pieces {
                let shown = assembler.push(piece);
                whole.push_str(text(&shown));
                let expected = reference(&pieces.concat(), &stops);
                prop_assert!(expected.starts_with(&whole), "{whole:?} is not how {expected:?} begins");
            }
            whole.push_str(text(&assembler.finish()));
            prop_assert_eq!(whole, reference(&pieces.concat(), &stops));
        }
    }
}
