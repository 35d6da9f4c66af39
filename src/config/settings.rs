//! The loose form of the configuration: as flags, environment and file give it, not yet checked.

use std::fmt;
use std::path::Path;
use std::path::PathBuf;

use clap::Args;
use clap::ValueEnum;
use serde::Deserialize;
use serde::Serialize;

use crate::node::io::Trust;

/// What `brigade up` takes. Every setting can stand in `config.toml` under the same name.
#[derive(Clone, Debug, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Settings {
    /// Model to serve: a GGUF file, an id, prefix or alias of an imported one, or an id that other peers announce, whose weights are then
    /// fetched from them. May be given several times. Without it, every model is served of which some weights are here.
    #[arg(long, value_name = "FILE|ID", env = "BRIGADE_MODEL")]
    pub model: Vec<String>,
    /// Hold exactly these units of the model, such as 0..3 (the end is not included). Unit 0 is the embedding, the last
    /// one the head, between them are the blocks.
    #[arg(long, value_name = "A..B", env = "BRIGADE_UNITS")]
    pub units: Option<String>,
    /// Hold at most so many units of a model; which ones, the peer finds out by itself.
    #[arg(long, value_name = "U", env = "BRIGADE_UNITS_PER_PEER")]
    pub units_per_peer: Option<u16>,
    /// Serve nothing: a peer that only asks.
    #[arg(long)]
    pub no_serve: bool,
    /// Precisions at which models may be served, such as source,Q8_0 (source is what a model has; or Q8_0, Q6_K, Q5_K, Q4_K, Q4_0, to
    /// which this peer quantises it). Of these the peer takes the most precise at which it can hold what the mesh lacks. [default: any]
    #[arg(long, value_name = "LIST", env = "BRIGADE_QUANT", value_delimiter = ',')]
    pub quant: Vec<String>,
    /// Memory to offer to the mesh, such as 4GiB or 25%. Half of the machine's by default; with another device than the
    /// cpu, an amount of the device's, which must be given.
    #[arg(long, value_name = "AMOUNT", env = "BRIGADE_MEMORY")]
    pub memory: Option<String>,
    /// Memory for what may have to be sent again if a peer behind this one is lost, such as 256MiB. Without it such work is
    /// done again: slower, and the same. [default: 256MiB]
    #[arg(long, value_name = "AMOUNT", env = "BRIGADE_JOURNAL_MEMORY")]
    pub journal_memory: Option<String>,
    /// What computes: cpu, cuda, cuda:N or metal. All but the cpu need a build with that feature. [default: cpu]
    #[arg(long, value_name = "DEVICE", env = "BRIGADE_DEVICE")]
    pub device: Option<String>,
    /// Threads for the engine. One for each physical core by default.
    #[arg(long, value_name = "N", env = "BRIGADE_THREADS")]
    pub threads: Option<usize>,
    /// Name of the network to be part of.
    #[arg(long, value_name = "NAME", env = "BRIGADE_NETWORK")]
    pub network: Option<String>,
    /// Invite to a network, as `brigade network invite` prints it. Kept, so that later --network NAME is enough.
    #[arg(long, value_name = "TOKEN", env = "BRIGADE_INVITE", hide_env_values = true)]
    pub invite: Option<String>,
    /// Address of a peer to join: HOST:PORT, or a multiaddress such as /ip4/192.0.2.7/tcp/2744. May be given several
    /// times.
    #[arg(long, value_name = "ADDR", env = "BRIGADE_JOIN", value_delimiter = ',', num_args = 1..)]
    pub join: Vec<String>,
    /// Address under which others can reach this peer, where it can't find out itself (port forwarding, containers).
    #[arg(long, value_name = "ADDR", env = "BRIGADE_ANNOUNCE", value_delimiter = ',')]
    pub announce: Vec<String>,
    /// Port to listen on for other peers; 0 is any. [default: 2744]
    #[arg(long, value_name = "PORT", env = "BRIGADE_PORT")]
    pub port: Option<u16>,
    /// Address to listen on for other peers, instead of every one of the machine's. May be given several times.
    #[arg(long, value_name = "ADDR", env = "BRIGADE_LISTEN", value_delimiter = ',')]
    pub listen: Vec<String>,
    /// Whether to find peers on this LAN by multicast. [default: on]
    #[arg(long, value_enum, value_name = "on|off", env = "BRIGADE_MDNS", hide_possible_values = true)]
    pub mdns: Option<Switch>,
    /// Address of the HTTP API; port 0 is any. Anything but loopback needs an API key. [default: 127.0.0.1:2745]
    #[arg(long, value_name = "ADDR:PORT", env = "BRIGADE_API")]
    pub api: Option<String>,
    /// The API's key. Never a flag: other users of the machine can see flags.
    #[arg(skip)]
    pub api_key: Option<String>,
    /// File that holds the API's key. (Or set BRIGADE_API_KEY.)
    #[arg(long, value_name = "FILE", env = "BRIGADE_API_KEY_FILE")]
    pub api_key_file: Option<PathBuf>,
    /// Name that a request's Host may give besides the API's address, such as that of a reverse proxy.
    #[arg(long, value_name = "HOST", env = "BRIGADE_ALLOW_HOST", value_delimiter = ',')]
    pub allow_host: Vec<String>,
    /// Web page whose scripts may use the API, such as `https://chat.example.org`.
    #[arg(long, value_name = "ORIGIN", env = "BRIGADE_ALLOW_ORIGIN", value_delimiter = ',')]
    pub allow_origin: Vec<String>,
    /// Key of a peer that may see prompts, besides this machine and the members of a private network.
    #[arg(long, value_name = "PEER", env = "BRIGADE_ALLOW", value_delimiter = ',')]
    pub allow: Vec<String>,
    /// Which peers prompts may go to: known (this machine, --allow, members of the same private network) or open
    /// (any). A peer that runs a layer of a prompt can reconstruct the prompt. [default: known]
    #[arg(long, value_enum, value_name = "known|open", env = "BRIGADE_TRUST", hide_possible_values = true)]
    pub trust: Option<TrustSetting>,
    /// Seconds that an answer which has begun waits for a lost peer's place to be taken, at most 3600; 0 gives up at
    /// once. [default: 120]
    #[arg(long, value_name = "SECONDS", env = "BRIGADE_PATIENCE")]
    pub patience: Option<u32>,
    /// Whether to give the weights on this machine's disk to other peers. [default: on]
    #[arg(long, value_enum, value_name = "on|off", env = "BRIGADE_SHARE", hide_possible_values = true)]
    pub share: Option<Switch>,
    /// Most bytes a second of weights to send to other peers, such as 10MiB. [default: no limit]
    #[arg(long, value_name = "AMOUNT", env = "BRIGADE_UPLOAD_LIMIT")]
    pub upload_limit: Option<String>,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

/// Which peers prompts may go to, as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum TrustSetting {
    /// This machine's own peer, the allow-list, and members of the same private network.
    Known,
    /// Any peer.
    Open,
}

impl From<TrustSetting> for Trust {
    fn from(setting: TrustSetting) -> Self {
        match setting {
            TrustSetting::Known => Self::Known,
            TrustSetting::Open => Self::Open,
        }
    }
}

impl fmt::Display for TrustSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Known => "known",
            Self::Open => "open",
        })
    }
}

/// Why settings could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file is there but cannot be read.
    #[error("{} cannot be read: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file says something that is no setting.
    #[error("{}: {}", file.display(), source.to_string().trim_end())]
    Parse {
        /// The file.
        file: PathBuf,
        /// What and where.
        source: Box<toml::de::Error>,
    },
}

impl Settings {
    /// What `file` says; nothing if there is no such file.
    ///
    /// # Errors
    /// [`SettingsError`] naming the file and, if it can be read, the line and the unknown or ill-formed setting.
    pub fn read(file: &Path) -> Result<Self, SettingsError> {
        match std::fs::read_to_string(file) {
            Ok(text) => toml::from_str(&text)
                .map_err(|source| SettingsError::Parse { file: file.to_owned(), source: Box::new(source) }),
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(SettingsError::Read { file: file.to_owned(), source }),
        }
    }

    /// These settings, with `below` where they say nothing.
    #[must_use]
    pub fn over(self, below: Self) -> Self {
        // Settings that exclude each other are one: giving one of them silences what is below for all of them.
        let sized = self.units.is_some() || self.units_per_peer.is_some();
        let serving = sized || !self.model.is_empty();
        let listening = self.port.is_some() || !self.listen.is_empty();
        let keyed = self.api_key.is_some() || self.api_key_file.is_some();
        let unless = |said: bool| if said { Self::default() } else { below.clone() };
        let (size_below, model_below) = (unless(sized || self.no_serve), unless(self.no_serve));
        let (listen_below, key_below) = (unless(listening), unless(keyed));
        Self {
            model: list(self.model, model_below.model),
            units: self.units.or(size_below.units),
            units_per_peer: self.units_per_peer.or(size_below.units_per_peer),
            no_serve: self.no_serve || (below.no_serve && !serving),
            quant: list(self.quant, below.quant),
            memory: self.memory.or(below.memory),
            journal_memory: self.journal_memory.or(below.journal_memory),
            device: self.device.or(below.device),
            threads: self.threads.or(below.threads),
            network: self.network.or(below.network),
            invite: self.invite.or(below.invite),
            join: list(self.join, below.join),
            announce: list(self.announce, below.announce),
            port: self.port.or(listen_below.port),
            listen: list(self.listen, listen_below.listen),
            mdns: self.mdns.or(below.mdns),
            api: self.api.or(below.api),
            api_key: self.api_key.or(key_below.api_key),
            api_key_file: self.api_key_file.or(key_below.api_key_file),
            allow_host: list(self.allow_host, below.allow_host),
            allow_origin: list(self.allow_origin, below.allow_origin),
            allow: list(self.allow, below.allow),
            trust: self.trust.or(below.trust),
            patience: self.patience.or(below.patience),
            share: self.share.or(below.share),
            upload_limit: self.upload_limit.or(below.upload_limit),
        }
    }
}

fn list(above: Vec<String>, below: Vec<String>) -> Vec<String> {
    if above.is_empty() { below } else { above }
}
