//! One fixed, valid value of every message, for tests and for the golden bytes.

use std::sync::Arc;

use crate::amounts::Bytes;
use crate::amounts::Mflop;
use crate::amounts::Position;
use crate::amounts::Span;
use crate::ids::BlobHash;
use crate::ids::BootSeq;
use crate::ids::Epoch;
use crate::ids::ModelId;
use crate::ids::NetworkId;
use crate::ids::PeerKey;
use crate::ids::RowsHash;
use crate::ids::SessionId;
use crate::ids::StageIndex;
use crate::ids::Step;
use crate::ids::Token;
use crate::keys::Identity;
use crate::shape::Architecture;
use crate::shape::ModelShape;
use crate::shape::Rope;
use crate::shape::RopePairs;
use crate::shape::RopeScaling;
use crate::shape::WeightFormat;
use crate::shape::WireDtype;
use crate::units::Chain;
use crate::units::Stage;
use crate::units::UnitRange;
use crate::wire::card::ModelCard;
use crate::wire::commitment::Commitment;
use crate::wire::control::Begins;
use crate::wire::control::Commits;
use crate::wire::control::Offer;
use crate::wire::control::Reconfigure;
use crate::wire::control::Rejoined;
use crate::wire::control::SamplingParameters;
use crate::wire::control::TailOffer;
use crate::wire::control::TokenLogprobs;
use crate::wire::control::TokenOut;
use crate::wire::credit::CreditEntry;
use crate::wire::credit::CreditHeader;
use crate::wire::credit::CreditLine;
use crate::wire::credit::hash_lines;
use crate::wire::credit::sum_lines;
use crate::wire::gossip::Gossip;
use crate::wire::hop::Frame;
use crate::wire::hop::FrameHeader;
use crate::wire::hop::HopForward;
use crate::wire::hop::Sample;
use crate::wire::hop::TokenFrame;
use crate::wire::manifest::Manifest;
use crate::wire::manifest::TensorEntry;
use crate::wire::profile::Device;
use crate::wire::profile::DeviceKind;
use crate::wire::profile::Holding;
use crate::wire::profile::HoldingState;
use crate::wire::profile::Profile;
use crate::wire::profile::RoundTrip;
use crate::wire::signed::Signed;
use crate::wire::vocabulary::TokenType;
use crate::wire::vocabulary::Vocabulary;
use crate::wire::vocabulary::VocabularyKind;

pub(super) fn network() -> NetworkId {
    NetworkId::of("sample", None)
}

pub(super) fn identity() -> Identity {
    Identity::generate([7; 32])
}

pub(super) fn blob(seed: u8) -> BlobHash {
    BlobHash::new([seed; 32])
}

pub(super) fn session() -> SessionId {
    SessionId::new([0x51; 16])
}

fn range(start: u16, end: u16) -> UnitRange {
    UnitRange::new(start, end).unwrap()
}

pub(super) fn holding() -> Holding {
    Holding {
        model: ModelId::new([0xa1; 32]),
        range: range(40, 82),
        state: HoldingState::Ready,
        per_unit: Span(12_345),
    }
}

/// Numbers of the size that a large real peer has.
pub(super) fn profile() -> Profile {
    Profile {
        peer: identity().peer(),
        order: BootSeq { boot: 1_000, seq: 1 << 27 },
        valid_for: Span::seconds(900),
        memory: Bytes::mib(1 << 19),
        memory_free: Bytes::mib(1 << 18),
        cores: 192,
        cpu_features: 63,
        devices: vec![
            Device { kind: DeviceKind::Cpu, memory: Bytes::mib(1 << 19) },
            Device { kind: DeviceKind::Cuda, memory: Bytes::mib(1 << 17) },
        ],
        formats: WeightFormat::ALL.to_vec(),
        arithmetic: "candle-cpu-1".to_owned(),
        holdings: vec![holding()],
        sessions: 12,
        queue: Span(250_000),
        round_trips: vec![RoundTrip { neighbour: [3; 8], span: Span(48_000) }; 8],
        draining: false,
        stored: Vec::new(),
    }
}

pub(super) fn card() -> ModelCard {
    ModelCard {
        peer: identity().peer(),
        order: BootSeq { boot: 3, seq: 14 },
        valid_for: Span::seconds(45),
        model: ModelId::new([0xa1; 32]),
        architecture: "llama".to_owned(),
        units: 34,
        bytes: Bytes(8_540_000_000),
        quantisation: "Q8_0".to_owned(),
        context: 8_192,
        title: "Größeres Modell 8B".to_owned(),
    }
}

pub(super) fn gossip_profile() -> Gossip {
    Gossip::Profile(Signed::seal(&profile(), &identity(), network()).unwrap())
}

pub(super) fn gossip_card() -> Gossip {
    Gossip::Card(Signed::seal(&card(), &identity(), network()).unwrap())
}

pub(super) fn entry(lines: usize) -> CreditEntry {
    let line = |place: usize| CreditLine {
        stage: PeerKey::new([u8::try_from(place % 250).unwrap(); 32]),
        range: range(u16::try_from(place).unwrap(), u16::try_from(place).unwrap() + 1),
        work: Mflop(1_000 + place as u64),
        difficulty: 1_000,
    };
    let lines: Vec<_> = (0..lines).map(line).collect();
    let header = CreditHeader {
        requester: identity().peer(),
        sequence: 41,
        previous: [0xcc; 32],
        session: session(),
        model: ModelId::new([0xa1; 32]),
        positions: Position(127),
        lines: hash_lines(&lines),
        total: sum_lines(&lines).unwrap(),
    };
    CreditEntry::seal(&header, lines, &identity(), network()).unwrap()
}

/// To the tail of a chain of three over seven units.
pub(super) fn offer() -> Offer {
    let stage = |peer, start, end| Stage { peer: PeerKey::new([peer; 32]), range: range(start, end) };
    Offer {
        session: session(),
        epoch: Epoch(2),
        model: ModelId::new([0xa1; 32]),
        weights: ModelId::new([0xa1; 32]),
        chain: Chain::new(vec![stage(1, 0, 2), stage(2, 2, 5), stage(3, 5, 7)], 7).unwrap(),
        stage: StageIndex(2),
        rounding: vec![(2, WireDtype::F16), (5, WireDtype::F32)],
        budget: Position(300),
        expires_after: Span::seconds(30),
        sampling: Some(tail_offer()),
        begins: Begins::Here,
        commits: Commits::No,
    }
}

/// Of units that the stage holds at another precision.
pub(super) fn offer_of_derived() -> Offer {
    Offer { weights: ModelId::new([0xa2; 32]), ..offer() }
}

/// Of the same chain, in a newer version.
pub(super) fn reconfigure() -> Reconfigure {
    Reconfigure { epoch: Epoch(3), chain: offer().chain, stage: StageIndex(1), known: Position(130) }
}

pub(super) fn commitment() -> Signed<Commitment> {
    let commitment = Commitment {
        peer: identity().peer(),
        session: session(),
        epoch: Epoch(2),
        model: ModelId::new([0xa1; 32]),
        range: range(2, 5),
        end: Position(256),
        received: RowsHash::new([0x11; 32]),
        sent: RowsHash::new([0x22; 32]),
    };
    Signed::seal(&commitment, &identity(), network()).unwrap()
}

pub(super) fn rejoined() -> Rejoined {
    Rejoined { epoch: Epoch(3), length: Position(129), journal: Position(0), heard: vec![Token(77), Token(128_009)] }
}

fn tail_offer() -> TailOffer {
    TailOffer {
        parameters: SamplingParameters {
            temperature: 0.75,
            top_k: 40,
            top_p: 0.9,
            min_p: 0.05,
            repetition_penalty: 1.1,
            frequency_penalty: 0.5,
            presence_penalty: -0.5,
            penalty_window: 64,
            logit_bias: vec![(Token(5), -100.0), (Token(9), 2.5)],
            logprobs: Some(3),
            seed: 0x0123_4567_89ab_cdef,
        },
        prompt_length: Position(4),
        history: vec![Token(1), Token(300), Token(70_000), Token(2)],
        max_tokens: 256,
        end_of_generation: vec![Token(2), Token(128_009)],
    }
}

pub(super) fn token_out() -> TokenOut {
    TokenOut {
        epoch: Epoch(2),
        position: Position(130),
        token: Token(128_009),
        finish: None,
        logprobs: Some(TokenLogprobs { chosen: -0.25, top: vec![(Token(128_009), -0.25), (Token(4), -3.5)] }),
    }
}

pub(super) fn frame() -> HopForward {
    let header = FrameHeader {
        session: session(),
        stage: StageIndex(1),
        epoch: Epoch(2),
        step: Step(9),
        first: Position(128),
        count: 2,
        dtype: WireDtype::F32,
        sample: Sample::LastRow,
    };
    HopForward::Frame(Frame { header, payload: (0..24).collect::<Vec<u8>>().into() })
}

pub(super) fn token_frame() -> HopForward {
    HopForward::Token(TokenFrame {
        session: session(),
        epoch: Epoch(2),
        step: Step(10),
        position: Position(130),
        token: Token(77),
    })
}

/// Two blocks, tied: the embedding belongs to units 0 and 3.
pub(super) fn manifest() -> Manifest {
    let tensor = |name: &str, units: &[u16], dimensions: &[u64], format: WeightFormat| TensorEntry {
        name: name.to_owned(),
        units: units.to_vec(),
        dimensions: dimensions.to_vec(),
        format,
        bytes: format.bytes(dimensions.iter().product()).unwrap(),
        hash: blob(u8::try_from(name.len()).unwrap()),
    };
    Manifest {
        shape: ModelShape {
            architecture: Architecture::Llama,
            blocks: 2,
            width: 32,
            heads: 4,
            kv_heads: 2,
            head_dim: 8,
            feed_forward: 64,
            vocab: 64,
            context: 512,
            window: None,
            norm_eps: 1e-5,
            rope: Rope {
                dimensions: 8,
                pairs: RopePairs::Interleaved,
                base: 10_000.0,
                scaling: RopeScaling::Linear { factor: 2.0 },
            },
            tied: true,
        },
        vocabulary: vocabulary().hash(),
        tensors: vec![
            tensor("blk.0.attn_q.weight", &[1], &[32, 32], WeightFormat::Q4_0),
            tensor("blk.1.attn_q.weight", &[2], &[32, 32], WeightFormat::Q4_0),
            tensor("output_norm.weight", &[3], &[32], WeightFormat::F32),
            tensor("token_embd.weight", &[0, 3], &[32, 64], WeightFormat::Q8_0),
        ],
        derivation: None,
    }
}

/// A model that can be quantised: rows of 256, of 32, a vector, and a matrix of logits with rows of 256.
pub(super) fn manifest_of_halves() -> Manifest {
    let mut manifest = manifest();
    for (tensor, row) in manifest.tensors.iter_mut().zip([256, 32, 32, 256]) {
        tensor.dimensions[0] = row;
        tensor.format = if tensor.dimensions.len() > 1 { WeightFormat::F16 } else { WeightFormat::F32 };
        tensor.bytes = tensor.format.bytes(tensor.dimensions.iter().product()).unwrap();
    }
    manifest
}

/// A model that the first version of the encoding cannot say: two blocks of Qwen 3 with a window.
pub(super) fn manifest_of_a_window() -> Manifest {
    let manifest = manifest();
    let rope = Rope { pairs: RopePairs::Halves, ..manifest.shape.rope };
    let shape = ModelShape { architecture: Architecture::Qwen3, window: Some(300), rope, ..manifest.shape };
    Manifest { shape, ..manifest }
}

pub(super) fn manifest_derived() -> Manifest {
    Arc::new(manifest_of_halves()).derive(WeightFormat::Q4K).unwrap()
}

pub(super) fn vocabulary() -> Vocabulary {
    Vocabulary {
        kind: VocabularyKind::BytePairs { pre: "llama-bpe".to_owned() },
        tokens: vec!["a".to_owned(), "Ġb".to_owned(), "<|end|>".to_owned()],
        types: vec![TokenType::Normal, TokenType::UserDefined, TokenType::Control],
        scores: Vec::new(),
        merges: vec!["Ġ b".to_owned()],
        bos: Some(Token(0)),
        add_bos: true,
        add_space_prefix: false,
        end_of_generation: vec![Token(2)],
        chat_template: Some("{{ messages[0].content }}\n".to_owned()),
    }
}
