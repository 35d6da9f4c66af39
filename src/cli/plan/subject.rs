//! The model that is planned for, at every precision that it can be had in.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use anyhow::bail;
use data_encoding::BASE64;

use crate::api::internal::DescribeBody;
use crate::api::internal::DescribedBody;
use crate::cli::client::Client;
use crate::daemon::describe::Description;
use crate::placement::plan::Precision;
use crate::quantise;
use crate::shape::WeightFormat;
use crate::weights::catalogue;
use crate::wire::manifest::Manifest;

/// Whether the engine runs a model's architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Engine {
    Runs,
    RunsNot,
}

/// A model to plan for.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    pub(super) title: String,
    /// Its id, if it is known by one.
    pub(super) id: Option<String>,
    pub(super) architecture: String,
    pub(super) engine: Engine,
    /// Weights of all units.
    pub(super) parameters: u64,
    /// Those that one position is multiplied with.
    pub(super) active: u64,
    /// Positions that a session may have.
    pub(super) context: u32,
    /// The most precise first, at least one.
    pub(super) precisions: Vec<Precision>,
}

impl Subject {
    /// Of the files at `path`, without hashing them.
    pub(super) fn at(path: &Path) -> anyhow::Result<Self> {
        let (manifest, title) = catalogue::describe(path)?;
        Ok(Self::new(None, title, manifest))
    }

    /// Of the model that a running peer knows by that name, or fetches the manifest of.
    pub(super) async fn told(client: &Client, model: &str) -> anyhow::Result<Self> {
        let body = DescribeBody { model: model.to_owned() };
        let DescribedBody { id, title, manifest } = client.post("describe", &body).await?;
        let bytes = BASE64.decode(manifest.as_bytes()).context("the peer sent a manifest in an unknown form")?;
        let manifest = Manifest::decode(&bytes).context("the peer sent a manifest that cannot be used")?;
        Ok(Self::new(Some(id), title, manifest))
    }

    /// Of a model of a catalogue.
    pub(super) fn of(description: Description) -> Self {
        let Description { id, title, manifest } = description;
        Self::new(Some(id.to_string()), title, manifest)
    }

    fn new(id: Option<String>, title: String, manifest: Manifest) -> Self {
        let shape = manifest.shape;
        let elements =
            |dimensions: &[u64]| dimensions.iter().fold(1, |product: u64, size| product.saturating_mul(*size));
        let parameters = manifest.tensors.iter().map(|tensor| elements(&tensor.dimensions));
        let parameters = parameters.fold(0, u64::saturating_add);
        let precisions = precisions(Arc::new(manifest));
        let active = precisions.first().map_or(0, |precision| {
            let each = precision.footprint.units.iter().map(|unit| unit.multiplications);
            each.fold(0, u64::saturating_add)
        });
        Self {
            title,
            id,
            architecture: shape.architecture.name().to_owned(),
            engine: Engine::Runs,
            parameters,
            active,
            context: shape.context,
            precisions,
        }
    }

    /// Without what is coarser than `least`.
    pub(super) fn at_least(mut self, least: Option<WeightFormat>) -> anyhow::Result<Self> {
        let Some(least) = least else { return Ok(self) };
        let finest = self.precisions.first().map(|precision| precision.format);
        self.precisions.retain(|precision| precision.format.precision() >= least.precision());
        if self.precisions.is_empty() {
            let finest = finest.map(|format| format.to_string()).unwrap_or_default();
            bail!("min-quant: the model's own weights are {finest}, which is coarser than {least}");
        }
        Ok(self)
    }
}

/// The model as it is, and what quantising it gives.
fn precisions(manifest: Arc<Manifest>) -> Vec<Precision> {
    let made = manifest.derivation.as_ref().map(|derivation| derivation.format);
    let own = made.or(manifest.main_format()).unwrap_or(WeightFormat::F32);
    let derived = quantise::TARGETS.into_iter().filter_map(|format| {
        let derived = manifest.derive(format).filter(|_| format.precision() < own.precision())?;
        Some(Precision { format, footprint: derived.footprint() })
    });
    let mut precisions = vec![Precision { format: own, footprint: manifest.footprint() }];
    precisions.extend(derived);
    precisions
}
