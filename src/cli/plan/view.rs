//! What a plan is shown as.

use serde::Serialize;

use crate::amounts::Bytes;
use crate::cli::output;
use crate::cli::plan::machines::Park;
use crate::cli::plan::subject::Engine;
use crate::cli::plan::subject::Subject;
use crate::estimate::Passes;
use crate::placement::plan::Bound;
use crate::placement::plan::MAX_COPIES;
use crate::placement::plan::Nanos;
use crate::placement::plan::Plan;
use crate::placement::plan::Planned;
use crate::placement::plan::PlannedStage;
use crate::placement::plan::Shortage;
use crate::placement::plan::Tried;

/// A plan; its names are those of `--json`, which are stable.
#[derive(Clone, Debug, Serialize)]
pub(super) struct PlanView {
    model: ModelPart,
    /// How many machines there are.
    machines: usize,
    /// Memory of all of them.
    memory_bytes: u64,
    /// Positions that a session has.
    context: u32,
    /// What was looked at, the most precise first.
    precisions: Vec<PrecisionPart>,
    /// Whether the machines can run it.
    runs: bool,
    /// At which precision.
    format: Option<String>,
    /// Who holds what, driver first.
    stages: Vec<StagePart>,
    /// The time of one token, and the part of it between stages.
    token_nanos: Option<u64>,
    way_nanos: Option<u64>,
    tokens_per_second: Option<f64>,
    prompt_tokens_per_second: Option<f64>,
    /// Chains of different machines that there is memory for.
    copies: usize,
    /// Machines of which none of these has need.
    unused: Vec<String>,
    /// What has no place at the coarsest precision, and the memory that it needs.
    missing_units: Option<String>,
    missing_bytes: Option<u64>,
    notes: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
struct ModelPart {
    id: Option<String>,
    title: String,
    architecture: String,
    units: u16,
    parameters: u64,
    active_parameters: u64,
    /// Whether the engine runs the architecture.
    supported: bool,
}

#[derive(Clone, Debug, Serialize)]
struct PrecisionPart {
    format: String,
    weights_bytes: u64,
    fits: bool,
    missing_units: Option<String>,
    missing_bytes: Option<u64>,
    /// Stages that it would take, if more than a chain may have.
    stages: Option<usize>,
}

#[derive(Clone, Debug, Serialize)]
struct StagePart {
    machine: String,
    site: String,
    units: String,
    memory_bytes: u64,
    offered_bytes: u64,
    read_bytes: u64,
    time_nanos: u64,
    hop_nanos: u64,
}

impl PlanView {
    pub(super) fn of(subject: &Subject, park: &Park, passes: &Passes, planned: &Planned) -> Self {
        let all = &park.machines.machines;
        let plan = planned.plan.as_ref();
        let last = planned.tried.last().filter(|_| plan.is_none()).map(PrecisionPart::of);
        let footprint = subject.precisions.first().map(|precision| &precision.footprint);
        Self {
            model: ModelPart {
                id: subject.id.clone(),
                title: subject.title.clone(),
                architecture: subject.architecture.clone(),
                units: footprint.map_or(0, |footprint| footprint.count()),
                parameters: subject.parameters,
                active_parameters: subject.active,
                supported: subject.engine == Engine::Runs,
            },
            machines: all.len(),
            memory_bytes: all.iter().map(|machine| machine.memory).sum::<Bytes>().0,
            context: passes.positions.0,
            precisions: planned.tried.iter().map(PrecisionPart::of).collect(),
            runs: plan.is_some(),
            format: plan.map(|plan| plan.format.to_string()),
            stages: plan.iter().flat_map(|plan| &plan.stages).map(|stage| StagePart::of(stage, park)).collect(),
            token_nanos: plan.map(|plan| plan.token().0),
            way_nanos: plan.map(|plan| plan.way().0),
            tokens_per_second: plan.map(|plan| plan.token().per_second()),
            prompt_tokens_per_second: plan.map(Plan::prompt_per_second),
            copies: plan.map_or(0, |plan| plan.copies),
            unused: plan.iter().flat_map(|plan| &plan.unused).map(|&machine| all[machine].name.clone()).collect(),
            missing_units: last.as_ref().and_then(|last| last.missing_units.clone()),
            missing_bytes: last.as_ref().and_then(|last| last.missing_bytes),
            notes: [notes(subject, plan, park), park.notes.clone()].concat(),
        }
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let parts = [self.heading(), self.tried(), self.verdict()];
        let mut text = parts.join("\n\n");
        if !self.stages.is_empty() {
            text += &format!("\n\n{}\n\n{}", self.table(), self.speed());
        }
        let notes: Vec<String> = self.notes.iter().map(|note| format!("Note: {note}.")).collect();
        if notes.is_empty() { text } else { format!("{text}\n\n{}", notes.join("\n")) }
    }

    fn heading(&self) -> String {
        let ModelPart { id, title, architecture, units, parameters, active_parameters, .. } = &self.model;
        let id = id.as_deref().map(|id| format!("{}, ", output::short(id))).unwrap_or_default();
        let (all, active) = (count(*parameters), count(*active_parameters));
        format!("{title} ({id}{architecture}): {all} parameters in {units} units; {active} for each token")
    }

    fn tried(&self) -> String {
        let row = |precision: &PrecisionPart| {
            let lacks = match (&precision.missing_units, precision.missing_bytes, precision.stages) {
                (Some(units), Some(bytes), _) => format!("no place for units {units}, which need {}", Bytes(bytes)),
                (_, _, Some(stages)) => format!("it would take {stages} stages, more than a chain may have"),
                _ => "fits".to_owned(),
            };
            vec![precision.format.clone(), Bytes(precision.weights_bytes).to_string(), lacks]
        };
        output::table(&["format", "weights", "on these machines"], &self.precisions.iter().map(row).collect::<Vec<_>>())
    }

    fn verdict(&self) -> String {
        let (machines, memory, context) = (self.machines, Bytes(self.memory_bytes), self.context);
        let offered = format!("{machines} machines offer {memory}");
        match (&self.format, &self.missing_units, self.missing_bytes) {
            (Some(format), _, _) => {
                let stages = self.stages.len();
                format!("It runs at {format}, on {stages} of the machines, with {context} positions. {offered}.")
            }
            (None, Some(units), Some(bytes)) => {
                let missing = Bytes(bytes);
                format!("It does not run: {offered}, and units {units} need {missing} more. Positions: {context}.")
            }
            (None, _, _) => format!("It does not run. {offered}. Positions: {context}."),
        }
    }

    fn table(&self) -> String {
        let rows = self.stages.iter().enumerate().map(|(number, stage)| {
            let of = format!("{} of {}", Bytes(stage.memory_bytes), Bytes(stage.offered_bytes));
            vec![
                number.to_string(),
                stage.machine.clone(),
                stage.site.clone(),
                stage.units.clone(),
                of,
                Bytes(stage.read_bytes).to_string(),
                time(stage.time_nanos),
                time(stage.hop_nanos),
            ]
        });
        let headings = ["stage", "machine", "site", "units", "memory", "read a token", "takes", "to the next"];
        output::table(&headings, &rows.collect::<Vec<_>>())
    }

    fn speed(&self) -> String {
        let token = time(self.token_nanos.unwrap_or_default());
        let way = time(self.way_nanos.unwrap_or_default());
        let writes = rate(self.tokens_per_second.unwrap_or_default());
        let reads = rate(self.prompt_tokens_per_second.unwrap_or_default());
        let copies = match (self.copies, self.unused.len()) {
            (1, 0) => "Every machine is needed; if one fails, units have no holder.".to_owned(),
            (1, spare) => format!("{spare} machines are spare, not enough for a second chain."),
            (MAX_COPIES.., _) => {
                format!("There is memory for {MAX_COPIES} such chains of different machines and more.")
            }
            (copies, spare) => {
                format!("There is memory for {copies} such chains of different machines; {spare} are left.")
            }
        };
        format!(
            "One stream writes {writes} tokens a second: {token} each, of which {way} between stages.\n\
             A prompt is read at {reads} tokens a second.\n{copies}"
        )
    }
}

impl PrecisionPart {
    fn of(tried: &Tried) -> Self {
        let missing = match tried.shortage {
            Some(Shortage::Memory { missing, bytes }) => Some((missing.to_string(), bytes.0)),
            Some(Shortage::Stages { .. }) | None => None,
        };
        let stages = match tried.shortage {
            Some(Shortage::Stages { needed }) => Some(needed),
            Some(Shortage::Memory { .. }) | None => None,
        };
        Self {
            format: tried.format.to_string(),
            weights_bytes: tried.weights.0,
            fits: tried.shortage.is_none(),
            missing_bytes: missing.as_ref().map(|(_, bytes)| *bytes),
            missing_units: missing.map(|(units, _)| units),
            stages,
        }
    }
}

impl StagePart {
    fn of(stage: &PlannedStage, park: &Park) -> Self {
        let machine = &park.machines.machines[stage.machine];
        Self {
            machine: machine.name.clone(),
            site: park.sites[machine.site].clone(),
            units: stage.range.to_string(),
            memory_bytes: stage.memory.0,
            offered_bytes: machine.memory.0,
            read_bytes: stage.read.0,
            time_nanos: stage.time.0,
            hop_nanos: stage.hop.0,
        }
    }
}

/// What people should know of a plan.
fn notes(subject: &Subject, plan: Option<&Plan>, park: &Park) -> Vec<String> {
    let described = "the engine does not run this architecture yet; the figures are of its description";
    let mut notes: Vec<String> =
        (subject.engine == Engine::RunsNot).then(|| described.to_owned()).into_iter().collect();
    let slow = plan.and_then(|plan| plan.stages.iter().max_by_key(|stage| stage.chunk));
    if let Some(PlannedStage { machine, bound, .. }) = slow.filter(|stage| stage.hop > Nanos::default()) {
        let name = &park.machines.machines[*machine].name;
        let what = match bound {
            Bound::Link => "the link behind",
            Bound::Work => "the work of",
        };
        notes.push(format!("{what} {name} sets the pace of prompts"));
    }
    notes
}

/// A time as people read it; what is below a microsecond is nothing.
fn time(nanos: u64) -> String {
    output::micros(nanos.div_ceil(1_000))
}

/// A rate with two or three digits that mean something.
fn rate(per_second: f64) -> String {
    match per_second {
        slow if slow < 10.0 => format!("{slow:.2}"),
        middle if middle < 100.0 => format!("{middle:.1}"),
        fast => format!("{fast:.0}"),
    }
}

/// A number of parameters as the field writes it.
fn count(parameters: u64) -> String {
    match parameters {
        0..1_000_000 => parameters.to_string(),
        1_000_000..1_000_000_000 => format!("{:.1} M", parameters as f64 / 1e6),
        _ => format!("{:.1} B", parameters as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_as_people_write_them() {
        assert_eq!([999, 1_500_000, 671_026_000_000].map(count), ["999", "1.5 M", "671.0 B"]);
        assert_eq!([0.123, 12.34, 1234.5].map(rate), ["0.12", "12.3", "1234"]);
        assert_eq!([1, 1_500_000].map(time), ["1 µs", "1.5 ms"]);
    }
}
