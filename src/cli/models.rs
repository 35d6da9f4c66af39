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
use crate::daemon::handle::ModelChange;
use crate::daemon::views::ChangedView;
use crate::ids::ModelId;
use crate::weights::catalogue::Catalogue;
use crate::weights::catalogue::CatalogueError;

/// What `brigade models` takes.
#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct ModelsArgs {
    #[command(subcommand)]
    command: Option<ModelsCommand>,
    /// Print a JSON list of objects: id, title, alias, architecture, units, bytes, quantisation, context, local, stored, private,
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
        None => alone(root, &model, change)?,
    };
    match form(json) {
        Form::Json => output::json(&changed),
        Form::Text => Ok(output::line(text(&changed, change))?),
    }
}

/// Does it as the peer that would run here.
fn alone(root: &Path, model: &str, change: ModelChange) -> anyhow::Result<ChangedView> {
    let data = DataDir::open(root)?;
    let mut catalogue = Catalogue::open(data.root())?;
    let id = catalogue.resolve(model)?;
    let mut changed = ChangedView { model: id.to_string(), ..ChangedView::default() };
    match change {
        ModelChange::Remove => changed.freed_bytes = catalogue.remove(id)?.0,
        ModelChange::Private(private) => catalogue.set_private(id, private)?,
        ModelChange::Verify => (changed.right, changed.damaged) = verify(&mut catalogue, id)?,
    }
    Ok(changed)
}

/// How many tensors are right, and the names of those that are not, which count as missing now.
fn verify(catalogue: &mut Catalogue, id: ModelId) -> Result<(usize, Vec<String>), CatalogueError> {
    let (mut right, mut damaged) = (0, catalogue.awaited(id)?);
    for (name, located) in catalogue.located(id)? {
        match located.hash(catalogue.tensors()) {
            Ok(Some(_)) => right += 1,
            Ok(None) => {
                catalogue.damaged(&located)?;
                damaged.push(name);
            }
            Err(error) => return Err(CatalogueError::Unreadable { name, source: error }),
        }
    }
    Ok((right, damaged))
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
