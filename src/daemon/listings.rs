//! What the handle is answered: listings of the node, the mesh and the library.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::config::Network;
use crate::config::NetworkKind;
use crate::config::address;
use crate::daemon::actor::Daemon;
use crate::daemon::handle::GenerateError;
use crate::daemon::handle::InviteError;
use crate::daemon::prepare::Chosen;
use crate::daemon::pull::Pulling;
use crate::daemon::views;
use crate::daemon::views::BalanceView;
use crate::daemon::views::CoverView;
use crate::daemon::views::CreditsView;
use crate::daemon::views::EntryLineView;
use crate::daemon::views::EntryView;
use crate::daemon::views::FetchView;
use crate::daemon::views::HoldingView;
use crate::daemon::views::Metrics;
use crate::daemon::views::ModelView;
use crate::daemon::views::PeerView;
use crate::daemon::views::PeersView;
use crate::daemon::views::RoundTripView;
use crate::daemon::views::StatusView;
use crate::ids::ModelId;
use crate::ids::PeerKey;
use crate::keys::invite::Invite;
use crate::keys::invite::MAX_ADDRESSES;
use crate::ledger::Ledger;
use crate::membership::PeerState;
use crate::membership::Standing;
use crate::mesh::MeshStatus;
use crate::units::UnitRange;
use crate::weights::catalogue::Entry;
use crate::weights::catalogue::ResolveError;
use crate::wire::credit::CreditEntry;
use crate::wire::profile::Holding;
use crate::wire::profile::HoldingState;
use crate::wire::profile::RoundTrip;
use crate::wire::profile::cpu;

/// Entries listed (arbitrary; a screenful or two).
const LISTED_ENTRIES: usize = 50;

/// The model that a request names, or the only one that can answer.
pub(super) fn choose(daemon: &Daemon, name: Option<&str>) -> Result<Chosen, GenerateError> {
    let model = match name {
        Some(name) => named(daemon, name)?,
        None => only(daemon)?,
    };
    let membership = daemon.node.membership();
    let heard = membership.models().into_iter().find(|heard| heard.card.model == model);
    let family = daemon.node.family(model);
    let holders = family.iter().flat_map(|model| membership.holders(*model, daemon.clock.now()));
    let holders = holders.map(|holder| holder.profile.peer);
    let announcer = heard.as_ref().map(|heard| heard.card.peer);
    Ok(Chosen {
        model,
        title: heard.map(|heard| heard.card.title.clone()).unwrap_or_default(),
        sources: announcer.into_iter().chain(holders).collect(),
    })
}

/// By id, beginning of an id, or alias; then by a title that one model alone claims.
fn named(daemon: &Daemon, name: &str) -> Result<ModelId, GenerateError> {
    match daemon.library.resolve(name) {
        Ok(model) => return Ok(model),
        Err(error @ ResolveError::Ambiguous { .. }) => return Err(GenerateError::Model(error.to_string())),
        Err(ResolveError::Unknown { .. } | ResolveError::TooShort { .. }) => {}
    }
    let heard = daemon.node.membership().models();
    let by_id = heard.iter().filter(|heard| {
        name.len() >= crate::weights::catalogue::MIN_PREFIX && heard.card.model.to_string().starts_with(name)
    });
    let by_title = heard.iter().filter(|heard| heard.card.title == name);
    let found: BTreeSet<ModelId> = by_id.chain(by_title).map(|heard| heard.card.model).collect();
    let mut found = found.into_iter();
    match (found.next(), found.next()) {
        (Some(model), None) => Ok(model),
        (None, _) => Err(GenerateError::Model(format!("no model is called \"{name}\": see `brigade models`"))),
        (Some(_), Some(_)) => {
            Err(GenerateError::Model(format!("\"{name}\" names several models: give more of the id")))
        }
    }
}

/// The only model that is covered, or the only one at all.
fn only(daemon: &Daemon) -> Result<ModelId, GenerateError> {
    let known = known_models(daemon);
    let now = daemon.clock.now();
    let covered = |model: &ModelId| daemon.node.cover(*model, now).is_some_and(|cover| cover.is_full());
    let covered: Vec<ModelId> = known.iter().copied().filter(covered).collect();
    let held: Vec<ModelId> = known.iter().copied().filter(|model| is_held(daemon, *model)).collect();
    for candidates in [covered, held] {
        match candidates[..] {
            [] => {}
            [model] => return Ok(model),
            [..] => {
                let ids: Vec<String> = candidates.iter().map(ModelId::short).collect();
                let text = format!("the mesh serves several models; name one of them: {}", ids.join(", "));
                return Err(GenerateError::Model(text));
            }
        }
    }
    Err(GenerateError::Model("no peer serves any model".to_owned()))
}

/// Whether anybody holds, loads or intends any unit of it, at whatever precision.
fn is_held(daemon: &Daemon, model: ModelId) -> bool {
    let own = daemon.node.holdings();
    daemon.node.family(model).iter().any(|model| {
        let others = daemon.node.membership().holders(*model, daemon.clock.now());
        !others.is_empty() || own.iter().any(|holding| holding.model == *model)
    })
}

/// The models known. One that was made of another known one is that one at another precision.
fn known_models(daemon: &Daemon) -> BTreeSet<ModelId> {
    let heard = daemon.node.membership().models().into_iter().map(|heard| heard.card.model);
    let known: BTreeSet<ModelId> = daemon.node.models().map(|facts| facts.id).chain(heard).collect();
    let made = daemon.node.models().filter(|facts| facts.source.is_some_and(|source| known.contains(&source)));
    let made: BTreeSet<ModelId> = made.map(|facts| facts.id).collect();
    known.difference(&made).copied().collect()
}

/// `status`, once the mesh was looked at.
pub(super) fn status(daemon: &Daemon) -> impl FnOnce(Option<MeshStatus>) -> StatusView + Send + 'static + use<> {
    let node = &daemon.node;
    let mut view = StatusView {
        peer: node.peer().to_string(),
        network: daemon.config.network.name.clone(),
        private: daemon.config.network.kind() == NetworkKind::Private,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_seconds: daemon.clock.now().0 / 1_000_000,
        listening: Vec::new(),
        announced: Vec::new(),
        reachability: "the mesh has stopped".to_owned(),
        connected: 0,
        memory_bytes: node.memory().0,
        memory_free_bytes: node.memory_free().0,
        threads: daemon.config.threads,
        holdings: node.holdings().iter().map(|held| holding(daemon, held)).collect(),
        fetching: daemon.puller.progress().iter().map(fetching).collect(),
        sessions: node.sessions(),
        requests: node.requests(),
        notices: notices(daemon),
    };
    move |mesh| {
        if let Some(mesh) = mesh {
            view.reachability = mesh.reachability.to_string();
            view.listening = mesh.listening.iter().map(|address| with_peer(address, &mesh.peer_id)).collect();
            view.announced = mesh.announced.iter().map(|address| with_peer(address, &mesh.peer_id)).collect();
            view.connected = mesh.neighbours.len();
            view.notices.extend(mesh.joins.iter().map(|join| format!("join {}: {}", join.address, join.state)));
            view.notices.extend(mesh.refusals);
        }
        view
    }
}

/// What the operator should know.
fn notices(daemon: &Daemon) -> Vec<String> {
    let refused = daemon.node.models().filter_map(|facts| {
        let reason = daemon.node.refused(facts.id)?;
        Some(format!("model {} is not served: {reason}", facts.id.short()))
    });
    let impostor = daemon
        .node
        .impostor()
        .map(|order| format!("another process speaks with this peer's key (boot {}): stop one of the two", order.boot));
    let stuck = daemon.node.is_stuck().then(|| {
        "the engine does not come back with what it computes: all leases were given up; restart this peer if that lasts".to_owned()
    });
    let unknown =
        daemon.wishes.names().map(|name| format!("model {name} is to be served, but no peer has described it yet"));
    let lacking = daemon.lacks.iter().map(|((model, range), reason)| {
        format!("units {range} of model {} could not be brought here: {reason}", model.short())
    });
    refused.chain(impostor).chain(stuck).chain(unknown).chain(lacking).collect()
}

/// An address with the identity that others need to dial it.
pub(super) fn with_peer(address: &str, peer_id: &str) -> String {
    if address.contains("/p2p/") { address.to_owned() } else { format!("{address}/p2p/{peer_id}") }
}

/// An invite with the addresses that others were told, or else those that this peer listens on.
pub(super) fn invite(
    daemon: &Daemon,
) -> impl FnOnce(Option<MeshStatus>) -> Result<String, InviteError> + Send + 'static + use<> {
    let network = daemon.config.network.clone();
    move |mesh| invite_to(network, &mesh.ok_or(InviteError::Stopped)?)
}

fn invite_to(network: Network, mesh: &MeshStatus) -> Result<String, InviteError> {
    let told = if mesh.announced.is_empty() { &mesh.listening } else { &mesh.announced };
    let told = address::worth_telling(told).into_iter().take(MAX_ADDRESSES);
    let addresses = told.map(|address| with_peer(address, &mesh.peer_id)).collect();
    Ok(Invite::new(network.name, network.secret, addresses)?.to_string())
}

/// `peers`: this one first.
pub(super) fn peers(daemon: &Daemon) -> PeersView {
    let now = daemon.clock.now();
    let mut peers = vec![this_peer(daemon)];
    peers.extend(daemon.node.membership().peers(now).map(|state| other_peer(daemon, &state)));
    let models = known_models(daemon).into_iter().filter_map(|model| cover(daemon, model)).collect();
    PeersView { peers, models }
}

fn this_peer(daemon: &Daemon) -> PeerView {
    PeerView {
        peer: daemon.node.peer().to_string(),
        this: true,
        connected: true,
        round_trip_micros: None,
        round_trips: Vec::new(),
        cores: u16::try_from(daemon.config.threads).ok(),
        memory_bytes: Some(daemon.node.memory().0),
        memory_free_bytes: Some(daemon.node.memory_free().0),
        cpu_features: features(crate::os::cpu_features()),
        arithmetic: Some(daemon.config.device.arithmetic().to_owned()),
        holdings: daemon.node.holdings().iter().map(|held| holding(daemon, held)).collect(),
        sessions: u16::try_from(daemon.node.sessions()).ok(),
        draining: daemon.node.departure() == crate::node::Departure::Draining,
    }
}

fn other_peer(daemon: &Daemon, state: &PeerState<'_>) -> PeerView {
    let profile = state.profile;
    PeerView {
        peer: state.peer.to_string(),
        this: false,
        connected: state.connected,
        round_trip_micros: state.round_trip.map(|span| span.0),
        round_trips: profile.iter().flat_map(|profile| profile.round_trips.iter().map(round_trip)).collect(),
        cores: profile.map(|profile| profile.cores),
        memory_bytes: profile.map(|profile| profile.memory.0),
        memory_free_bytes: profile.map(|profile| profile.memory_free.0),
        cpu_features: profile.map(|profile| features(profile.cpu_features)).unwrap_or_default(),
        arithmetic: profile.map(|profile| profile.arithmetic.clone()),
        holdings: profile
            .iter()
            .flat_map(|profile| profile.holdings.iter().map(|held| holding(daemon, held)))
            .collect(),
        sessions: profile.map(|profile| profile.sessions),
        draining: state.standing == Standing::Draining,
    }
}

fn round_trip(trip: &RoundTrip) -> RoundTripView {
    let digits = trip.neighbour.iter().map(|byte| format!("{byte:02x}"));
    RoundTripView { neighbour: digits.collect(), micros: trip.span.0 }
}

fn features(bits: u32) -> Vec<String> {
    cpu::NAMES.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| (*name).to_owned()).collect()
}

fn fetching(pulling: &Pulling) -> FetchView {
    FetchView {
        model: pulling.model.to_string(),
        units: pulling.range.to_string(),
        had_bytes: pulling.had.0,
        wanted_bytes: pulling.wanted.0,
    }
}

fn holding(daemon: &Daemon, holding: &Holding) -> HoldingView {
    let facts = daemon.node.facts(holding.model);
    let state = match holding.state {
        HoldingState::Intended => "intended",
        HoldingState::Loading => "loading",
        HoldingState::Ready => "ready",
    };
    HoldingView {
        model: holding.model.to_string(),
        source: facts.and_then(|facts| facts.source).map(|source| source.to_string()),
        quantisation: facts.map(|facts| facts.format.to_string()),
        units: holding.range.to_string(),
        state: state.to_owned(),
        micros_per_unit: holding.per_unit.0,
    }
}

/// Whether a model is covered; nothing is said of a model that nobody holds any part of, unless this peer asks for it.
fn cover(daemon: &Daemon, model: ModelId) -> Option<CoverView> {
    if !is_held(daemon, model) {
        return None;
    }
    let cover = daemon.node.cover(model, daemon.clock.now())?;
    Some(CoverView {
        model: model.to_string(),
        title: title(daemon, model),
        units: u16::try_from(cover.counts().len()).unwrap_or(u16::MAX),
        covered: cover.is_full(),
        missing: texts(&cover.missing()),
    })
}

fn texts(ranges: &[UnitRange]) -> Vec<String> {
    ranges.iter().map(ToString::to_string).collect()
}

fn title(daemon: &Daemon, model: ModelId) -> String {
    let own = daemon.node.models().find(|facts| facts.id == model).map(|facts| facts.title.clone());
    let heard = || {
        let models = daemon.node.membership().models();
        models.into_iter().find(|heard| heard.card.model == model).map(|heard| heard.card.title.clone())
    };
    own.filter(|title| !title.is_empty()).or_else(heard).unwrap_or_default()
}

/// `models`: those of the catalogue, then those heard of.
pub(super) fn models(daemon: &Daemon) -> Vec<ModelView> {
    let entries: BTreeMap<ModelId, Entry> =
        daemon.library.entries().into_iter().map(|entry| (entry.id, entry)).collect();
    // A model that was removed is known only as long as others hold it.
    let own = daemon.node.models().filter(|facts| entries.contains_key(&facts.id) || is_held(daemon, facts.id));
    let own = own.map(|facts| {
        let entry = entries.get(&facts.id);
        let stored = if entry.is_some() { daemon.library.held(facts.id) } else { Vec::new() };
        ModelView {
            id: facts.id.to_string(),
            title: facts.title.clone(),
            alias: entry.and_then(|entry| entry.alias.clone()),
            architecture: facts.shape.architecture.name().to_owned(),
            units: facts.shape.units(),
            bytes: facts.bytes.0,
            memory_bytes: views::memory(&facts.footprint, facts.shape.context).0,
            quantisation: facts.format.to_string(),
            context: facts.shape.context,
            local: !stored.is_empty(),
            stored: texts(&stored),
            private: entry.is_some_and(|entry| entry.private),
            ..covered(daemon, facts.id)
        }
    });
    let known: BTreeSet<ModelId> = daemon.node.models().map(|facts| facts.id).collect();
    let heard = daemon.node.membership().models();
    let heard = heard.into_iter().filter(|heard| !known.contains(&heard.card.model)).map(|heard| ModelView {
        id: heard.card.model.to_string(),
        title: heard.card.title.clone(),
        alias: None,
        architecture: heard.card.architecture.clone(),
        units: heard.card.units,
        bytes: heard.card.bytes.0,
        quantisation: heard.card.quantisation.clone(),
        context: heard.card.context,
        local: false,
        ..covered(daemon, heard.card.model)
    });
    own.chain(heard).collect()
}

/// What of a model's listing depends on the mesh.
fn covered(daemon: &Daemon, model: ModelId) -> ModelView {
    let cover = daemon.node.cover(model, daemon.clock.now());
    let holdings = daemon.node.holdings();
    let held = holdings.iter().filter(|holding| holding.model == model && holding.state == HoldingState::Ready);
    ModelView {
        holding: held.map(|holding| holding.range.to_string()).collect(),
        covered: cover.as_ref().is_some_and(crate::units::Cover::is_full),
        missing: cover.map(|cover| texts(&cover.missing())).unwrap_or_default(),
        ..ModelView::default()
    }
}

/// `credits`: balances with everybody, and the newest entries that concern this peer.
pub(super) fn credits(daemon: &Daemon) -> CreditsView {
    let (ledger, me) = (daemon.node.ledger(), daemon.node.peer());
    let concerns =
        |entry: &&CreditEntry| entry.header.value.requester == me || entry.lines.iter().any(|line| line.stage == me);
    CreditsView {
        earned_mflop: ledger.earned_by(me).0,
        owed_mflop: ledger.owed_by(me).0,
        balances: balances(ledger, me),
        entries: ledger.entries().filter(concerns).take(LISTED_ENTRIES).map(entry).collect(),
        forks: ledger.forks().map(|fork| fork.requester().to_string()).collect(),
    }
}

fn balances(ledger: &Ledger, me: PeerKey) -> Vec<BalanceView> {
    let mut balances: BTreeMap<PeerKey, (u64, u64)> = BTreeMap::new();
    for (debtor, creditor, owed) in ledger.balances() {
        if creditor == me && debtor != me {
            balances.entry(debtor).or_default().0 += owed.0;
        }
        if debtor == me && creditor != me {
            balances.entry(creditor).or_default().1 += owed.0;
        }
    }
    let view = |(peer, (earned_mflop, owed_mflop)): (PeerKey, (u64, u64))| BalanceView {
        peer: peer.to_string(),
        earned_mflop,
        owed_mflop,
    };
    balances.into_iter().map(view).collect()
}

fn entry(entry: &CreditEntry) -> EntryView {
    let header = &entry.header.value;
    EntryView {
        requester: header.requester.to_string(),
        sequence: header.sequence,
        session: header.session.to_string(),
        model: header.model.to_string(),
        positions: header.positions.0,
        total_mflop: header.total.0,
        lines: entry
            .lines
            .iter()
            .map(|line| EntryLineView {
                peer: line.stage.to_string(),
                units: line.range.to_string(),
                mflop: line.work.0,
            })
            .collect(),
    }
}

/// Figures for `GET /metrics`.
pub(super) fn metrics(daemon: &Daemon) -> Metrics {
    let connected = daemon.node.membership().peers(daemon.clock.now()).filter(|state| state.connected);
    let (weights_sent_bytes, weights_received_bytes) = daemon.library.exchanged();
    Metrics {
        peers: connected.count() as u64,
        requests: [daemon.counts.requests, daemon.counts.finished, daemon.counts.failed],
        tokens: daemon.counts.tokens,
        mended: daemon.counts.mended,
        leases: daemon.bridge.opened,
        loads: daemon.bridge.loaded,
        sessions: daemon.node.sessions() as u64,
        steps: daemon.bridge.steps,
        positions: daemon.bridge.positions,
        busy_micros: daemon.bridge.busy.0,
        hop_payload_bytes: daemon.streams.payload_bytes(),
        kv_bytes: daemon.node.cache().0,
        weights_sent_bytes,
        weights_received_bytes,
    }
}
