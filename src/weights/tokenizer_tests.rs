use proptest::prelude::*;

use super::*;
use crate::weights::fixture::byte_vocabulary;

const TEXT: EncodeOptions = EncodeOptions { specials: Specials::AsText, bos: Bos::Omit };
const PARSED: EncodeOptions = EncodeOptions { specials: Specials::Parse, bos: Bos::Omit };

#[test]
fn sentencepiece_joins_the_best_score_first_and_spells_the_rest() {
    let tokenizer = Tokenizer::new(sentencepiece()).unwrap();

    let pieces = |text| named(&tokenizer, &tokenizer.encode(text, EncodeOptions::RAW));

    assert_eq!(pieces("he hello"), ["<s>", " he", " he", "llo"]);
    assert_eq!(pieces("ä"), ["<s>", " ", "\u{fffd}", "\u{fffd}"]);
    assert_eq!(pieces(""), ["<s>"]);
}

#[test]
fn byte_pairs_merge_in_the_order_of_the_list() {
    let tokenizer = Tokenizer::new(byte_pairs()).unwrap();

    let pieces = |text| named(&tokenizer, &tokenizer.encode(text, TEXT));

    assert_eq!(pieces("abc"), ["a", "bc"]);
    assert_eq!(pieces("ab abc"), ["ab", " ", "a", "bc"]);
}

#[test]
fn specials_are_tokens_only_where_the_caller_says_so() {
    let tokenizer = Tokenizer::new(byte_pairs()).unwrap();
    let text = "a<|im_end|><think>";

    assert_eq!(named(&tokenizer, &tokenizer.encode(text, PARSED)), ["a", "<|im_end|>", "<think>"]);
    let plain = tokenizer.encode(text, TEXT);
    assert_eq!(named(&tokenizer, &plain).last().map(String::as_str), Some("<think>"));
    assert!(!plain.iter().any(|&token| tokenizer.ends_generation(token)));
    assert_eq!(tokenizer.decode(&plain), text);
}

#[test]
fn the_beginning_of_sequence_is_added_as_asked() {
    let tokenizer = Tokenizer::new(sentencepiece()).unwrap();
    let count = |bos| tokenizer.encode("he", EncodeOptions { specials: Specials::AsText, bos }).len();

    assert_eq!([count(Bos::Add), count(Bos::AsModelSays), count(Bos::Omit)], [2, 2, 1]);
}

#[test]
fn control_tokens_have_a_name_and_no_text() {
    let tokenizer = Tokenizer::new(byte_pairs()).unwrap();
    let end = *tokenizer.vocabulary().end_of_generation.last().unwrap();

    assert_eq!(tokenizer.piece(end).as_ref(), b"");
    assert_eq!(tokenizer.named_piece(end).as_ref(), b"<|im_end|>");
    assert_eq!(tokenizer.piece(Token(u32::MAX)).as_ref(), b"");
}

#[test]
fn lists_of_different_lengths_are_refused() {
    let mut vocabulary = byte_pairs();
    vocabulary.types.pop();

    assert!(matches!(Tokenizer::new(vocabulary), Err(VocabularyError::Length { key: "types", .. })));
}

#[test]
fn more_markers_than_any_model_has_are_refused() {
    let mut vocabulary = byte_pairs();
    for number in 0..200 {
        vocabulary.tokens.push(format!("<{}{number}>", "x".repeat(8_000)));
        vocabulary.types.push(TokenType::UserDefined);
    }

    assert!(matches!(Tokenizer::new(vocabulary), Err(VocabularyError::Markers { .. })));
}

#[test]
fn a_megabyte_without_a_break_is_encoded_in_time() {
    let byte_pairs = Tokenizer::new(byte_pairs()).unwrap();
    let sentencepiece = Tokenizer::new(sentencepiece()).unwrap();
    let text = "ab".repeat(1 << 18);

    assert_eq!(byte_pairs.encode(&text, TEXT).len(), 1 << 18);
    assert_eq!(sentencepiece.decode(&sentencepiece.encode(&text, TEXT)), text);
}

proptest! {
    #[test]
    fn byte_pairs_give_back_every_text(text in "\\PC{0,40}|[ab <|im_end>\\n]{0,40}") {
        let tokenizer = Tokenizer::new(byte_pairs()).unwrap();

        prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&text, TEXT)), text);
    }

    /// The oracle is the `tokenizers` crate with its own pre-tokenizer of GPT-2.
    #[test]
    fn byte_pairs_cut_as_the_tokenizers_crate_does(text in "(the|then|th|abc|bc|ing| |  |\n|1|12|'s|'S|é|漢|\\PC){0,30}") {
        let vocabulary = merged_byte_pairs();
        let oracle = oracle(&vocabulary);
        let tokenizer = Tokenizer::new(vocabulary).unwrap();

        let tokens: Vec<u32> = tokenizer.encode(&text, TEXT).iter().map(|token| token.0).collect();

        let expected = oracle.encode(text.as_str(), false).unwrap();
        prop_assert_eq!(tokens, expected.get_ids());
    }

    /// SentencePiece writes a space as U+2581, so that this one character is not told from it.
    #[test]
    fn sentencepiece_gives_back_every_text(text in "[\\PC&&[^▁]]{0,40}|[helo ]{0,40}") {
        let tokenizer = Tokenizer::new(sentencepiece()).unwrap();

        prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&text, TEXT)), text);
    }

    #[test]
    fn shielded_text_holds_no_special_and_reads_the_same(text in "(<\\|im_end\\|>|<|\\||im|<think>|\\PC){0,20}") {
        let tokenizer = Tokenizer::new(byte_pairs()).unwrap();
        let mark = '\u{f0000}';

        let shielded = tokenizer.shield(&text, &tokenizer.special_starts(), mark);
        let tokens = tokenizer.encode_marked(&shielded, mark);

        prop_assert!(!tokens.iter().any(|&token| tokenizer.ends_generation(token)));
        prop_assert_eq!(tokenizer.decode(&tokens), text);
    }
}

fn named(tokenizer: &Tokenizer, tokens: &[Token]) -> Vec<String> {
    tokens.iter().map(|&token| String::from_utf8_lossy(&tokenizer.named_piece(token)).into_owned()).collect()
}

fn byte_pairs() -> Vocabulary {
    let mut vocabulary = byte_vocabulary(259, crate::weights::fixture::Ends::Marked);
    for (text, kind) in [("ab", TokenType::Normal), ("bc", TokenType::Normal), ("<think>", TokenType::UserDefined)] {
        vocabulary.tokens.push(text.to_owned());
        vocabulary.types.push(kind);
    }
    vocabulary.merges = vec!["b c".to_owned(), "a b".to_owned()];
    vocabulary
}

/// All bytes and a few merges that compete with each other.
fn merged_byte_pairs() -> Vocabulary {
    let mut vocabulary = byte_vocabulary(259, crate::weights::fixture::Ends::Never);
    let merges = [
        "h e",
        "Ġ t",
        "Ġt he",
        "t he",
        "i n",
        "b c",
        "a b",
        "ab c",
        "in g",
        "the n",
        "Ġthe n",
        "Ġ Ġ",
        "1 2",
        "Ċ Ċ",
        "' s",
        "Ã ©",
        "ĠĠ ĠĠ",
        "Ġ a",
    ];
    for merge in merges {
        vocabulary.tokens.push(merge.replace(' ', ""));
        vocabulary.types.push(TokenType::Normal);
        vocabulary.merges.push(merge.to_owned());
    }
    vocabulary
}

fn oracle(vocabulary: &Vocabulary) -> tokenizers::Tokenizer {
    let merges: Vec<_> = vocabulary.merges.iter().map(|merge| merge.split_once(' ').unwrap()).collect();
    let ids: BTreeMap<_, _> = vocabulary.tokens.iter().zip(0..).collect();
    let json = serde_json::json!({
        "version": "1.0",
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "post_processor": null,
        "decoder": null,
        "model": { "type": "BPE", "vocab": ids, "merges": merges },
    });
    tokenizers::Tokenizer::from_bytes(json.to_string()).unwrap()
}

fn sentencepiece() -> Vocabulary {
    let mut tokens = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
    tokens.extend((0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>")));
    let mut types = vec![TokenType::Unknown, TokenType::Control, TokenType::Control];
    types.extend([TokenType::Byte; 256]);
    let words = [
        ("▁", -9.0),
        ("h", -9.0),
        ("e", -9.0),
        ("l", -9.0),
        ("o", -9.0),
        ("he", -1.0),
        ("▁he", -2.0),
        ("ll", -3.0),
        ("llo", -4.0),
        ("el", -5.0),
    ];
    let mut scores = vec![0.0; tokens.len()];
    for (text, score) in words {
        tokens.push(text.to_owned());
        types.push(TokenType::Normal);
        scores.push(score);
    }
    Vocabulary {
        kind: VocabularyKind::SentencePiece,
        tokens,
        types,
        scores,
        merges: Vec::new(),
        bos: Some(Token(1)),
        add_bos: true,
        add_space_prefix: true,
        end_of_generation: vec![Token(2)],
        chat_template: None,
    }
}
