//! The models heard of, bounded in the same way as the peers: a full table refuses strangers' cards, and for a
//! neighbour's the stranger's that came last makes way.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::amounts::Time;
use crate::ids::BootSeq;
use crate::ids::ModelId;
use crate::ids::PeerKey;
use crate::membership::Change;
use crate::membership::MembershipConfig;
use crate::membership::ModelHeard;
use crate::membership::Title;
use crate::membership::announcer::lifetime;
use crate::wire::card::ModelCard;

/// Cards kept per model that may be known, on average (arbitrary).
const CARDS_PER_MODEL: usize = 8;

/// One peer's card of one model.
#[derive(Clone, Debug)]
struct Record {
    first_heard: Time,
    order: BootSeq,
    card: ModelCard,
    valid: Validity,
    /// When the validity ends, or the order is forgotten.
    deadline: Time,
}

/// Whether a card counts or only its order does. In this order, since the expired make way first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Validity {
    Valid,
    Expired,
}

/// The table of cards.
#[derive(Clone, Debug)]
pub(super) struct Cards {
    config: MembershipConfig,
    records: BTreeMap<(PeerKey, ModelId), Record>,
    deadlines: BTreeSet<(Time, PeerKey, ModelId)>,
    /// Who has a valid card of each model.
    sayers: BTreeMap<ModelId, BTreeSet<PeerKey>>,
    /// Units by manifest.
    manifests: BTreeMap<ModelId, u16>,
}

impl Cards {
    pub(super) fn new(config: MembershipConfig) -> Self {
        Self {
            config,
            records: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            sayers: BTreeMap::new(),
            manifests: BTreeMap::new(),
        }
    }

    /// Takes up a card unless it is stale or there is no room; `is_neighbour` tells who always finds room.
    pub(super) fn heard(
        &mut self,
        card: ModelCard,
        peers: usize,
        is_neighbour: impl Fn(PeerKey) -> bool,
        now: Time,
    ) -> Vec<Change> {
        let key = (card.peer, card.model);
        let known = self.records.get(&key);
        if known.is_some_and(|record| card.order <= record.order) {
            return Vec::new();
        }
        let first_heard = known.map_or(now, |record| record.first_heard);
        if !self.make_room(key, is_neighbour) {
            return Vec::new();
        }
        let appeared = !self.sayers.contains_key(&card.model);
        let deadline = now.after(card.valid_for.min(lifetime(peers)));
        self.remove(key);
        self.sayers.entry(card.model).or_default().insert(card.peer);
        self.deadlines.insert((deadline, card.peer, card.model));
        self.records.insert(key, Record { first_heard, order: card.order, card, valid: Validity::Valid, deadline });
        vec![if appeared { Change::ModelAppeared(key.1) } else { Change::CardRenewed(key.1) }]
    }

    pub(super) fn ticked(&mut self, now: Time) -> Vec<Change> {
        let mut changes = Vec::new();
        while let Some(&(_, peer, model)) = self.deadlines.first().filter(|(at, ..)| *at <= now) {
            let Some(record) = self.remove((peer, model)) else {
                continue;
            };
            if record.valid == Validity::Valid {
                let deadline = now.after(self.config.remember);
                self.deadlines.insert((deadline, peer, model));
                self.records.insert((peer, model), Record { valid: Validity::Expired, deadline, ..record });
            }
            if record.valid == Validity::Valid && !self.sayers.contains_key(&model) {
                changes.push(Change::ModelExpired(model));
            }
        }
        changes
    }

    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.deadlines.first().map(|(at, ..)| *at)
    }

    /// The caller fetched (or made) the manifest, so it decides how many there are.
    pub(super) fn manifest_known(&mut self, model: ModelId, units: u16) {
        if self.manifests.len() >= self.config.max_models {
            self.manifests.pop_first();
        }
        self.manifests.insert(model, units);
    }

    pub(super) fn units(&self, model: ModelId) -> Option<u16> {
        self.manifests.get(&model).copied().or_else(|| Some(self.shown(model)?.card.units))
    }

    pub(super) fn models(&self) -> Vec<ModelHeard<'_>> {
        let mut claims: BTreeMap<String, BTreeSet<ModelId>> = BTreeMap::new();
        for record in self.records.values().filter(|record| record.valid == Validity::Valid) {
            claims.entry(plain(&record.card.title)).or_default().insert(record.card.model);
        }
        let contested = |title: &str| claims.get(&plain(title)).is_some_and(|models| models.len() > 1);
        let title = |card: &ModelCard| if contested(&card.title) { Title::Contested } else { Title::Sole };
        let shown = self.sayers.keys().filter_map(|&model| self.shown(model));
        shown.map(|heard| ModelHeard { title: title(heard.card), ..heard }).collect()
    }

    /// The card that most peers agree with; among equals the one of the smallest key.
    pub(super) fn shown(&self, model: ModelId) -> Option<ModelHeard<'_>> {
        let sayers = self.sayers.get(&model)?;
        let cards = sayers.iter().filter_map(|&peer| Some(&self.records.get(&(peer, model))?.card));
        let mut votes: BTreeMap<_, (usize, &ModelCard)> = BTreeMap::new();
        for card in cards {
            let content = (card.units, card.bytes, card.context, &card.architecture, &card.quantisation, &card.title);
            votes.entry(content).or_insert((0, card)).0 += 1;
        }
        let (_, card) = votes.into_values().max_by_key(|(count, card)| (*count, std::cmp::Reverse(card.peer)))?;
        Some(ModelHeard { card, said_by: sayers.len(), title: Title::Sole })
    }

    /// Whether there is room for a record of `key`, after making some if its peer has a right to it.
    fn make_room(&mut self, key: (PeerKey, ModelId), is_neighbour: impl Fn(PeerKey) -> bool) -> bool {
        let (peer, model) = key;
        let own = self.records.range((peer, ModelId::new([0; 32]))..=(peer, ModelId::new([0xff; 32])));
        let own: Vec<_> = own.map(|(&key, record)| (record.valid, record.deadline, key)).collect();
        if !self.records.contains_key(&key) && own.len() >= self.config.max_models_per_peer {
            let expired = own.iter().filter(|(valid, ..)| *valid == Validity::Expired).min_by_key(|entry| entry.1);
            let Some(&(.., oldest)) = expired else {
                return false;
            };
            self.remove(oldest);
        }
        let full = self.records.len() >= CARDS_PER_MODEL * self.config.max_models;
        if full && !self.records.contains_key(&key) && !self.drop_newest_strange_card(peer, &is_neighbour) {
            return false;
        }
        if self.sayers.contains_key(&model) || self.sayers.len() < self.config.max_models {
            return true;
        }
        is_neighbour(peer) && self.drop_newest_strange_model(is_neighbour)
    }

    /// Drops an expired card, or, for a neighbour, the stranger's card that came last.
    fn drop_newest_strange_card(&mut self, newcomer: PeerKey, is_neighbour: impl Fn(PeerKey) -> bool) -> bool {
        let newest = |(&key, record): (&(PeerKey, ModelId), &Record)| (record.valid, record.first_heard, key);
        let strangers = self.records.iter().filter(|((peer, _), _)| !is_neighbour(*peer));
        let Some((valid, _, victim)) = strangers.map(newest).max() else {
            return false;
        };
        let may = valid == Validity::Expired || is_neighbour(newcomer);
        may && self.remove(victim).is_some()
    }

    fn drop_newest_strange_model(&mut self, is_neighbour: impl Fn(PeerKey) -> bool) -> bool {
        let strange = self.sayers.iter().filter(|(_, sayers)| !sayers.iter().any(|&peer| is_neighbour(peer)));
        let first_heard = |(&model, sayers): (&ModelId, &BTreeSet<PeerKey>)| {
            let heard = sayers.iter().filter_map(|&peer| Some(self.records.get(&(peer, model))?.first_heard));
            (heard.min(), model)
        };
        let Some((_, model)) = strange.map(first_heard).max() else {
            return false;
        };
        for peer in self.sayers.get(&model).cloned().unwrap_or_default() {
            self.remove((peer, model));
        }
        true
    }

    fn remove(&mut self, key: (PeerKey, ModelId)) -> Option<Record> {
        let record = self.records.remove(&key)?;
        self.deadlines.remove(&(record.deadline, key.0, key.1));
        if let Some(sayers) = self.sayers.get_mut(&key.1) {
            sayers.remove(&key.0);
            if sayers.is_empty() {
                self.sayers.remove(&key.1);
            }
        }
        Some(record)
    }
}

/// Titles that differ in case or surrounding space look the same to people.
fn plain(title: &str) -> String {
    title.trim().to_lowercase()
}
