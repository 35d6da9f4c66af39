//! The running peer: drives the node with the mesh, the engine and the store.
//!
//! ```text
//!   API, commands ──Command──▶ ┌────────┐ ──Input──▶ ┌──────┐
//!   mesh ──────────MeshEvent─▶ │ actor  │            │ Node │  pure
//!   engine ───────EngineEvent▶ │  loop  │ ◀─Action── └──────┘
//!   streams, log ──────Input─▶ └────────┘
//!                                │ streams: a task each ── mesh
//!                                │ bridge ─────────────── engine thread
//!                                │ puller: a task ─────── weights from other peers, files
//!                                │ log: a thread ──────── sled
//!                                │ publisher: a task ──── gossip
//!                                └ answer: a task each ── text for the user
//! ```
//!
//! Architecture invariant: the loop waits for nothing but its sources. Whatever may take long (opening streams,
//! writing, hashing, tokenizing, asking the mesh) is done beside it and comes back as one of them.

mod actor;
mod answer;
mod bridge;
mod departure;
pub mod describe;
mod evidence;
#[cfg(feature = "faults")]
pub mod faults;
mod giving;
pub mod handle;
mod library;
mod listings;
mod log;
mod prepare;
mod providing;
mod publisher;
mod pull;
mod quantising;
mod replicas;
mod streams;
pub mod views;
mod wishes;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io;
use std::num::NonZeroUsize;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::amounts::Bytes;
use crate::clock::Clock;
use crate::config::Config;
use crate::config::ModelSource;
use crate::config::Serve;
use crate::config::datadir::DataDir;
use crate::config::datadir::DataDirError;
use crate::config::settings::Switch;
use crate::daemon::actor::Counts;
use crate::daemon::actor::DONE_CAPACITY;
use crate::daemon::actor::Daemon;
use crate::daemon::actor::INPUT_CAPACITY;
use crate::daemon::actor::Sources;
use crate::daemon::bridge::Bridge;
use crate::daemon::departure::Departure;
pub use crate::daemon::describe::describe_model;
use crate::daemon::evidence::Evidence;
use crate::daemon::handle::COMMAND_CAPACITY;
use crate::daemon::handle::Peer;
use crate::daemon::library::Library;
use crate::daemon::log::LogWriter;
use crate::daemon::providing::Providing;
use crate::daemon::publisher::Publisher;
use crate::daemon::pull::Puller;
use crate::daemon::streams::Streams;
use crate::daemon::wishes::Wish;
use crate::daemon::wishes::Wishes;
use crate::engine;
use crate::engine::device::DeviceError;
use crate::engine::device::DeviceName;
use crate::engine::thread;
use crate::ids::ModelId;
use crate::ids::NetworkId;
use crate::ids::PeerKey;
use crate::ids::RequestId;
use crate::keys::Identity;
use crate::ledger::Ledger;
use crate::mesh;
use crate::mesh::Mdns;
use crate::mesh::Mesh;
use crate::mesh::MeshConfig;
use crate::mesh::MeshError;
use crate::mesh::Reach;
use crate::node::Node;
use crate::node::config::Limits;
use crate::node::config::Machine;
use crate::node::config::NodeConfig;
use crate::node::config::Precisions;
use crate::node::config::Privacy;
use crate::node::config::Serves;
use crate::node::io::HoldPolicy;
use crate::node::needs;
use crate::os;
use crate::placement;
use crate::placement::CannotServe;
use crate::scheduler::Budget;
use crate::shape::WeightFormat;
use crate::store::LogStore;
use crate::store::Opened;
use crate::store::SledStore;
use crate::store::StoreError;
use crate::weights::catalogue::MIN_PREFIX;
use crate::weights::catalogue::ResolveError;
use crate::wire::profile::Device;
use crate::wire::profile::DeviceKind;

/// Name and version, as other peers are told.
const SOFTWARE: &str = concat!("brigade ", env!("CARGO_PKG_VERSION"));

/// Commands waiting for the engine. The node has few steps under way; opening and freeing sessions come on top.
const ENGINE_CAPACITY: NonZeroUsize = NonZeroUsize::new(4096).expect("4096 is not 0");

/// Connections that others opened, and as many that this peer opened (arbitrary; about 100 KiB each).
const MAX_CONNECTIONS: u32 = 256;

/// How long to wait for the addresses that the system gives.
const LISTEN_LIMIT: Duration = Duration::from_secs(2);

/// Why a peer does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The mesh.
    #[error(transparent)]
    Mesh(#[from] MeshError),
    /// The credit log.
    #[error("the credit log: {0}")]
    Store(#[from] StoreError),
    /// The catalogue of models.
    #[error("the catalogue of models: {0}")]
    Catalogue(String),
    /// A model to serve.
    #[error("{}: {reason}", model.display())]
    Model {
        /// The file or name given.
        model: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A range to serve.
    #[error("units {range} were to be served, but the model has units 0..{units}")]
    Units {
        /// The range given.
        range: crate::units::UnitRange,
        /// Units of the model.
        units: u16,
    },
    /// The memory offered.
    #[error("{0}: offer more with --memory")]
    Memory(#[from] CannotServe),
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The system gives no threads.
    #[error("threads: {0}")]
    Threads(#[from] io::Error),
}

/// A peer that has started.
#[derive(Debug)]
pub struct Running {
    /// The handle on it.
    pub peer: Peer,
    /// Who it is.
    pub key: PeerKey,
    /// Addresses that it listens on for other peers, each with its identity.
    pub p2p_addresses: Vec<String>,
    task: JoinHandle<()>,
    /// Locks the data directory for the life of the peer.
    _data: DataDir,
}

impl Running {
    /// Waits until the peer has stopped.
    pub async fn stopped(&mut self) {
        if let Err(error) = (&mut self.task).await {
            tracing::error!(%error, "the peer broke off");
        }
    }
}

/// Starts a peer. When this returns it listens, and what it serves is being loaded.
///
/// # Errors
/// [`StartError`], and nothing runs.
pub async fn start(config: &Config, data: DataDir) -> Result<Running, StartError> {
    let device = engine::device::Device::open(config.device)?;
    let identity = data.identity()?;
    let boot = data.next_boot()?;
    let network = NetworkId::of(&config.network.name, config.network.secret.as_ref());
    let opened = Library::open(data.root(), config.share, config.allow.iter().copied().collect());
    let library = opened.map_err(|error| StartError::Catalogue(error.to_string()))?;
    let Served { models, wishes } = served(config, &library)?;
    let (store, ledger) = open_log(&data, network, identity.peer())?;
    let (mesh, mesh_events) = mesh::start(mesh_config(config, &identity, network, &library)).await?;
    let clock = Clock::start();
    let threads = NonZeroUsize::new(config.threads).unwrap_or(NonZeroUsize::MIN);
    let (engine, engine_events) = thread::start(device, threads, ENGINE_CAPACITY, Arc::new(move || clock.now()))?;
    let (inputs, input_queue) = mpsc::channel(INPUT_CAPACITY);
    let (done, done_queue) = mpsc::channel(DONE_CAPACITY);
    let (commands, command_queue) = mpsc::channel(COMMAND_CAPACITY);
    let key = identity.peer();
    let mut daemon = Daemon {
        config: config.clone(),
        clock,
        node: Node::new(node_config(config, identity, network, boot), ledger, clock.now()),
        streams: Streams::new(mesh.clone(), inputs.clone()),
        bridge: Bridge::new(engine, config.device),
        puller: Puller::start(mesh.clone(), library.clone(), clock, done.clone()),
        library,
        log: LogWriter::start(store, inputs.clone())?,
        evidence: Evidence::of(data.root()),
        publisher: Publisher::start(mesh.clone()),
        providing: Providing::default(),
        wishes: Wishes::new(wishes),
        lacks: BTreeMap::new(),
        mesh: mesh.clone(),
        inputs,
        done,
        answers: BTreeMap::new(),
        last_request: RequestId(0),
        counts: Counts::default(),
        #[cfg(feature = "faults")]
        faults: faults::Faults::default(),
        departure: Departure::default(),
    };
    for entry in daemon.library.entries() {
        daemon.know(entry.id);
    }
    for (model, policy) in models {
        daemon.serve(model, policy);
    }
    let sources = Sources {
        commands: command_queue,
        mesh: mesh_events,
        engine: engine_events,
        inputs: input_queue,
        done: done_queue,
    };
    let task = tokio::spawn(daemon.run(sources));
    Ok(Running { peer: Peer { commands }, key, p2p_addresses: addresses(&mesh).await, task, _data: data })
}

/// Does something to a model of a data directory on which no peer runs, by id, beginning of an id, or alias.
///
/// # Errors
/// [`ChangeError`](handle::ChangeError) if there is no such model, or it cannot be done.
pub fn change_model(
    directory: &Path,
    name: &str,
    change: handle::ModelChange,
) -> Result<views::ChangedView, handle::ChangeError> {
    let refused = |error: &dyn std::error::Error| handle::ChangeError::Refused(error.to_string());
    let library = Library::open(directory, Switch::Off, BTreeSet::new()).map_err(|error| refused(&error))?;
    let model = library.resolve(name).map_err(|error| refused(&error))?;
    library.change(model, change).map_err(|error| refused(&error))
}

/// What is to be served.
#[derive(Default)]
struct Served {
    models: Vec<(ModelId, HoldPolicy)>,
    /// What other peers are to describe first.
    wishes: Vec<Wish>,
}

/// What to serve: which models of the catalogue, after importing the files given, under which policy; and those that other peers are
/// to describe.
fn served(config: &Config, library: &Library) -> Result<Served, StartError> {
    let (models, policy) = match &config.serve {
        Serve::Nothing => return Ok(Served::default()),
        Serve::Catalogue(policy) => {
            // The demo model is served where there is nothing better.
            let models = library.servable();
            let models = if models.len() > 1 { models[..models.len() - 1].to_vec() } else { models };
            let models = models.into_iter().map(|model| (model, *policy)).collect();
            return Ok(Served { models, wishes: Vec::new() });
        }
        Serve::Models(models, policy) => (models, *policy),
    };
    let mut served = Served::default();
    for source in models {
        match model_of(source, library)? {
            Ok(model) => {
                check_fits(model, policy, config, library)?;
                served.models.push((model, policy));
            }
            Err(name) => served.wishes.push(Wish { name, policy }),
        }
    }
    Ok(served)
}

/// The model that is meant, or its id or the beginning of it, if it is in nobody's catalogue here.
fn model_of(source: &ModelSource, library: &Library) -> Result<Result<ModelId, String>, StartError> {
    match source {
        ModelSource::File(path) => library
            .import(path)
            .map(|imported| Ok(imported.id))
            .map_err(|error| StartError::Model { model: path.clone(), reason: error.to_string() }),
        ModelSource::Named(name) => match library.resolve(name) {
            Ok(model) => Ok(Ok(model)),
            // A title that some peer gives its model would name whatever that peer likes.
            Err(ResolveError::Unknown { .. }) if is_id(name) => Ok(Err(name.to_ascii_lowercase())),
            Err(error) => Err(StartError::Model { model: name.into(), reason: error.to_string() }),
        },
    }
}

fn is_id(name: &str) -> bool {
    (MIN_PREFIX..=2 * ModelId::LEN).contains(&name.len()) && name.bytes().all(|digit| digit.is_ascii_hexdigit())
}

/// Says at once what can never work.
fn check_fits(model: ModelId, policy: HoldPolicy, config: &Config, library: &Library) -> Result<(), StartError> {
    let known = library.known(model).map_err(|error| StartError::Catalogue(error.to_string()))?;
    let units = known.facts.shape.units();
    if let HoldPolicy::Pinned(range) = policy
        && range.end() > units
    {
        return Err(StartError::Units { range, units });
    }
    let threads = u16::try_from(config.threads).unwrap_or(u16::MAX);
    let passes = needs::passes(&Budget::default(), threads, known.facts.shape.context);
    let mut refusal = None;
    for facts in [&known.facts].into_iter().chain(known.derived.iter()).filter(|facts| config.precisions.allow(facts)) {
        match placement::check(needs::of(facts.id, &facts.footprint, &passes), needs::offer(policy, config.memory)) {
            Ok(()) => return Ok(()),
            Err(refused) => refusal = Some(refused),
        }
    }
    Err(refusal.unwrap_or(CannotServe::NothingAsked).into())
}

fn open_log(data: &DataDir, network: NetworkId, me: PeerKey) -> Result<(Box<dyn LogStore>, Ledger), StartError> {
    let (store, opened) = SledStore::open(&data.log().join(network.short()), network)?;
    if let Opened::SetAside { to, reason } = opened {
        tracing::error!(to = %to.display(), reason, "the credit log was damaged and was set aside; a new one begins");
    }
    let rows = store.rows().collect::<Result<Vec<_>, _>>()?;
    Ok((Box::new(store), Ledger::restore(me, rows)))
}

fn mesh_config(config: &Config, identity: &Identity, network: NetworkId, library: &Library) -> MeshConfig {
    let secret = config.network.secret.as_ref();
    MeshConfig {
        secret: identity.secret_bytes(),
        network,
        private_key: secret.map(crate::keys::NetworkSecret::pre_shared_key),
        listen: config.listen.iter().map(ToString::to_string).collect(),
        never_announce: os::bridge_addresses(),
        announce: config.announce.iter().map(ToString::to_string).collect(),
        join: config.join.iter().map(ToString::to_string).collect(),
        mdns: if config.mdns == Switch::On { Mdns::On } else { Mdns::Off },
        reach: if secret.is_some() || config.network.name == crate::config::LOCAL_NETWORK {
            Reach::Local
        } else {
            Reach::Open
        },
        max_connections: MAX_CONNECTIONS,
        allow: None,
        software: SOFTWARE.to_owned(),
        blobs: Arc::new(library.clone()),
        upload_limit: config.upload_limit.map(|limit| limit.0),
    }
}

/// The weight formats that this peer may serve, as it tells others.
fn formats(precisions: &Precisions) -> Vec<WeightFormat> {
    let may_serve = |format: &WeightFormat| precisions.source || precisions.formats.contains(format);
    WeightFormat::ALL.iter().copied().filter(may_serve).collect()
}

fn node_config(config: &Config, identity: Identity, network: NetworkId, boot: u64) -> NodeConfig {
    NodeConfig {
        identity,
        network,
        privacy: if config.network.secret.is_some() { Privacy::Private } else { Privacy::Open },
        boot,
        memory: offered(config),
        machine: Machine {
            cores: u16::try_from(config.threads).unwrap_or(u16::MAX),
            cpu_features: os::cpu_features(),
            devices: devices(config),
            formats: formats(&config.precisions),
            arithmetic: config.device.arithmetic().to_owned(),
        },
        allowed: config.allow.iter().copied().collect(),
        serves: Serves::Anyone,
        precisions: config.precisions.clone(),
        limits: Limits { journals: config.journal_memory, ..Limits::default() },
        membership: crate::membership::MembershipConfig::default(),
        placement: crate::placement::PlacementConfig::default(),
        scheduler: crate::scheduler::SchedulerConfig::default(),
    }
}

/// What serves nothing offers nothing, so that nobody counts on it.
fn offered(config: &Config) -> Bytes {
    if config.serve == Serve::Nothing { Bytes::ZERO } else { config.memory }
}

/// The processor and what computes beside it, of whose memory no more is known than what is offered.
fn devices(config: &Config) -> Vec<Device> {
    let mut devices = vec![Device { kind: DeviceKind::Cpu, memory: os::total_memory() }];
    let beside = match config.device {
        DeviceName::Cpu => None,
        DeviceName::Cuda(_) => Some(DeviceKind::Cuda),
        DeviceName::Metal => Some(DeviceKind::Metal),
    };
    devices.extend(beside.map(|kind| Device { kind, memory: config.memory }));
    devices
}

/// Where the peer listens, once the system has said so, each address with the identity that others need to dial it.
async fn addresses(mesh: &Mesh) -> Vec<String> {
    let listening = async {
        loop {
            match mesh.status().await {
                None => return Vec::new(),
                Some(status) if !status.listening.is_empty() => {
                    let with_id = |address: &String| match address.contains("/p2p/") {
                        true => address.clone(),
                        false => format!("{address}/p2p/{}", status.peer_id),
                    };
                    return status.listening.iter().map(with_id).collect();
                }
                Some(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    tokio::time::timeout(LISTEN_LIMIT, listening).await.unwrap_or_default()
}
