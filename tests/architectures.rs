//! Models of every architecture as Hugging Face's folders, against what `transformers` computes with them.
//!
//! The folders, their logits and their token ids are made by `examples/fixtures/architectures.py`.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::path::Path;
use std::path::PathBuf;

use brigade::amounts::Position;
use brigade::engine::stage::SessionState;
use brigade::engine::stage::StageInput;
use brigade::engine::stage::StageModel;
use brigade::engine::stage::StageOutput;
use brigade::engine::stage::WantLogits;
use brigade::ids::Token;
use brigade::shape::Architecture;
use brigade::shape::ModelShape;
use brigade::shape::Rope;
use brigade::shape::RopePairs;
use brigade::shape::RopeScaling;
use brigade::units::UnitRange;
use brigade::weights::chat::AddGenerationPrompt;
use brigade::weights::chat::ChatTemplate;
use brigade::weights::chat::Message;
use brigade::weights::huggingface::Folder;
use brigade::weights::tokenizer::Bos;
use brigade::weights::tokenizer::EncodeOptions;
use brigade::weights::tokenizer::Specials;
use brigade::weights::tokenizer::Tokenizer;
use serde_json::Value;

const FAMILIES: [&str; 4] = ["llama3", "mistral", "qwen2", "qwen3"];

/// How far logits may be from those of transformers with keys and values in halves, relative to the largest: the rounding of f32 alone,
/// and now and then a key that it makes the neighbouring half. About three times what was measured (3e-6 to 9e-5).
const ROUNDING: f32 = 3e-4;

/// The same without halves, of which our cache is made. About four times what was measured (3e-4 to 8e-4).
const HALVES: f32 = 3e-3;

#[test]
fn logits_after_every_token_are_those_of_transformers() {
    for name in FAMILIES {
        let model = Model::open(name);
        let rows = model.logits(&model.folder.shape, &[]);

        let [halves, plain] = ["halves.f32", "logits.f32"].map(|file| difference(&rows, &model.reference(file)));

        println!("{name}: {halves:e} from transformers with halves, {plain:e} without");
        assert!(halves <= ROUNDING, "{name}: {halves:e}");
        assert!(plain <= HALVES, "{name}: {plain:e}");
    }
}

#[test]
fn every_cut_into_two_and_the_whole_prompt_at_once_give_the_same_bits() {
    for name in FAMILIES {
        let model = Model::open(name);
        let shape = &model.folder.shape;
        let expected = model.logits(shape, &[]);

        for cut in 1..shape.units() {
            assert_eq!(bits(&model.logits(shape, &[cut])), bits(&expected), "{name} cut at {cut}");
        }
        for cuts in (1..shape.units()).map(|cut| vec![cut]).chain([Vec::new()]) {
            let last = &expected[expected.len() - 1..];
            assert_eq!(bits(&[model.at_once(&cuts)]), bits(last), "{name} at once, cut at {cuts:?}");
        }
    }
}

#[test]
fn what_is_left_out_or_done_otherwise_is_seen() {
    for (name, change) in changes() {
        let model = Model::open(name);
        let mut shape = model.folder.shape;
        change(&mut shape);

        let difference = difference(&model.logits(&shape, &[]), &model.reference("logits.f32"));

        assert!(difference > 10.0 * HALVES, "{name} with {shape:?}: {difference:e}");
    }
}

#[test]
fn token_ids_are_those_of_transformers() {
    for name in FAMILIES {
        let model = Model::open(name);
        let tokenizer = Tokenizer::new(model.folder.vocabulary.clone()).unwrap();
        let as_parsed = |bos| EncodeOptions { specials: Specials::Parse, bos };

        for case in model.expected["texts"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let got = tokenizer.encode(text, as_parsed(Bos::AsModelSays));
            assert_eq!(got, tokens(&case["ids"]), "{name}: {text:?}");
        }
        let chat = model.expected["chat"]["text"].as_str().unwrap();
        let got = tokenizer.encode(chat, as_parsed(Bos::Omit));
        assert_eq!(got, tokens(&model.expected["chat"]["ids"]), "{name}: {chat:?}");
    }
}

#[test]
fn chats_are_those_of_transformers() {
    for name in FAMILIES {
        let model = Model::open(name);
        let tokenizer = Tokenizer::new(model.folder.vocabulary.clone()).unwrap();
        let template = ChatTemplate::of(tokenizer.vocabulary()).unwrap();
        let message = Message { role: "user".to_owned(), content: "Hi there".to_owned() };

        let rendered = template.render(&tokenizer, &[message], AddGenerationPrompt::No, None).unwrap();

        assert_eq!(rendered.tokens(&tokenizer), tokens(&model.expected["chat"]["ids"]), "{name}");
    }
}

#[test]
fn what_ends_a_generation_is_known() {
    for name in FAMILIES {
        let model = Model::open(name);

        assert_eq!(model.folder.vocabulary.end_of_generation, tokens(&model.expected["ends"]), "{name}");
    }
}

/// Makes a shape compute something else than the model says.
type Change = fn(&mut ModelShape);

/// Of which model each is.
fn changes() -> Vec<(&'static str, Change)> {
    let interleave = |shape: &mut ModelShape| {
        shape.architecture = Architecture::Llama;
        shape.rope = Rope { pairs: RopePairs::Interleaved, ..shape.rope };
    };
    vec![
        ("llama3", |shape| shape.rope.scaling = RopeScaling::None),
        ("llama3", |shape| shape.rope.scaling = RopeScaling::Linear { factor: 8.0 }),
        ("llama3", interleave),
        ("mistral", |shape| shape.window = None),
        ("mistral", |shape| shape.window = Some(15)),
        ("mistral", |shape| shape.window = Some(17)),
        ("mistral", interleave),
        ("qwen2", |shape| shape.architecture = Architecture::Llama),
        ("qwen3", |shape| shape.architecture = Architecture::Llama),
    ]
}

/// A fixture.
struct Model {
    path: PathBuf,
    folder: Folder,
    expected: Value,
}

impl Model {
    fn open(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/architectures").join(name);
        let folder = Folder::open(&path).unwrap();
        let expected = serde_json::from_slice(&fs::read(path.join("expected.json")).unwrap()).unwrap();
        Self { path, folder, expected }
    }

    fn prompt(&self) -> Vec<Token> {
        tokens(&self.expected["prompt"])
    }

    /// The logits after each token of the prompt, fed one by one through stages cut at `cuts`.
    fn logits(&self, shape: &ModelShape, cuts: &[u16]) -> Vec<Vec<f32>> {
        let mut stages = self.stages(shape, cuts);
        self.prompt().chunks(1).map(|token| through(&mut stages, token)).collect()
    }

    /// The logits after the last token of the prompt.
    fn at_once(&self, cuts: &[u16]) -> Vec<f32> {
        through(&mut self.stages(&self.folder.shape, cuts), &self.prompt())
    }

    fn stages(&self, shape: &ModelShape, cuts: &[u16]) -> Vec<(StageModel, SessionState)> {
        let starts = [0].iter().chain(cuts);
        let ends = cuts.iter().copied().chain([shape.units()]);
        let stage = |(start, end): (&u16, u16)| {
            let range = UnitRange::new(*start, end).unwrap();
            let stage = StageModel::load(*shape, range, &self.folder.files, &mut |_| {}).unwrap();
            let session = stage.open(range, Position(64), &[]).unwrap();
            (stage, session)
        };
        starts.zip(ends).map(stage).collect()
    }

    /// Rows of logits that transformers computed.
    fn reference(&self, file: &str) -> Vec<Vec<f32>> {
        let bytes = fs::read(self.path.join(file)).unwrap();
        let values: Vec<f32> = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        values.chunks_exact(self.folder.shape.vocab as usize).map(<[f32]>::to_vec).collect()
    }
}

fn through(stages: &mut [(StageModel, SessionState)], tokens: &[Token]) -> Vec<f32> {
    let mut hidden = Vec::new();
    for (index, (stage, session)) in stages.iter_mut().enumerate() {
        let input = if index == 0 { StageInput::Tokens(tokens) } else { StageInput::Hidden(&hidden) };
        let first = session.length();
        hidden = match stage.forward(session, input, first, WantLogits::LastRow).unwrap() {
            StageOutput::Hidden(values) | StageOutput::Logits(values) => values,
            StageOutput::Nothing => panic!("logits were wanted"),
        };
    }
    hidden
}

fn tokens(ids: &Value) -> Vec<Token> {
    ids.as_array().unwrap().iter().map(|id| Token(id.as_u64().unwrap() as u32)).collect()
}

fn bits(rows: &[Vec<f32>]) -> Vec<u32> {
    rows.iter().flatten().map(|value| value.to_bits()).collect()
}

/// The largest difference, relative to the largest value.
fn difference(ours: &[Vec<f32>], theirs: &[Vec<f32>]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    let largest = theirs.iter().flatten().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let pairs = ours.iter().flatten().zip(theirs.iter().flatten());
    pairs.map(|(ours, theirs)| (ours - theirs).abs()).fold(0.0, f32::max) / largest
}
