//! The words of the little world: who lives in it, what they hold, where they go, how they feel.

use super::random::Random;
use super::random::hash;

/// One in this many name-object-place combinations is kept out of all training text.
const HELD_OUT_ONE_IN: u64 = 8;

/// Somebody in a story.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Person {
    /// As written, with a capital.
    pub(crate) name: String,
    /// Which pronouns stand for the name.
    pub(crate) pronouns: Pronouns,
}

/// The pronouns of a person, each in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pronouns {
    /// she, her, her
    She,
    /// he, him, his
    He,
}

impl Pronouns {
    /// "she" or "he".
    pub(crate) fn subject(self) -> &'static str {
        match self {
            Self::She => "she",
            Self::He => "he",
        }
    }

    /// "her" or "him".
    pub(crate) fn object(self) -> &'static str {
        match self {
            Self::She => "her",
            Self::He => "him",
        }
    }

    /// "her" or "his".
    pub(crate) fn owner(self) -> &'static str {
        match self {
            Self::She => "her",
            Self::He => "his",
        }
    }
}

/// Somewhere to go: a noun and the preposition that says "there".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// "in", "at", "on" or "by".
    pub(crate) preposition: &'static str,
    /// Without its article.
    pub(crate) noun: &'static str,
}

/// Whether a name, an object (its colour does not count) and a place are combined in held-out
/// questions only. Training text never combines them.
pub(crate) fn held_out(name: &str, object: &str, place: Place) -> bool {
    let noun = object.rsplit(' ').next().unwrap_or(object);
    hash(&format!("{name}|{noun}|{}", place.noun)).is_multiple_of(HELD_OUT_ONE_IN)
}

/// Draws `count` people with different names; about one in `invented` of a hundred has a name made
/// of syllables, so that copying a name does not depend on having seen it.
pub(crate) fn people(random: &mut Random, count: usize, invented: usize) -> Vec<Person> {
    let mut people: Vec<Person> = Vec::with_capacity(count);
    for index in random.distinct(count, NAMES.len()) {
        let mut person = named(index);
        if random.chance(invented) {
            person.name = invented_name(random);
        }
        if people.iter().any(|other| other.name == person.name) {
            person = named(index);
        }
        people.push(person);
    }
    people
}

/// Draws `count` objects with different nouns, some with a colour: "ball", "red kite"; about one in
/// `invented` of a hundred has a made-up noun.
pub(crate) fn objects(random: &mut Random, count: usize, invented: usize) -> Vec<String> {
    let mut objects: Vec<String> = Vec::with_capacity(count);
    for index in random.distinct(count, OBJECTS.len()) {
        let made_up = random.chance(invented).then(|| invented_name(random).to_lowercase());
        let noun = made_up.as_deref().filter(|noun| !objects.iter().any(|other| other.ends_with(*noun)));
        objects.push(coloured(random, noun.unwrap_or(OBJECTS[index])));
    }
    objects
}

/// Draws `count` different places.
pub(crate) fn places(random: &mut Random, count: usize) -> Vec<Place> {
    random.distinct(count, PLACES.len()).into_iter().map(|index| PLACES[index]).collect()
}

/// Draws `count` different feelings; there are [`FEELINGS`] of them.
pub(crate) fn feelings(random: &mut Random, count: usize) -> Vec<&'static str> {
    random.distinct(count, FEELINGS.len()).into_iter().map(|index| FEELINGS[index]).collect()
}

/// Draws a name, an object, a place or a feeling.
pub(crate) fn any_word(random: &mut Random) -> String {
    match random.below(4) {
        0 => random.pick(&NAMES).to_owned(),
        1 => random.pick(&OBJECTS).to_owned(),
        2 => PLACES[random.below(PLACES.len())].noun.to_owned(),
        _ => random.pick(&FEELINGS).to_owned(),
    }
}

/// Puts "a" or "an" before `noun`.
pub(crate) fn with_article(noun: &str) -> String {
    let article = if noun.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {noun}")
}

fn named(index: usize) -> Person {
    // Names alternate, so the index says the pronouns.
    let pronouns = if index.is_multiple_of(2) { Pronouns::She } else { Pronouns::He };
    Person { name: NAMES[index].to_owned(), pronouns }
}

fn invented_name(random: &mut Random) -> String {
    let mut name = random.pick(&STARTS).to_owned();
    for _ in 0..random.between(1, 2) {
        name.push_str(random.pick(&ENDS));
    }
    name
}

fn coloured(random: &mut Random, noun: &str) -> String {
    if random.chance(50) { format!("{} {noun}", random.pick(&COLOURS)) } else { noun.to_owned() }
}

const NAMES: [&str; 40] = [
    "Mia", "Tom", "Anna", "Ben", "Lily", "Sam", "Emma", "Max", "Nora", "Leo", "Zoe", "Jack", "Ella", "Finn", "Ruby",
    "Noah", "Alice", "Oscar", "Clara", "Hugo", "Ivy", "Felix", "Rosa", "Theo", "Maya", "Paul", "Lucy", "Omar", "Eva",
    "Karl", "Jane", "Peter", "Nina", "David", "Grace", "Henry", "Sara", "Bob", "Kate", "Tim",
];

const STARTS: [&str; 24] = [
    "Al", "Bel", "Cor", "Da", "El", "Fa", "Gre", "Ha", "Is", "Jo", "Ka", "Lu", "Mar", "Ne", "Or", "Pi", "Qui", "Ro",
    "Sa", "Ta", "Ul", "Vi", "Wen", "Ya",
];

const ENDS: [&str; 20] = [
    "ba", "bert", "co", "da", "dra", "fie", "gan", "la", "lin", "mi", "mon", "na", "nie", "ra", "ric", "sa", "ta",
    "ten", "vin", "ya",
];

const COLOURS: [&str; 8] = ["red", "blue", "green", "yellow", "white", "black", "golden", "silver"];

const OBJECTS: [&str; 32] = [
    "ball", "kite", "book", "lamp", "cup", "hat", "drum", "apple", "map", "key", "rope", "bell", "coin", "shell",
    "flute", "basket", "blanket", "ribbon", "lantern", "candle", "feather", "spoon", "pie", "puzzle", "boat", "doll",
    "scarf", "umbrella", "jar", "stone", "box", "bucket",
];

const PLACES: [Place; 32] = [
    Place { preposition: "in", noun: "garden" },
    Place { preposition: "in", noun: "park" },
    Place { preposition: "in", noun: "kitchen" },
    Place { preposition: "in", noun: "forest" },
    Place { preposition: "at", noun: "market" },
    Place { preposition: "at", noun: "school" },
    Place { preposition: "on", noun: "beach" },
    Place { preposition: "on", noun: "hill" },
    Place { preposition: "at", noun: "farm" },
    Place { preposition: "by", noun: "river" },
    Place { preposition: "by", noun: "lake" },
    Place { preposition: "in", noun: "library" },
    Place { preposition: "in", noun: "barn" },
    Place { preposition: "on", noun: "bridge" },
    Place { preposition: "in", noun: "castle" },
    Place { preposition: "in", noun: "tower" },
    Place { preposition: "in", noun: "attic" },
    Place { preposition: "in", noun: "cellar" },
    Place { preposition: "at", noun: "mill" },
    Place { preposition: "at", noun: "harbor" },
    Place { preposition: "at", noun: "station" },
    Place { preposition: "in", noun: "shop" },
    Place { preposition: "at", noun: "bakery" },
    Place { preposition: "in", noun: "meadow" },
    Place { preposition: "in", noun: "cave" },
    Place { preposition: "in", noun: "yard" },
    Place { preposition: "in", noun: "museum" },
    Place { preposition: "at", noun: "zoo" },
    Place { preposition: "on", noun: "island" },
    Place { preposition: "in", noun: "village" },
    Place { preposition: "in", noun: "stable" },
    Place { preposition: "in", noun: "tent" },
];

const FEELINGS: [&str; 14] = [
    "happy", "sad", "tired", "proud", "scared", "angry", "calm", "hungry", "excited", "lonely", "brave", "shy",
    "sleepy", "worried",
];
