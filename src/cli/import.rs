//! `brigade import`.

use std::path::Path;

use crate::amounts::Bytes;
use crate::cli::access::Access;
use crate::cli::listings::Form;
use crate::cli::output;
use crate::cli::output::Waiting;

/// Adds a file to the catalogue of the peer on `root`, running or not.
pub(crate) async fn import(root: &Path, file: &Path, form: Form) -> anyhow::Result<()> {
    let mut waiting = Waiting::new();
    waiting.say(format!("reading {}", file.display()));
    let access = Access::alone(root).await?;
    let imported = access.import(file).await;
    access.close().await;
    drop(waiting);
    let imported = imported?;
    match form {
        Form::Json => output::json(&imported),
        Form::Text => {
            let size = Bytes(imported.bytes);
            output::line(format!("{}  {}", imported.id, imported.title))?;
            output::line(format!(
                "{} {}, {} units, {size}",
                imported.architecture, imported.quantisation, imported.units
            ))?;
            Ok(output::line(format!("Serve it with `brigade up --model {}`.", output::short(&imported.id)))?)
        }
    }
}
