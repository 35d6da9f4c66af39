//! Models that are to be served and of which only the id is known: they are described by other peers, sooner or later.

use crate::amounts::Span;
use crate::amounts::Time;
use crate::daemon::actor::Daemon;
use crate::daemon::actor::Done;
use crate::daemon::listings;
use crate::ids::ModelId;
use crate::node::io::HoldPolicy;

/// How often to look whether somebody has announced the model.
const LOOK: Span = Span::seconds(1);

/// How long a peer that has just started waits for neighbours to announce a model before it asks the DHT (arbitrary: some rounds of gossip).
const HEAR: Span = Span::seconds(5);

/// How long to wait after those who announced it did not describe it (arbitrary).
const RETRY: Span = Span::seconds(5);

/// A model that is to be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    /// The id, or its beginning.
    pub(super) name: String,
    /// How much of it to hold.
    pub(super) policy: HoldPolicy,
}

/// The wishes that are open.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    open: Vec<Wish>,
    /// Those that somebody is being asked about.
    tried: Vec<Wish>,
    /// Those of which the log has said that they came to nothing.
    failed: Vec<Wish>,
    due: Time,
}

impl Wishes {
    pub(super) fn new(open: Vec<Wish>) -> Self {
        Self { open, ..Self::default() }
    }

    /// When to look again.
    pub(super) fn deadline(&self) -> Option<Time> {
        (!self.open.is_empty()).then_some(self.due)
    }

    /// The names of the models wished for.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.open.iter().chain(&self.tried).map(|wish| wish.name.as_str())
    }

    /// The wishes to be tried now. Each is put back or ended.
    fn due(&mut self, now: Time) -> Vec<Wish> {
        if now < self.due {
            return Vec::new();
        }
        self.due = now.after(LOOK);
        self.tried.extend(self.open.iter().cloned());
        std::mem::take(&mut self.open)
    }

    fn is_first_failure(&mut self, wish: &Wish) -> bool {
        let is_first = !self.failed.contains(wish);
        if is_first {
            self.failed.push(wish.clone());
        }
        is_first
    }

    fn end(&mut self, wish: &Wish) {
        self.tried.retain(|tried| tried != wish);
    }

    fn put_back(&mut self, wish: Wish, due: Time) {
        self.end(&wish);
        self.due = self.due.max(due);
        self.open.push(wish);
    }
}

impl Daemon {
    /// Has models described that somebody has announced.
    pub(super) fn try_wishes(&mut self) {
        let now = self.clock.now();
        for wish in self.wishes.due(now) {
            match listings::choose(self, Some(&wish.name)) {
                Ok(chosen) => self.describe(wish, chosen.model, chosen.title, chosen.sources),
                // Of a whole id the DHT may know who can say more, if nobody says it unasked.
                Err(_) => match wish.name.parse() {
                    Ok(_) if now < Time::ZERO.after(HEAR) => self.wishes.put_back(wish, now.after(LOOK)),
                    Ok(model) => self.describe(wish, model, String::new(), Vec::new()),
                    Err(_) => self.wishes.put_back(wish, now.after(LOOK)),
                },
            }
        }
    }

    fn describe(&self, wish: Wish, model: ModelId, title: String, mut sources: Vec<crate::ids::PeerKey>) {
        let (library, mesh, done) = (self.library.clone(), self.mesh.clone(), self.done.clone());
        tokio::spawn(async move {
            if sources.is_empty() {
                sources = mesh.find(model).await;
            }
            let known = library.known_or_fetched(&mesh, model, &title, &sources).await;
            let model = known.map(|_| model).map_err(|error| error.to_string());
            // The loop that is gone serves nothing.
            let _ = done.send(Done::Described { wish, model }).await;
        });
    }

    /// A model that was wished for is described, and served from now on; or not, and is tried again.
    pub(super) fn described(&mut self, wish: Wish, model: Result<ModelId, String>) {
        match model {
            Ok(model) => {
                self.wishes.end(&wish);
                self.serve(model, wish.policy);
            }
            Err(reason) => {
                if self.wishes.is_first_failure(&wish) {
                    tracing::warn!(model = wish.name, reason, "a model to be served could not be described");
                }
                self.wishes.put_back(wish, self.clock.now().after(RETRY));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_tried_again_until_they_come_true() {
        let wish = Wish { name: "0123abcd".to_owned(), policy: HoldPolicy::Automatic { max_units: None } };
        let mut wishes = Wishes::new(vec![wish.clone()]);
        assert_eq!(wishes.deadline(), Some(Time::ZERO));

        assert_eq!(wishes.due(Time(5)), std::slice::from_ref(&wish));
        assert_eq!((wishes.deadline(), wishes.names().count()), (None, 1));
        wishes.put_back(wish.clone(), Time(5).after(RETRY));

        assert_eq!(wishes.names().collect::<Vec<_>>(), ["0123abcd"]);
        assert_eq!(wishes.due(Time(5).after(LOOK)), []);
        assert_eq!(wishes.due(Time(5).after(RETRY)), std::slice::from_ref(&wish));
        assert_eq!([wishes.is_first_failure(&wish), wishes.is_first_failure(&wish)], [true, false]);
        wishes.end(&wish);
        assert_eq!(wishes.names().count(), 0);
    }
}
