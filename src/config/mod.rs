//! Configuration: file, environment and flags, parsed once into something that cannot be wrong.
//!
//! Flags win over the environment, the environment over `config.toml` in the data directory, that over the defaults.
//! Flags and file have the same names. [`Settings`] is the loose form, as people write it; [`Config`] is the only form
//! that the rest of the program sees, and [`Config::try_from`] holds every default and every check.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use libp2p::Multiaddr;

use crate::amounts::Bytes;
use crate::amounts::Span;
use crate::config::address::AddressFault;
use crate::config::key::ApiKey;
use crate::config::key::BadApiKey;
use crate::config::memory::BadMemory;
use crate::config::settings::Settings;
use crate::config::settings::Switch;
use crate::engine::device::DeviceName;
use crate::engine::device::UnknownDevice;
use crate::ids::PeerKey;
use crate::keys::BadNetworkName;
use crate::keys::NetworkSecret;
use crate::keys::check_network_name;
use crate::keys::invite::BadInvite;
use crate::keys::invite::Invite;
use crate::node::config::Limits;
use crate::node::config::Precisions;
use crate::node::io::HoldPolicy;
use crate::node::io::Trust;
use crate::os;
use crate::quantise;
use crate::shape::WeightFormat;
use crate::units::BadRange;
use crate::units::UnitRange;

pub mod address;
pub mod datadir;
pub mod key;
pub mod load;
pub mod memory;
pub mod networks;
pub mod settings;

/// The port that peers listen on for each other.
pub const P2P_PORT: u16 = 2744;

/// Where the API listens.
pub const API_ADDRESS: &str = "127.0.0.1:2745";

/// The open network that a bare `brigade up` joins: this LAN only.
pub const LOCAL_NETWORK: &str = "local";

/// How long an answer waits for a lost stage's place to be taken (arbitrary: a peer of the mesh needs a while to notice that
/// units are missing, and to load them).
pub const PATIENCE: Span = Span::seconds(120);

/// The longest that an answer can be told to wait, in seconds.
pub const MAX_PATIENCE: u32 = 3_600;

/// The lowest upload limit, a second: a piece of a MiB must come within the 30 seconds that others wait for it.
pub const LEAST_UPLOAD: Bytes = Bytes(64 << 10);

/// Everything that a peer needs to know to start, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The network to be part of.
    pub network: Network,
    /// Addresses to listen on; port 0 is any. A private network's are all TCP.
    pub listen: Vec<Multiaddr>,
    /// Addresses to tell others of, beside those that other peers confirm.
    pub announce: Vec<Multiaddr>,
    /// Addresses to dial at the start, with those of the invite.
    pub join: Vec<Multiaddr>,
    /// Whether to look for peers on this LAN.
    pub mdns: Switch,
    /// What to serve.
    pub serve: Serve,
    /// At which precisions.
    pub precisions: Precisions,
    /// Memory offered to the mesh: the device's.
    pub memory: Bytes,
    /// Memory for what stages could send again.
    pub journal_memory: Bytes,
    /// What computes.
    pub device: DeviceName,
    /// Engine threads, at least 1.
    pub threads: usize,
    /// The HTTP API.
    pub api: Api,
    /// Peers that may see prompts besides this machine and, if the network is private, its members.
    pub allow: Vec<PeerKey>,
    /// Which peers prompts may go to where a request doesn't say.
    pub trust: Trust,
    /// How long an answer that has begun waits for a lost stage's place to be taken, where a request doesn't say.
    pub patience: Span,
    /// Whether weights on this machine's disk are given to other peers.
    pub share: Switch,
    /// Bytes a second that are sent to peers that fetch by hash, if limited.
    pub upload_limit: Option<Bytes>,
}

/// A network: a name and, for a private one, a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// Its key, if it is private.
    pub secret: Option<NetworkSecret>,
}

/// What a peer serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Serve {
    /// No units: a peer that only asks.
    Nothing,
    /// Every model in this peer's catalogue, in the order of their import.
    Catalogue(HoldPolicy),
    /// These models; never empty.
    Models(Vec<ModelSource>, HoldPolicy),
}

/// How a model to serve is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// A file, imported at the start if it isn't yet.
    File(PathBuf),
    /// An id, a unique prefix of one or an alias, of the catalogue.
    Named(String),
}

/// How the HTTP API is to be reached.
#[derive(Clone, Debug)]
pub struct Api {
    /// Where it listens; port 0 is any.
    pub address: SocketAddr,
    /// The key that every request must carry; always there if the address is not loopback.
    pub key: Option<ApiKey>,
    /// Names that a `Host` header may give besides the address and this machine's loopback names.
    pub hosts: Vec<String>,
    /// Web pages whose scripts may use the API, such as `https://chat.example.org`.
    pub origins: Vec<String>,
}

/// What the machine offers; the defaults depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// All of its memory, if that can be told.
    pub memory: Option<Bytes>,
    /// How many threads compute best: one for each physical core.
    pub threads: usize,
}

impl Machine {
    /// This machine.
    pub fn this() -> Self {
        Self { memory: os::memory().map(|memory| memory.total), threads: os::physical_cores().into() }
    }
}

/// Settings merged from all sources, and what they are checked against.
#[derive(Clone, Debug)]
pub struct Sources {
    /// What flags, environment and file say.
    pub settings: Settings,
    /// The invite that the data directory keeps for the network named, if there is one.
    pub stored: Option<Invite>,
    /// The machine.
    pub machine: Machine,
}

/// Settings that no peer can start with.
#[derive(Debug, thiserror::Error)]
pub enum BadConfig {
    /// The network's name is none.
    #[error("network: {0}")]
    Network(#[from] BadNetworkName),
    /// The invite is none.
    #[error("invite: {0}")]
    Invite(#[from] BadInvite),
    /// Two settings name two networks.
    #[error("the invite is for network \"{invited}\", but network \"{named}\" was asked for: leave one of them out")]
    TwoNetworks {
        /// The invite's.
        invited: String,
        /// The one named.
        named: String,
    },
    /// An invite for a network of the same name whose key differs from the one kept here.
    #[error(
        "the invite's key for network \"{name}\" is not the one in the data directory: use another --data-dir, or remove networks/{name}.invite if that network is gone"
    )]
    OtherKey {
        /// The network.
        name: String,
    },
    /// An address is none.
    #[error("{setting}: {fault}")]
    Address {
        /// Which setting.
        setting: &'static str,
        /// What is wrong.
        fault: AddressFault,
    },
    /// Two settings say where to listen.
    #[error("listen and port were both given: put the port into the addresses of listen")]
    ListenAndPort,
    /// The memory is no amount.
    #[error("memory: {0}")]
    Memory(#[from] BadMemory),
    /// A precision is none that can be served.
    #[error("quant: expected source or one of {}, got \"{got}\"", names(&quantise::TARGETS))]
    Quant {
        /// The text as given.
        got: String,
    },
    /// The upload limit is no amount, or so low that nothing would arrive in time.
    #[error("upload-limit: expected bytes a second such as 10MiB, at least {LEAST_UPLOAD}, got \"{got}\"")]
    UploadLimit {
        /// The text as given.
        got: String,
    },
    /// The memory for journals is no amount.
    #[error("journal-memory: {0}")]
    JournalMemory(BadMemory),
    /// Half of the machine's memory is offered by default, but how much that is cannot be told.
    #[error("memory: this machine does not say how much it has: give an amount such as 4GiB")]
    UnknownMemory,
    /// The device's memory is what is offered, but how much that is cannot be told.
    #[error("memory: how much device {device} has is not known here: give an amount of it such as 4GiB")]
    DeviceMemory {
        /// The device.
        device: DeviceName,
    },
    /// The device is none.
    #[error("device: {0}")]
    Device(#[from] UnknownDevice),
    /// The range is none.
    #[error("units: {0}")]
    Units(#[from] BadRange),
    /// A pinned range needs one model.
    #[error("units pins a range of one model, but {got} models were given")]
    UnitsWithoutModel {
        /// Models given.
        got: usize,
    },
    /// Two settings say how much to hold.
    #[error("units and units-per-peer were both given: a pinned range has its size")]
    UnitsTwice,
    /// A peer that serves nothing was told what to serve.
    #[error("no-serve was given together with {with}")]
    ServeNothing {
        /// The setting that contradicts it.
        with: &'static str,
    },
    /// Nothing can be computed or held.
    #[error("{setting} must be at least 1")]
    Zero {
        /// Which setting.
        setting: &'static str,
    },
    /// Nobody waits so long.
    #[error("patience: expected at most {MAX_PATIENCE} seconds, got {got}")]
    Patience {
        /// Seconds given.
        got: u32,
    },
    /// The API's address is none.
    #[error("api: expected an address and a port such as {API_ADDRESS}, got \"{got}\"")]
    ApiAddress {
        /// The text as given.
        got: String,
    },
    /// The API's key is none.
    #[error("api-key: {0}")]
    ApiKey(#[from] BadApiKey),
    /// The API would be open to the network.
    #[error(
        "the api on {address} can be reached by other machines and needs a key: set BRIGADE_API_KEY, api-key-file, or api-key in config.toml"
    )]
    OpenApi {
        /// The address.
        address: SocketAddr,
    },
    /// An origin is none.
    #[error("allow-origin: expected a scheme and a host such as https://chat.example.org, got \"{got}\"")]
    Origin {
        /// The text as given.
        got: String,
    },
    /// A peer's key is none.
    #[error("allow: {0}")]
    Allow(#[from] crate::ids::BadId),
}

impl TryFrom<Sources> for Config {
    type Error = BadConfig;

    fn try_from(sources: Sources) -> Result<Self, BadConfig> {
        let Sources { settings, stored, machine } = sources;
        let invite = settings.invite.as_deref().map(str::parse::<Invite>).transpose()?;
        let network = network(settings.network.as_deref(), invite.as_ref(), stored.as_ref())?;
        let kind = network.kind();
        let parse = |setting, texts: &[String]| {
            address::parse_all(texts, kind).map_err(|fault| BadConfig::Address { setting, fault })
        };
        let device = settings.device.as_deref().map_or(Ok(DeviceName::Cpu), str::parse)?;
        let mut join = parse("join", &settings.join)?;
        for known in invite.iter().chain(&stored) {
            join.extend(parse("invite", known.addresses())?);
        }
        join.sort();
        join.dedup();
        Ok(Self {
            listen: listen(&settings, kind)?,
            announce: parse("announce", &settings.announce)?,
            join,
            mdns: settings.mdns.unwrap_or(Switch::On),
            serve: serve(&settings)?,
            precisions: precisions(&settings.quant)?,
            memory: memory(settings.memory.as_deref(), device, machine)?,
            journal_memory: journal_memory(settings.journal_memory.as_deref(), machine)?,
            device,
            threads: at_least_one("threads", settings.threads)?.unwrap_or(machine.threads.max(1)),
            api: api(&settings)?,
            allow: settings.allow.iter().map(|text| text.parse()).collect::<Result<_, _>>()?,
            trust: settings.trust.map_or(Trust::Known, Trust::from),
            patience: patience(settings.patience)?,
            share: settings.share.unwrap_or(Switch::On),
            upload_limit: settings.upload_limit.as_deref().map(upload_limit).transpose()?,
            network,
        })
    }
}

impl Network {
    /// Whether a key is needed to be part of it.
    pub const fn kind(&self) -> NetworkKind {
        if self.secret.is_some() { NetworkKind::Private } else { NetworkKind::Open }
    }
}

/// Whether a network needs a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkKind {
    /// Anybody may join.
    Open,
    /// Only holders of the key; its transport is TCP alone, for the key guards no other.
    Private,
}

fn network(named: Option<&str>, invite: Option<&Invite>, stored: Option<&Invite>) -> Result<Network, BadConfig> {
    if let (Some(named), Some(invite)) = (named, invite)
        && named != invite.network()
    {
        return Err(BadConfig::TwoNetworks { invited: invite.network().to_owned(), named: named.to_owned() });
    }
    if let (Some(invite), Some(stored)) = (invite, stored)
        && invite.secret() != stored.secret()
    {
        return Err(BadConfig::OtherKey { name: invite.network().to_owned() });
    }
    let known = invite.or(stored);
    let name = known.map(Invite::network).or(named).unwrap_or(LOCAL_NETWORK);
    check_network_name(name)?;
    Ok(Network { name: name.to_owned(), secret: known.and_then(|invite| invite.secret().cloned()) })
}

fn listen(settings: &Settings, kind: NetworkKind) -> Result<Vec<Multiaddr>, BadConfig> {
    if settings.listen.is_empty() {
        return Ok(address::everywhere(settings.port.unwrap_or(P2P_PORT), kind));
    }
    if settings.port.is_some() {
        return Err(BadConfig::ListenAndPort);
    }
    address::parse_all(&settings.listen, kind).map_err(|fault| BadConfig::Address { setting: "listen", fault })
}

fn serve(settings: &Settings) -> Result<Serve, BadConfig> {
    let models: Vec<ModelSource> = settings.model.iter().map(|text| model_source(text)).collect();
    if settings.no_serve {
        let given = [("units", settings.units.is_some()), ("model", !models.is_empty())];
        return match given.into_iter().find(|(_, given)| *given) {
            Some((with, _)) => Err(BadConfig::ServeNothing { with }),
            None => Ok(Serve::Nothing),
        };
    }
    let max_units = at_least_one("units-per-peer", settings.units_per_peer)?;
    let Some(units) = &settings.units else {
        let policy = HoldPolicy::Automatic { max_units };
        return Ok(if models.is_empty() { Serve::Catalogue(policy) } else { Serve::Models(models, policy) });
    };
    if max_units.is_some() {
        return Err(BadConfig::UnitsTwice);
    }
    if models.len() != 1 {
        return Err(BadConfig::UnitsWithoutModel { got: models.len() });
    }
    Ok(Serve::Models(models, HoldPolicy::Pinned(units.parse::<UnitRange>()?)))
}

/// Names as people write them in a list.
fn names(formats: &[WeightFormat]) -> String {
    formats.iter().map(|format| format.name()).collect::<Vec<_>>().join(", ")
}

fn precisions(given: &[String]) -> Result<Precisions, BadConfig> {
    if given.is_empty() {
        return Ok(Precisions::default());
    }
    let mut precisions = Precisions { source: false, formats: BTreeSet::new() };
    for text in given {
        match text.trim() {
            "source" => precisions.source = true,
            text => {
                let format = text.parse().ok().filter(|format| quantise::TARGETS.contains(format));
                precisions
                    .formats
                    .insert(format.ok_or_else(|| BadConfig::Quant { got: text.chars().take(40).collect() })?);
            }
        }
    }
    Ok(precisions)
}

/// What has a path separator or ends in `.gguf` is a file; anything else is a name.
fn model_source(text: &str) -> ModelSource {
    let looks_like_a_path = text.contains(['/', '\\']) || text.to_ascii_lowercase().ends_with(".gguf");
    if looks_like_a_path { ModelSource::File(text.into()) } else { ModelSource::Named(text.to_owned()) }
}

fn memory(given: Option<&str>, device: DeviceName, machine: Machine) -> Result<Bytes, BadConfig> {
    let memory = match (given, machine.memory) {
        (Some(text), _) if device != DeviceName::Cpu && text.trim_end().ends_with('%') => {
            return Err(BadConfig::DeviceMemory { device });
        }
        (Some(text), total) => memory::parse(text, total)?,
        (None, _) if device != DeviceName::Cpu => return Err(BadConfig::DeviceMemory { device }),
        (None, Some(total)) => Bytes(total.0 / 2),
        (None, None) => return Err(BadConfig::UnknownMemory),
    };
    if memory == Bytes::ZERO { Err(BadConfig::Zero { setting: "memory" }) } else { Ok(memory) }
}

fn journal_memory(given: Option<&str>, machine: Machine) -> Result<Bytes, BadConfig> {
    let parse = |text| memory::parse(text, machine.memory).map_err(BadConfig::JournalMemory);
    given.map_or(Ok(Limits::default().journals), parse)
}

/// Bytes a second.
fn upload_limit(text: &str) -> Result<Bytes, BadConfig> {
    let limit = memory::parse(text, None).ok().filter(|limit| *limit >= LEAST_UPLOAD);
    limit.ok_or_else(|| BadConfig::UploadLimit { got: text.chars().take(40).collect() })
}

fn api(settings: &Settings) -> Result<Api, BadConfig> {
    let text = settings.api.as_deref().unwrap_or(API_ADDRESS);
    let address: SocketAddr = text.parse().map_err(|_| BadConfig::ApiAddress { got: text.to_owned() })?;
    let key = settings.api_key.as_deref().map(ApiKey::new).transpose()?;
    if !address.ip().is_loopback() && key.is_none() {
        return Err(BadConfig::OpenApi { address });
    }
    for origin in &settings.allow_origin {
        let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
        if !host.is_some_and(|host| !host.is_empty() && !host.contains('/')) {
            return Err(BadConfig::Origin { got: origin.clone() });
        }
    }
    Ok(Api { address, key, hosts: settings.allow_host.clone(), origins: settings.allow_origin.clone() })
}

fn patience(seconds: Option<u32>) -> Result<Span, BadConfig> {
    match seconds {
        None => Ok(PATIENCE),
        Some(got) if got > MAX_PATIENCE => Err(BadConfig::Patience { got }),
        Some(seconds) => Ok(Span::seconds(seconds.into())),
    }
}

fn at_least_one<N: Default + PartialEq>(setting: &'static str, given: Option<N>) -> Result<Option<N>, BadConfig> {
    if given.as_ref() == Some(&N::default()) { Err(BadConfig::Zero { setting }) } else { Ok(given) }
}

#[cfg(test)]
mod tests;
