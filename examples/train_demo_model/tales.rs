//! Short tales with a hero, a wish or a trouble, and a good end. Each plot is a list of beats; each
//! beat is told in one of several ways, and the people and things stay the same throughout.

use super::facts::capital;
use super::facts::there;
use super::lexicon::Person;
use super::lexicon::Place;
use super::lexicon::Pronouns;
use super::lexicon::held_out;
use super::lexicon::objects;
use super::lexicon::people;
use super::lexicon::places;
use super::lexicon::with_article;
use super::plots::OPENINGS;
use super::plots::PLOTS;
use super::plots::Plot;
use super::random::Random;

/// Who and what a tale is about.
#[derive(Clone, Debug)]
pub(crate) struct Tale {
    hero: Person,
    friend: Person,
    object: String,
    place: Place,
    animal: &'static str,
    trait_: &'static str,
    plot: &'static Plot,
    words: Words,
}

/// Whether a tale keeps to the words of the lexicon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Words {
    /// It does.
    Known,
    /// Hero and object have made-up names; whoever asks for the tale says them.
    MadeUp,
}

/// A told tale.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    /// The first sentence or two.
    pub(crate) opening: String,
    /// All that follows, not starting with a space.
    pub(crate) rest: String,
}

impl Tale {
    /// Draws a tale.
    pub(crate) fn draw(random: &mut Random, words: Words) -> Self {
        let invented = if words == Words::MadeUp { 100 } else { 0 };
        loop {
            let cast = (people(random, 1, invented).pop(), people(random, 1, 0).pop());
            let things = (objects(random, 1, invented).pop(), places(random, 1).pop());
            let ((Some(hero), Some(friend)), (Some(object), Some(place))) = (cast, things) else { continue };
            if hero.name == friend.name {
                continue;
            }
            if held_out(&hero.name, &object, place) || held_out(&friend.name, &object, place) {
                continue;
            }
            let animal = random.pick(&ANIMALS);
            let plot = &PLOTS[random.below(PLOTS.len())];
            return Self { hero, friend, object, place, animal, trait_: random.pick(&TRAITS), plot, words };
        }
    }

    /// Tells the tale, in two paragraphs.
    pub(crate) fn tell(&self, random: &mut Random) -> Told {
        let opening = self.fill(random.pick(&OPENINGS));
        let turn = self.plot.beats.len() / 2;
        let told = |beats: &[&[&str]], random: &mut Random| {
            let sentences: Vec<String> = beats.iter().map(|beat| self.fill(random.pick(beat))).collect();
            sentences.join(" ")
        };
        let first = told(&self.plot.beats[..turn], random);
        let second = told(&self.plot.beats[turn..], random);
        Told { opening, rest: format!("{first}\n\n{second}") }
    }

    /// Questions the tale answers, with the answers.
    pub(crate) fn questions(&self) -> Vec<(String, String)> {
        self.plot.questions.iter().map(|(ask, answer)| (self.fill(ask), self.fill(answer))).collect()
    }

    /// A request for just this tale.
    pub(crate) fn request(&self, random: &mut Random) -> String {
        let has_animal = self.plot.beats.concat().concat().contains("{animal}");
        loop {
            let request = random.pick(&REQUESTS);
            let says_names = request.contains("{hero}") && request.contains("{an_object}");
            if (has_animal || !request.contains("animal}")) && (says_names || self.words == Words::Known) {
                return self.fill(request);
            }
        }
    }

    /// A request that leaves everything open.
    pub(crate) fn open_request(random: &mut Random) -> String {
        random.pick(&OPEN_REQUESTS).to_owned()
    }

    fn fill(&self, form: &str) -> String {
        let hero = self.hero.pronouns;
        let slots: [(&str, String); 18] = [
            ("{hero}", self.hero.name.clone()),
            ("{friend}", self.friend.name.clone()),
            ("{object}", self.object.clone()),
            ("{an_object}", with_article(&self.object)),
            ("{place}", self.place.noun.to_owned()),
            ("{there}", there(self.place)),
            ("{There}", capital(&there(self.place))),
            ("{animal}", self.animal.to_owned()),
            ("{an_animal}", with_article(self.animal)),
            ("{trait}", self.trait_.to_owned()),
            ("{child}", child(hero).to_owned()),
            ("{he}", hero.subject().to_owned()),
            ("{He}", capital(hero.subject())),
            ("{him}", hero.object().to_owned()),
            ("{his}", hero.owner().to_owned()),
            ("{His}", capital(hero.owner())),
            ("{they}", self.friend.pronouns.subject().to_owned()),
            ("{They}", capital(self.friend.pronouns.subject())),
        ];
        slots.iter().fold(form.to_owned(), |text, (slot, word)| text.replace(slot, word))
    }
}

fn child(pronouns: Pronouns) -> &'static str {
    match pronouns {
        Pronouns::She => "girl",
        Pronouns::He => "boy",
    }
}

const ANIMALS: [&str; 10] = ["dog", "cat", "bird", "rabbit", "fox", "duck", "goat", "horse", "mouse", "sheep"];

const TRAITS: [&str; 8] = ["kind", "clever", "little", "curious", "quiet", "brave", "cheerful", "young"];

const REQUESTS: [&str; 12] = [
    "Tell me a story about {hero} and {an_object}.",
    "Tell me a story about {hero} and {an_object}.",
    "Please tell me a story about {hero} and {friend}.",
    "Tell me a story about {hero}.",
    "Can you tell me a story about {hero}?",
    "Write a short story about {hero} and {an_object}.",
    "Tell me a story about {an_object}.",
    "Tell me about {hero} and {friend}.",
    "Tell me a story about a {child} named {hero}.",
    "I want a story about {hero}, {friend} and {an_object}.",
    "Tell me a story about {hero} and {an_animal}.",
    "Tell me a story about {an_animal}.",
];

const OPEN_REQUESTS: [&str; 6] = [
    "Tell me a story.",
    "Tell me a story, please.",
    "Can you tell me a story?",
    "I would like to hear a story.",
    "Write a short story.",
    "Tell me another story.",
];
