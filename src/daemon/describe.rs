//! What a model is, for whoever plans for it: its manifest, from the catalogue or from those who announced it.

use std::collections::BTreeSet;
use std::path::Path;

use tokio::sync::oneshot;

use crate::config::settings::Switch;
use crate::daemon::actor::Daemon;
use crate::daemon::handle::GenerateError;
use crate::daemon::library::Library;
use crate::daemon::library::LibraryError;
use crate::daemon::listings;
use crate::daemon::prepare::Chosen;
use crate::ids::ModelId;
use crate::mesh::Mesh;
use crate::wire::manifest::Manifest;

/// A model's manifest and what it is called.
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    /// Its id.
    pub id: ModelId,
    /// Its title.
    pub title: String,
    /// Its manifest.
    pub manifest: Manifest,
}

/// Why a model cannot be described where no peer runs.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DescribeError(String);

/// Describes a model of a data directory on which no peer runs, by id, beginning of an id, or alias.
///
/// # Errors
/// [`DescribeError`] if there is no such model, or what is known of it is damaged.
pub fn describe_model(directory: &Path, name: &str) -> Result<Description, DescribeError> {
    let failed = |error: &dyn std::error::Error| DescribeError(error.to_string());
    let library = Library::open(directory, Switch::Off, BTreeSet::new()).map_err(|error| failed(&error))?;
    let model = library.resolve(name).map_err(|error| failed(&error))?;
    library.describe(model).map_err(|error| failed(&error))
}

impl Library {
    /// The manifest of a model in the catalogue.
    fn describe(&self, id: ModelId) -> Result<Description, LibraryError> {
        let shelf = self.shelf();
        let title = shelf.catalogue.entry(id).map(|entry| entry.title.clone()).unwrap_or_default();
        Ok(Description { id, title, manifest: shelf.catalogue.manifest(id)? })
    }
}

impl Daemon {
    /// Describes a model, beside the loop, since others may have to be asked.
    pub(super) fn tell_about(&self, name: &str, reply: oneshot::Sender<Result<Description, GenerateError>>) {
        let chosen = match listings::choose(self, Some(name)) {
            Ok(chosen) => chosen,
            // Whoever asked may have gone.
            Err(error) => return drop(reply.send(Err(error))),
        };
        let (library, mesh) = (self.library.clone(), self.mesh.clone());
        tokio::spawn(async move { reply.send(described(&library, &mesh, &chosen).await) });
    }
}

async fn described(library: &Library, mesh: &Mesh, chosen: &Chosen) -> Result<Description, GenerateError> {
    let Chosen { model, title, sources } = chosen;
    let refused = |error: LibraryError| GenerateError::Model(error.to_string());
    library.known_or_fetched(mesh, *model, title, sources).await.map_err(refused)?;
    library.describe(*model).map_err(refused)
}
