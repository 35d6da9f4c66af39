//! What the worlds have in common: one model, one network, and peers by small names.

use std::collections::BTreeSet;

use crate::amounts::Bytes;
use crate::amounts::Span;
use crate::estimate::Footprint;
use crate::ids::ModelId;
use crate::ids::NetworkId;
use crate::ids::PeerKey;
use crate::ids::Token;
use crate::keys::Identity;
use crate::membership::MembershipConfig;
use crate::node::config::Limits;
use crate::node::config::Machine;
use crate::node::config::NodeConfig;
use crate::node::config::Precisions;
use crate::node::config::Privacy;
use crate::node::config::Serves;
use crate::node::io::GenerateSpec;
use crate::node::io::ModelFacts;
use crate::node::io::Redundancy;
use crate::node::io::Trust;
use crate::placement::PlacementConfig;
use crate::scheduler::SchedulerConfig;
use crate::shape::Architecture;
use crate::shape::ModelShape;
use crate::shape::Rope;
use crate::shape::RopePairs;
use crate::shape::RopeScaling;
use crate::shape::WeightFormat;
use crate::shape::WireDtype;
use crate::units::UnitRange;
use crate::wire::control::SamplingParameters;

pub(in crate::node) const MODEL: ModelId = ModelId::new([0x0d; 32]);

/// What the toy model is when it is quantised.
pub(in crate::node) const COARSE: ModelId = ModelId::new([0x0c; 32]);
pub(in crate::node) const NETWORK: NetworkId = NetworkId::new([0x0e; 32]);
pub(in crate::node) const EOG: Token = Token(3);

pub(in crate::node) fn shape() -> ModelShape {
    ModelShape {
        architecture: Architecture::Llama,
        blocks: 4,
        width: 4,
        heads: 1,
        kv_heads: 1,
        head_dim: 4,
        feed_forward: 512,
        vocab: 512,
        context: 2_048,
        window: None,
        norm_eps: 1e-5,
        rope: Rope { dimensions: 4, pairs: RopePairs::Interleaved, base: 10_000.0, scaling: RopeScaling::None },
        tied: false,
    }
}

pub(super) fn facts() -> ModelFacts {
    let mut footprint = Footprint::of(&shape(), []);
    footprint.units.iter_mut().for_each(|unit| unit.weights = Bytes(1_000));
    ModelFacts {
        id: MODEL,
        shape: shape(),
        bytes: footprint.units.iter().map(|unit| unit.weights).sum(),
        footprint,
        format: WeightFormat::F32,
        source: None,
        precisions: vec![MODEL],
        title: "toy".to_owned(),
    }
}

/// The toy model, which may be held at two precisions.
pub(super) fn facts_of_two_precisions() -> [ModelFacts; 2] {
    let coarse =
        ModelFacts { id: COARSE, format: WeightFormat::Q4_0, source: Some(MODEL), precisions: vec![COARSE], ..facts() };
    [ModelFacts { precisions: vec![MODEL, COARSE], ..facts() }, coarse]
}

pub(in crate::node) fn range(start: u16, end: u16) -> UnitRange {
    UnitRange::new(start, end).unwrap()
}

pub(in crate::node) fn prompt(length: u32) -> Vec<Token> {
    (0..length).map(|index| Token(10 + (index * 7 + length) % 400)).collect()
}

/// Greedy, and without patience for lost stages.
pub(in crate::node) fn spec(prompt: Vec<Token>, max_tokens: u32) -> GenerateSpec {
    GenerateSpec {
        model: MODEL,
        prompt,
        parameters: SamplingParameters::default(),
        max_tokens,
        end_of_generation: vec![EOG],
        wire: WireDtype::F32,
        trust: Trust::Known,
        patience: Span::ZERO,
        redundancy: Redundancy::NONE,
        min_quant: None,
    }
}

fn identity(name: u8) -> Identity {
    Identity::from_secret_bytes(&[name; 32])
}

pub(in crate::node) fn key(name: u8) -> PeerKey {
    identity(name).peer()
}

pub(super) fn config(name: u8) -> NodeConfig {
    NodeConfig {
        identity: identity(name),
        network: NETWORK,
        privacy: Privacy::Private,
        boot: 1,
        memory: Bytes::mib(64),
        machine: Machine { cores: 2, arithmetic: "toy-1".to_owned(), ..Machine::default() },
        allowed: BTreeSet::new(),
        serves: Serves::Anyone,
        precisions: Precisions::default(),
        limits: Limits::default(),
        membership: MembershipConfig::default(),
        placement: PlacementConfig::default(),
        scheduler: SchedulerConfig::default(),
    }
}

/// How long an answer waits for a lost range, where it is to wait at all.
pub(super) const PATIENCE: Span = Span::seconds(900);
