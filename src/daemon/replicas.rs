//! How the chains that computed an answer are shown, and what they contradicted each other in.

use std::collections::BTreeMap;
use std::iter::repeat;

use data_encoding::HEXLOWER;

use crate::amounts::Mflop;
use crate::daemon::views::LieView;
use crate::daemon::views::ReplicaView;
use crate::daemon::views::StageView;
use crate::ids::ModelId;
use crate::node::io::Certainty;
use crate::node::io::Fate;
use crate::node::io::Lie;
use crate::node::io::ReplicaReport;
use crate::shape::WeightFormat;
use crate::units::Stage;
use crate::units::UnitWeights;
use crate::wire::control::StageReport;

/// With which weights an answer is computed.
#[derive(Clone, Debug)]
pub(super) struct Computed {
    /// The model that was asked for.
    pub(super) model: ModelId,
    /// With whose weights each unit is computed, once that is known.
    pub(super) weights: Option<UnitWeights>,
    /// The precision of the model and of those that can take its place.
    pub(super) formats: BTreeMap<ModelId, WeightFormat>,
}

/// The stages of a chain with what they reported and are owed, as far as that is known.
pub(super) fn stage_views(
    computed: &Computed,
    stages: &[Stage],
    reports: &[Option<StageReport>],
    owed: &[Mflop],
) -> Vec<StageView> {
    let reports = reports.iter().copied().chain(repeat(None));
    let owed = owed.iter().map(|work| work.0).chain(repeat(0));
    let weights = |stage: &Stage| computed.weights.as_ref().and_then(|weights| weights.of(stage.range));
    let view = |((stage, report), owed_mflop): ((&Stage, Option<StageReport>), u64)| StageView {
        peer: stage.peer.to_string(),
        units: stage.range.to_string(),
        weights: weights(stage).map(|model| model.to_string()).unwrap_or_default(),
        quantisation: weights(stage)
            .and_then(|model| computed.formats.get(&model))
            .map(ToString::to_string)
            .unwrap_or_default(),
        positions: report.map(|report| report.positions.0),
        hop_payload_bytes: report.map(|report| report.payload.0),
        hop_frames: report.map(|report| report.frames),
        busy_micros: report.map(|report| report.busy.0),
        owed_mflop,
    };
    stages.iter().zip(reports).zip(owed).map(view).collect()
}

pub(super) fn view(computed: &Computed, report: &ReplicaReport) -> ReplicaView {
    let fate = match report.fate {
        Fate::Agreed => "agreed",
        Fate::Lost => "lost",
        Fate::Outvoted => "outvoted",
    };
    let chain = stage_views(computed, report.chain.stages(), &report.stages, &report.owed);
    ReplicaView { chain, fate: fate.to_owned(), tokens: report.tokens }
}

pub(super) fn lie(lie: &Lie) -> LieView {
    let certainty = match lie.certainty {
        Certainty::Proven => "proven",
        Certainty::OneOfThem => "one_of_them",
        Certainty::Undecided => "undecided",
    };
    LieView {
        suspects: lie.suspects.iter().map(|stage| (stage.peer.to_string(), stage.range.to_string())).collect(),
        certainty: certainty.to_owned(),
        position: lie.position.0,
        commitments: lie.evidence.iter().map(|signed| HEXLOWER.encode(&signed.to_bytes())).collect(),
    }
}

/// Stages in words, for the log.
pub(super) fn stages(stages: &[Stage]) -> String {
    let words = stages.iter().map(|stage| format!("{} serving units {}", stage.peer.short(), stage.range));
    words.collect::<Vec<_>>().join(", ")
}
