//! `brigade models`: listing them, and what can be done to one.

use std::path::Path;

use clap::Args;
use clap::Subcommand;

use crate::amounts::Bytes;
use crate::api::internal::ChangeBody;
use crate::cli::client;
use crate::cli::listings;
use crate::cli::listings::Form;
use crate::cli::output;
use crate::config::datadir::DataDir;
use crate::config::settings::Switch;
use crate::daemon;
use crate::daemon::handle::ModelChange;
use crate::daemon::views::ChangedView;

/// What `brigade models` takes.
#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct ModelsArgs {
    #[command(subcommand)]
    command: Option<ModelsCommand>,
    /// Print a JSON list of objects: id, title, alias, architecture, units, bytes, memory_bytes, quantisation, context, local, stored, private,
    /// holding, covered, missing.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, Subcommand)]
enum ModelsCommand {
    /// Forget a model and remove what came of it from other peers. An imported file stays where it is.
    Rm {
        /// Id, beginning of an id, or alias.
        model: String,
        /// Print a JSON object: model, freed_bytes, right, damaged.
        #[arg(long)]
        json: bool,
    },
    /// Hash the weights that are here. What is damaged is set aside, and fetched again while a peer runs.
    Verify {
        /// Id, beginning of an id, or alias.
        model: String,
        /// Print a JSON object: model, freed_bytes, right, damaged (names of tensors).
        #[arg(long)]
        json: bool,
    },
    /// Give a model only to peers named with --allow, or to everybody again.
    Private {
        /// Id, beginning of an id, or alias.
        model: String,
        /// Whether it is private.
        #[arg(value_enum, value_name = "on|off")]
        private: Switch,
        /// Print a JSON object: model, freed_bytes, right, damaged.
        #[arg(long)]
        json: bool,
    },
}

/// Lists the models, or does something to one.
pub(crate) async fn models(root: &Path, args: ModelsArgs) -> anyhow::Result<()> {
    let form = |json| if json { Form::Json } else { Form::Text };
    let (model, change, json) = match args.command {
        None => return listings::models(root, form(args.json)).await,
        Some(ModelsCommand::Rm { model, json }) => (model, ModelChange::Remove, json),
        Some(ModelsCommand::Verify { model, json }) => (model, ModelChange::Verify, json),
        Some(ModelsCommand::Private { model, private, json }) => {
            (model, ModelChange::Private(private == Switch::On), json)
        }
    };
    let changed = match client::find(root).await? {
        Some(client) => client.post("model", &ChangeBody { model, change }).await?,
        None => daemon::change_model(DataDir::open(root)?.root(), &model, change)?,
    };
    match form(json) {
        Form::Json => output::json(&changed),
        Form::Text => Ok(output::line(text(&changed, change))?),
    }
}

fn text(changed: &ChangedView, change: ModelChange) -> String {
    let model = output::short(&changed.model);
    match change {
        ModelChange::Remove => format!("{model} is removed: {} are free again", Bytes(changed.freed_bytes)),
        ModelChange::Private(true) => format!("{model} is given only to peers named with --allow"),
        ModelChange::Private(false) => format!("{model} is given to everybody"),
        ModelChange::Verify if changed.damaged.is_empty() => format!("{model}: {} tensors are right", changed.right),
        ModelChange::Verify => format!(
            "{model}: {} tensors are right, {} are damaged: {}",
            changed.right,
            changed.damaged.len(),
            changed.damaged.join(", ")
        ),
    }
}
