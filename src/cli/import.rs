//! `brigade import`.

use std::path::Path;

use crate::amounts::Bytes;
use crate::api::internal::ImportBody;
use crate::cli::client;
use crate::cli::client::Client;
use crate::cli::listings::Form;
use crate::cli::output;
use crate::cli::output::Filling;
use crate::cli::output::Waiting;
use crate::config::datadir::DataDir;
use crate::daemon::views::ImportedView;
use crate::weights::catalogue::Catalogue;

/// Adds a file to the catalogue of the peer on `root`, running or not.
pub(crate) async fn import(root: &Path, file: &Path, form: Form) -> anyhow::Result<()> {
    let imported = match client::find(root).await? {
        Some(client) => {
            let _waiting = Waiting::saying(format!("the running peer reads {}", file.display()));
            through(&client, file).await?
        }
        None => alone(root, file)?,
    };
    if form == Form::Json {
        return output::json(&imported);
    }
    let (size, memory) = (Bytes(imported.bytes), Bytes(imported.memory_bytes));
    output::line(format!("{}  {}", imported.id, imported.title))?;
    output::line(format!("{} {}, {} units, {size}", imported.architecture, imported.quantisation, imported.units))?;
    output::line(format!("To hold all of it takes {memory} of memory."))?;
    output::line(format!("Serve it with `brigade up --model {}`.", output::short(&imported.id)))?;
    Ok(())
}

/// Has the running peer import the file.
pub(crate) async fn through(client: &Client, file: &Path) -> anyhow::Result<ImportedView> {
    let path = std::path::absolute(file)?;
    Ok(client.post("import", &ImportBody { path }).await?)
}

/// Imports the file as the peer that would run here.
fn alone(root: &Path, file: &Path) -> anyhow::Result<ImportedView> {
    let data = DataDir::open(root)?;
    let bar = Filling::new("reading");
    let imported = Catalogue::open(data.root())?.import(file, |progress| bar.fill(progress.done, progress.total))?;
    Ok(ImportedView::from(&imported))
}
