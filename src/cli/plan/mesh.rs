//! The machines of the live mesh, as the running peer sees them.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::amounts::Bytes;
use crate::amounts::Span;
use crate::cli::client::Client;
use crate::cli::output::short;
use crate::cli::plan::machines::Park;
use crate::cli::plan::subject::Subject;
use crate::daemon::views::HoldingView;
use crate::daemon::views::PeerView;
use crate::daemon::views::PeersView;
use crate::estimate::Footprint;
use crate::placement::LAN;
use crate::placement::plan::Link;
use crate::placement::plan::Machine;
use crate::placement::plan::Machines;
use crate::placement::plan::Precision;
use crate::units::UnitRange;

/// The round trip within a LAN and between others where nobody measured it (arbitrary).
const UNMEASURED: (Span, Span) = (Span(500), Span::millis(50));

/// Bytes a second within a LAN and between others, which nobody measures (arbitrary: a Gbit/s, and a tenth of it).
const RATES: (u64, u64) = (125_000_000, 12_500_000);

/// Bytes a second that a peer reads if nobody's pace is known (arbitrary: memory of a small computer).
const BANDWIDTH: u64 = 10_000_000_000;

/// Multiplications a second of a core, which nobody measures (arbitrary: one with AVX2).
const CORE: u64 = 20_000_000_000;

/// The mesh's machines, with the memory that they have for a model: what is free, and what they hold of it already.
pub(super) async fn park(client: &Client, id: Option<&str>, precisions: &[Precision]) -> anyhow::Result<Park> {
    let view: PeersView = client.get("peers").await?;
    let mut known: BTreeMap<String, Footprint> = BTreeMap::new();
    if let (Some(id), Some(precision)) = (id, precisions.first()) {
        known.insert(id.to_owned(), precision.footprint.clone());
    }
    let held = view.peers.iter().flat_map(|peer| &peer.holdings).map(|held| held.model.clone());
    for model in held.collect::<BTreeSet<_>>() {
        if known.contains_key(&model) {
            continue;
        }
        // Of a model that nobody describes any more, no pace can be read.
        if let Ok(subject) = Subject::told(client, &model).await
            && let Some(precision) = subject.precisions.into_iter().next()
        {
            known.insert(model, precision.footprint);
        }
    }
    Ok(of_peers(&view.peers, id, &known))
}

/// - `known`: what models take, by id
fn of_peers(peers: &[PeerView], id: Option<&str>, known: &BTreeMap<String, Footprint>) -> Park {
    let peers: Vec<&PeerView> = peers.iter().filter(|peer| offers(peer)).collect();
    let trips = trips(&peers);
    let site_of = sites(peers.len(), &trips);
    let count = site_of.iter().max().map_or(0, |last| last + 1);
    let paces: Vec<Option<u64>> = peers.iter().map(|peer| pace(peer, known)).collect();
    let slowest = paces.iter().flatten().min().copied();
    let machine = |(index, peer): (usize, &&PeerView)| {
        let cores = peer.cores.unwrap_or(1).max(1);
        Machine {
            name: format!("{}{}", short(&peer.peer), if peer.this { " (this)" } else { "" }),
            site: site_of[index],
            memory: memory(peer, id, known),
            bandwidth: paces[index].or(slowest).unwrap_or(BANDWIDTH),
            compute: CORE.saturating_mul(cores.into()),
            threads: cores.into(),
        }
    };
    let machines: Vec<Machine> = peers.iter().enumerate().map(machine).collect();
    let mut notes = Vec::new();
    let unmeasured = paces.iter().filter(|pace| pace.is_none()).count();
    if unmeasured > 0 {
        let taken = slowest.map_or_else(
            || format!("{} GB/s", BANDWIDTH / 1_000_000_000),
            |_| "the pace of the slowest that was".to_owned(),
        );
        notes.push(format!("{unmeasured} peers have computed nothing yet; they are taken to read {taken}"));
    }
    notes.push(format!("prompts are taken to go at {} GMAC/s a core, which is not measured", CORE / 1_000_000_000));
    let names = (1..=count).map(|site| format!("LAN {site}")).collect();
    Park { machines: Machines { machines, links: links(count, &site_of, &trips) }, sites: names, notes }
}

/// Whether a peer is there to stay, and serves anything.
fn offers(peer: &PeerView) -> bool {
    !peer.draining && peer.memory_bytes.is_some_and(|bytes| bytes > 0)
}

/// What a peer has for a model: what nothing uses, and what it holds of the model itself.
fn memory(peer: &PeerView, id: Option<&str>, known: &BTreeMap<String, Footprint>) -> Bytes {
    let offered = Bytes(peer.memory_bytes.unwrap_or_default());
    let free = peer.memory_free_bytes.map_or(offered, Bytes);
    let model = |held: &HoldingView| held.source.clone().unwrap_or_else(|| held.model.clone());
    let of_it = peer.holdings.iter().filter(|held| Some(model(held).as_str()) == id && held.state != "intended");
    let held = of_it.filter_map(|held| Some(known.get(&held.model)?.weights(units(held)?)));
    free.plus(held.sum()).min(offered)
}

/// Bytes a second that a peer reads, from the measured time of a position through a unit. The best of its models.
fn pace(peer: &PeerView, known: &BTreeMap<String, Footprint>) -> Option<u64> {
    let measured = peer.holdings.iter().filter(|held| held.micros_per_unit > 0).filter_map(|held| {
        let (range, footprint) = (units(held)?, known.get(&held.model)?);
        let active: Bytes = range.iter().filter_map(|unit| Some(footprint.units.get(usize::from(unit))?.active)).sum();
        let micros = u64::from(range.count()).saturating_mul(held.micros_per_unit);
        Some(active.0.saturating_mul(1_000_000) / micros)
    });
    measured.max().filter(|pace| *pace > 0)
}

fn units(held: &HoldingView) -> Option<UnitRange> {
    held.units.parse().ok()
}

/// Round trips that somebody measured, by pair with the smaller index first; the shorter of two.
fn trips(peers: &[&PeerView]) -> BTreeMap<(usize, usize), Span> {
    let mut trips: BTreeMap<(usize, usize), Span> = BTreeMap::new();
    let mut add = |one: usize, other: usize, span: Span| {
        if one != other {
            let trip = trips.entry((one.min(other), one.max(other))).or_insert(span);
            *trip = span.min(*trip);
        }
    };
    let this = peers.iter().position(|peer| peer.this);
    for (index, peer) in peers.iter().enumerate() {
        if let (Some(this), Some(micros)) = (this, peer.round_trip_micros) {
            add(this, index, Span(micros));
        }
        for trip in &peer.round_trips {
            if let Some(other) = peers.iter().position(|other| other.peer.starts_with(&trip.neighbour)) {
                add(index, other, Span(trip.micros));
            }
        }
    }
    trips
}

/// Which LAN each of `count` peers is on: those who are near each other, or near one who is.
fn sites(count: usize, trips: &BTreeMap<(usize, usize), Span>) -> Vec<usize> {
    let mut first: Vec<usize> = (0..count).collect();
    for (&(one, other), _) in trips.iter().filter(|(_, span)| **span < LAN) {
        let (from, to) = (first[one].max(first[other]), first[one].min(first[other]));
        first.iter_mut().filter(|site| **site == from).for_each(|site| *site = to);
    }
    let names: BTreeSet<usize> = first.iter().copied().collect();
    let number: BTreeMap<usize, usize> = names.into_iter().zip(0..).collect();
    first.iter().map(|site| number[site]).collect()
}

/// The shortest trip between two sites, the longest within one.
fn links(count: usize, site_of: &[usize], trips: &BTreeMap<(usize, usize), Span>) -> Vec<Vec<Link>> {
    let of = |from: usize, to: usize| {
        let measured = trips.iter().filter(|((one, other), _)| {
            let pair = (site_of[*one], site_of[*other]);
            pair == (from, to) || pair == (to, from)
        });
        let spans = measured.map(|(_, span)| *span);
        match from == to {
            true => Link { round_trip: spans.max().unwrap_or(UNMEASURED.0), rate: RATES.0 },
            false => Link { round_trip: spans.min().unwrap_or(UNMEASURED.1), rate: RATES.1 },
        }
    };
    (0..count).map(|from| (0..count).map(|to| of(from, to)).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::views::RoundTripView;
    use crate::estimate::Unit;

    fn peer(name: &str, near: &[(&str, u64)]) -> PeerView {
        let trip = |&(neighbour, micros): &(&str, u64)| RoundTripView { neighbour: neighbour.to_owned(), micros };
        PeerView {
            peer: name.repeat(16),
            this: false,
            connected: true,
            round_trip_micros: None,
            round_trips: near.iter().map(trip).collect(),
            cores: Some(2),
            memory_bytes: Some(1_000),
            memory_free_bytes: Some(400),
            cpu_features: Vec::new(),
            arithmetic: None,
            holdings: Vec::new(),
            sessions: None,
            draining: false,
        }
    }

    fn holding(model: &str, micros_per_unit: u64) -> HoldingView {
        HoldingView {
            model: model.to_owned(),
            source: None,
            quantisation: None,
            units: "1..3".to_owned(),
            state: "ready".to_owned(),
            micros_per_unit,
        }
    }

    #[test]
    fn peers_that_are_near_each_other_are_one_site() {
        let this = PeerView { this: true, ..peer("aaaa", &[]) };
        let near = PeerView { round_trip_micros: Some(900), ..peer("bbbb", &[("cccc", 1_999)]) };
        let far = PeerView { round_trip_micros: Some(30_000), ..peer("cccc", &[("dddd", 25_000)]) };
        let alone = peer("dddd", &[("aaaa", 9_000)]);
        let going = PeerView { draining: true, ..peer("eeee", &[]) };

        let park = of_peers(&[this, near, far, alone, going], None, &BTreeMap::new());

        let Machines { machines, links } = park.machines;
        assert_eq!(machines.iter().map(|machine| machine.site).collect::<Vec<_>>(), [0, 0, 0, 1]);
        assert_eq!(links[0][1].round_trip, Span::millis(9), "the shortest of those measured");
        assert_eq!(links[1][1].round_trip, UNMEASURED.0);
        assert_eq!(park.sites, ["LAN 1", "LAN 2"]);
    }

    #[test]
    fn memory_is_what_is_free_and_what_the_model_has_already_and_pace_is_what_was_measured() {
        let unit = Unit { weights: Bytes(100), active: Bytes(3_000), ..Unit::default() };
        let footprint = Footprint { units: vec![unit; 4], ..Footprint::default() };
        let known = BTreeMap::from([("m".to_owned(), footprint)]);
        let holds = |model: &str| PeerView { holdings: vec![holding(model, 2)], ..peer("aaaa", &[]) };
        let memory = |peer: &PeerView| memory(peer, Some("m"), &known);

        assert_eq!([memory(&holds("m")), memory(&holds("other"))], [Bytes(600), Bytes(400)]);
        assert_eq!(pace(&holds("m"), &known), Some(1_500_000_000), "3000 bytes in 2 µs");
        assert_eq!(pace(&holds("other"), &known), None);
        let park = of_peers(&[holds("m"), peer("bbbb", &[])], Some("m"), &known);
        assert_eq!(park.machines.machines[1].bandwidth, 1_500_000_000, "as the slowest that is known");
        assert!(park.notes[0].contains("1 peers"), "{:?}", park.notes);
    }
}
