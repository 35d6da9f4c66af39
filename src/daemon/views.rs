//! What people and programs are shown. The field names are the stable names of every `--json` listing.

use serde::Deserialize;
use serde::Serialize;

use crate::amounts::Bytes;
use crate::estimate::Footprint;
use crate::node::needs;
use crate::os;
use crate::scheduler::Budget;
use crate::weights::catalogue::Imported;

/// `brigade status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatusView {
    /// This peer's key, in hexadecimal.
    pub peer: String,
    /// The name of the network.
    pub network: String,
    /// Whether the network needs a key.
    pub private: bool,
    /// The software's version.
    pub version: String,
    /// Seconds since the start.
    pub uptime_seconds: u64,
    /// Addresses that this peer listens on.
    pub listening: Vec<String>,
    /// Addresses that others were told of.
    pub announced: Vec<String>,
    /// Whether others can reach this peer, in words, and why not.
    pub reachability: String,
    /// Connected peers.
    pub connected: usize,
    /// Memory offered, bytes.
    pub memory_bytes: u64,
    /// Memory that nothing uses yet, bytes.
    pub memory_free_bytes: u64,
    /// Engine threads.
    pub threads: usize,
    /// What this peer holds or is about to.
    pub holdings: Vec<HoldingView>,
    /// Weights on their way from other peers.
    #[serde(default)]
    pub fetching: Vec<FetchView>,
    /// Sessions leased from this peer at the moment.
    pub sessions: usize,
    /// This peer's own requests under way.
    pub requests: usize,
    /// What its operator should know: models that are not served, joins that failed, connections that were refused.
    #[serde(default)]
    pub notices: Vec<String>,
}

/// Weights on their way from other peers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FetchView {
    /// The model's id.
    pub model: String,
    /// The units.
    pub units: String,
    /// Bytes that have come, of those that were missing.
    pub had_bytes: u64,
    /// Bytes that were missing.
    pub wanted_bytes: u64,
}

/// A range held.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HoldingView {
    /// The id of the model whose weights are held.
    pub model: String,
    /// The id of the model that it was made of by quantising, if it was and that is known.
    #[serde(default)]
    pub source: Option<String>,
    /// The precision of the weights, if it is known.
    #[serde(default)]
    pub quantisation: Option<String>,
    /// The units, such as `0..3`.
    pub units: String,
    /// `intended`, `loading` or `ready`.
    pub state: String,
    /// Measured microseconds for one position through one unit; 0 while unknown.
    pub micros_per_unit: u64,
}

/// `brigade peers`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeersView {
    /// Every peer known, this one first.
    pub peers: Vec<PeerView>,
    /// Whether each model is fully covered.
    pub models: Vec<CoverView>,
}

/// A peer, as this one sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerView {
    /// Its key, in hexadecimal.
    pub peer: String,
    /// Whether it is this peer itself.
    pub this: bool,
    /// Whether a connection to it is up.
    pub connected: bool,
    /// Smoothed round trip in microseconds, once measured.
    pub round_trip_micros: Option<u64>,
    /// Round trips that it measured itself.
    #[serde(default)]
    pub round_trips: Vec<RoundTripView>,
    /// Engine cores, once its profile was heard.
    pub cores: Option<u16>,
    /// Memory offered, bytes, once its profile was heard.
    pub memory_bytes: Option<u64>,
    /// The part of it that nothing uses yet.
    #[serde(default)]
    pub memory_free_bytes: Option<u64>,
    /// Features of its processor.
    pub cpu_features: Vec<String>,
    /// Its arithmetic class.
    pub arithmetic: Option<String>,
    /// What it holds.
    pub holdings: Vec<HoldingView>,
    /// Sessions leased from it.
    pub sessions: Option<u16>,
    /// Whether it is leaving.
    pub draining: bool,
}

/// A round trip that a peer measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RoundTripView {
    /// The first digits of the neighbour's key.
    pub neighbour: String,
    /// Microseconds.
    pub micros: u64,
}

/// Whether a model is covered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CoverView {
    /// The model's id.
    pub model: String,
    /// Its title.
    pub title: String,
    /// How many units it has.
    pub units: u16,
    /// Whether every unit has a peer that is ready to serve it.
    pub covered: bool,
    /// The runs of units that nobody serves, such as `3..5`.
    pub missing: Vec<String>,
}

/// One line of `brigade models`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ModelView {
    /// The model's id.
    pub id: String,
    /// Its title, as this peer's catalogue or the announcing peer says.
    pub title: String,
    /// A local alias, if it has one.
    pub alias: Option<String>,
    /// Its architecture.
    pub architecture: String,
    /// How many units it has.
    pub units: u16,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Bytes of memory that holding all of it takes, with room for an answer; 0 while only its title is known.
    #[serde(default)]
    pub memory_bytes: u64,
    /// Its most common weight format.
    pub quantisation: String,
    /// Positions that a session may have.
    pub context: u32,
    /// Whether this peer has weights of it on disk.
    pub local: bool,
    /// The units all of whose weights it has on disk.
    #[serde(default)]
    pub stored: Vec<String>,
    /// Whether it is given only to peers on the allow-list.
    #[serde(default)]
    pub private: bool,
    /// What this peer holds of it in memory.
    pub holding: Vec<String>,
    /// Whether the mesh covers it.
    pub covered: bool,
    /// The runs of units that nobody serves.
    pub missing: Vec<String>,
}

/// `brigade credits`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CreditsView {
    /// MFLOP that others owe this peer.
    pub earned_mflop: u64,
    /// MFLOP that this peer owes others.
    pub owed_mflop: u64,
    /// Per other peer.
    pub balances: Vec<BalanceView>,
    /// The newest entries that concern this peer, newest first.
    pub entries: Vec<EntryView>,
    /// Keys that were proven to have signed two entries of one number.
    pub forks: Vec<String>,
}

/// What is owed between this peer and another.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BalanceView {
    /// The other peer.
    pub peer: String,
    /// MFLOP that it owes this peer.
    pub earned_mflop: u64,
    /// MFLOP that this peer owes it.
    pub owed_mflop: u64,
}

/// A credit entry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EntryView {
    /// Who owes.
    pub requester: String,
    /// Its number in the requester's log.
    pub sequence: u64,
    /// The session.
    pub session: String,
    /// The model.
    pub model: String,
    /// Positions computed.
    pub positions: u32,
    /// The sum, in MFLOP.
    pub total_mflop: u64,
    /// Per stage.
    pub lines: Vec<EntryLineView>,
}

/// A line of a credit entry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EntryLineView {
    /// Who is owed.
    pub peer: String,
    /// The units it served.
    pub units: String,
    /// MFLOP.
    pub mflop: u64,
}

/// A stage of the chain that served a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StageView {
    /// Who served.
    pub peer: String,
    /// The units it served.
    pub units: String,
    /// The id of the weights it served them from.
    pub weights: String,
    /// The precision of these weights, such as `Q8_0`.
    #[serde(default)]
    pub quantisation: String,
    /// Positions that it computed, if it reported.
    pub positions: Option<u32>,
    /// Bytes of tensor payload that it sent down its hop, if it reported.
    pub hop_payload_bytes: Option<u64>,
    /// Frames that it sent down its hop, if it reported.
    pub hop_frames: Option<u64>,
    /// Microseconds in its engine, if it reported.
    pub busy_micros: Option<u64>,
    /// MFLOP owed to it.
    pub owed_mflop: u64,
}

/// The end of a request: `usage`, chain, timings.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SummaryView {
    /// The model's id.
    pub model: String,
    /// `stop` (end of generation or a stop string) or `length` (`max_tokens`, budget or context).
    pub finish_reason: String,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// New tokens shown; a token that ends generation and overshoot behind a stop string do not count.
    pub completion_tokens: u32,
    /// Who served what; with redundancy, in the first of the replicas.
    pub chain: Vec<StageView>,
    /// With redundancy, every chain that computed the answer.
    #[serde(default)]
    pub replicas: Vec<ReplicaView>,
    /// What chains contradicted each other in.
    #[serde(default)]
    pub lies: Vec<LieView>,
    /// Microseconds from submission until the chain was leased.
    pub lease_micros: u64,
    /// Microseconds from submission to the first token.
    pub first_token_micros: u64,
    /// Microseconds from the first token to the last.
    pub decode_micros: u64,
    /// How often the answer lost stages and went on, in order.
    #[serde(default)]
    pub mended: Vec<MendedView>,
}

/// An answer that went on in another chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MendedView {
    /// Peers that are not in the chain any more, each with the units that it served.
    pub lost: Vec<(String, String)>,
    /// The new chain: per stage the peer's key and its units.
    pub chain: Vec<(String, String)>,
    /// Tokens known then: positions that whoever is new in the chain has to be given or to compute.
    pub known: u32,
    /// Microseconds from the first sign of trouble until all stages of the chain were there.
    pub mending_micros: u64,
    /// Microseconds between the tokens before and after, as the reader waited. 0 while the next is to come.
    pub pause_micros: u64,
}

/// One of the chains that computed an answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReplicaView {
    /// Who served what.
    pub chain: Vec<StageView>,
    /// `agreed`, `lost` or `outvoted`.
    pub fate: String,
    /// How many of the tokens that were shown it computed as well.
    pub tokens: u32,
}

/// A lie that was found in one of this peer's own answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundLieView {
    /// When, in seconds since 1970.
    pub found: u64,
    /// What.
    #[serde(flatten)]
    pub lie: LieView,
}

/// Something that two chains computed differently.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LieView {
    /// Who computed something else: per stage the peer's key and its units.
    pub suspects: Vec<(String, String)>,
    /// `proven`, `one_of_them` (the suspects contradict each other, and others their chain) or `undecided`.
    pub certainty: String,
    /// The position before which the rows differ, or at which the token does.
    pub position: u32,
    /// What the suspects and those who contradict them have signed, in hexadecimal: commitments with their signatures.
    pub commitments: Vec<String>,
}

/// What was done to a model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedView {
    /// The model's id.
    pub model: String,
    /// Bytes of the disk that were freed.
    pub freed_bytes: u64,
    /// Tensors whose bytes are right, if they were looked at.
    pub right: usize,
    /// Names of tensors whose bytes are not; they are fetched again.
    pub damaged: Vec<String>,
}

/// A model that was imported.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ImportedView {
    /// The model's id.
    pub id: String,
    /// Its title.
    pub title: String,
    /// Its architecture.
    pub architecture: String,
    /// How many units it has.
    pub units: u16,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Bytes of memory that holding all of it takes, with room for an answer.
    pub memory_bytes: u64,
    /// Its most common weight format.
    pub quantisation: String,
}

impl From<&Imported> for ImportedView {
    fn from(imported: &Imported) -> Self {
        let (shape, format) = (&imported.manifest.shape, imported.manifest.main_format());
        Self {
            id: imported.id.to_string(),
            title: imported.title.clone(),
            architecture: shape.architecture.name().to_owned(),
            units: shape.units(),
            bytes: imported.manifest.total_bytes().0,
            memory_bytes: memory(&imported.manifest.footprint(), shape.context).0,
            quantisation: format.map(|format| format.to_string()).unwrap_or_default(),
        }
    }
}

/// What holding all of a model takes of this machine's memory: weights, keys and values of an answer, and what passes work in.
pub(super) fn memory(footprint: &Footprint, context: u32) -> Bytes {
    let passes = needs::passes(&Budget::default(), os::physical_cores(), context);
    footprint.whole().map(|whole| footprint.ready(whole, &passes)).unwrap_or_default()
}

/// Figures for `GET /metrics`.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Connected peers.
    pub peers: u64,
    /// Requests of this peer's user since the start: all, finished, failed.
    pub requests: [u64; 3],
    /// Tokens delivered to this peer's user.
    pub tokens: u64,
    /// Chains that took the place of broken ones in this peer's user's answers.
    pub mended: u64,
    /// Leases that this peer has given since its start.
    pub leases: u64,
    /// Unit ranges that this peer has loaded since its start.
    pub loads: u64,
    /// Sessions leased from this peer at the moment.
    pub sessions: u64,
    /// Steps computed here.
    pub steps: u64,
    /// Positions computed here.
    pub positions: u64,
    /// Microseconds the engine was busy.
    pub busy_micros: u64,
    /// Bytes of tensor payload sent to other stages.
    pub hop_payload_bytes: u64,
    /// Bytes of key/value cache in use.
    pub kv_bytes: u64,
    /// Bytes of weights sent to other peers.
    pub weights_sent_bytes: u64,
    /// Bytes of weights that came from other peers, verified.
    pub weights_received_bytes: u64,
}
