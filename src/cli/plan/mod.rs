//! `brigade plan`: whether machines can run a model, before anything of it is downloaded.

use std::path::Path;
use std::path::PathBuf;

use anyhow::bail;
use clap::Args;

use crate::amounts::Position;
use crate::cli::client;
use crate::cli::client::Client;
use crate::cli::output;
use crate::cli::plan::machines::Park;
use crate::cli::plan::subject::Subject;
use crate::cli::plan::view::PlanView;
use crate::config::datadir::DataDir;
use crate::daemon;
use crate::estimate::Passes;
use crate::node::needs;
use crate::placement::plan::plan as find;
use crate::scheduler::Budget;
use crate::shape::WeightFormat;

mod description;
mod machines;
mod mesh;
mod subject;
mod view;

/// What `brigade plan` takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct PlanArgs {
    /// Id, beginning of an id, alias or title of a model; a GGUF file or a folder of safetensors, which is not hashed; or the
    /// description (.json) of a model, whose architecture need not be one that the engine runs.
    model: String,
    /// The machines, described in TOML or JSON, such as testnet/machines.toml. By default those of the mesh, as the running peer sees them.
    #[arg(long, value_name = "FILE")]
    machines: Option<PathBuf>,
    /// The coarsest weights to accept: F32, F16, BF16, Q8_0, Q6_K, Q5_K, Q4_K or Q4_0.
    #[arg(long, value_name = "FORMAT")]
    min_quant: Option<WeightFormat>,
    /// Positions that a session is to have. By default the model's context, at most 4096.
    #[arg(long, value_name = "N")]
    context: Option<u32>,
    /// Print a JSON object: model, machines, context, precisions, runs, format, stages, token_nanos, way_nanos,
    /// tokens_per_second, prompt_tokens_per_second, copies, unused, missing_units, missing_bytes, notes.
    #[arg(long)]
    json: bool,
}

/// Plans, and shows the plan.
pub(crate) async fn plan(root: &Path, args: PlanArgs) -> anyhow::Result<()> {
    let client = client::find(root).await?;
    let subject = subject(root, client.as_ref(), &args.model).await?;
    let subject = subject.at_least(args.min_quant)?;
    let passes = passes(&subject, args.context)?;
    let park = match (&args.machines, &client) {
        (Some(file), _) => Park::read(file)?,
        (None, Some(client)) => mesh::park(client, subject.id.as_deref(), &subject.precisions).await?,
        (None, None) => bail!(
            "without --machines FILE the machines are those of the mesh, but no peer runs on {}: `brigade up` starts one, --data-dir names another",
            root.display()
        ),
    };
    let planned = find(&subject.precisions, &park.machines, &passes);
    let view = PlanView::of(&subject, &park, &passes, &planned);
    if args.json { output::json(&view) } else { Ok(output::line(view.text())?) }
}

/// What is meant: a file if there is one of that name, else a model that the running peer or this data directory knows.
async fn subject(root: &Path, client: Option<&Client>, model: &str) -> anyhow::Result<Subject> {
    let path = Path::new(model);
    let looks_like_a_path = model.contains(['/', '\\']) || [".gguf", ".json"].iter().any(|end| model.ends_with(end));
    match client {
        _ if path.is_file() && model.ends_with(".json") => Ok(description::read(path)?),
        _ if path.exists() || looks_like_a_path => Subject::at(path),
        Some(client) => Subject::told(client, model).await,
        None => Ok(Subject::of(daemon::describe_model(DataDir::open(root)?.root(), model)?)),
    }
}

/// What every machine is to be ready for.
fn passes(subject: &Subject, context: Option<u32>) -> anyhow::Result<Passes> {
    let usual = needs::passes(&Budget::default(), 1, subject.context);
    match context {
        None => Ok(usual),
        Some(0) => bail!("context: expected at least 1 position, got 0"),
        Some(given) if given > subject.context => {
            bail!("context: the model has {} positions, got {given}", subject.context)
        }
        Some(given) => Ok(Passes { positions: Position(given), ..usual }),
    }
}
