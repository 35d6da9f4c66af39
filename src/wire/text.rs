//! Short texts for people, which come from strangers and end on terminals.

/// Whether `text` can be shown anywhere as it is: no control characters, none that are invisible, break lines or
/// change the direction of writing.
pub fn is_printable(text: &str) -> bool {
    text.chars().all(is_printable_char)
}

/// The longest beginning of `text` of at most `limit` bytes, without what [`is_printable`] refuses.
pub fn printable(text: &str, limit: usize) -> String {
    let mut kept = String::new();
    for character in text.chars().filter(|&character| is_printable_char(character)) {
        if kept.len() + character.len_utf8() > limit {
            break;
        }
        kept.push(character);
    }
    kept
}

/// The ranges are Unicode's bidirectional and zero-width format characters, line separators and byte order mark.
fn is_printable_char(character: char) -> bool {
    let hidden = matches!(character,
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{61c}');
    !character.is_control() && !hidden
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_not_printable() {
        assert!(is_printable("Llama 3 – größer ✓"));
        for text in ["a\nb", "\u{1b}[2J", "\u{202e}abc", "a\u{200b}b", "\u{9b}"] {
            assert!(!is_printable(text), "{text:?}");
            assert!(is_printable(&printable(text, 100)));
        }
    }

    #[test]
    fn a_cut_keeps_whole_characters() {
        assert_eq!(printable("aéé", 4), "aé");
        assert_eq!(printable("plain", 96), "plain");
    }
}
