//! Stories made of facts, and the questions they answer: who went where, who holds what, who felt
//! how. Every question has one right answer, so a greedy answer can be compared with it exactly.

use super::lexicon::Person;
use super::lexicon::Place;
use super::lexicon::Pronouns;
use super::lexicon::feelings;
use super::lexicon::held_out;
use super::lexicon::objects;
use super::lexicon::people;
use super::lexicon::places;
use super::random::Random;

/// What is said when a story has no answer.
pub(crate) const UNKNOWN: &str = "The story does not say.";

/// A question about a story.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    /// Index of the character whose fact is asked for.
    pub(crate) about: usize,
    /// The question, with its question mark.
    pub(crate) ask: String,
    /// The only right answer.
    pub(crate) answer: String,
}

/// Which combinations of name, object and place a scene may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// None that is held out.
    Training,
    /// The given character's is held out, all others are not.
    HeldOut(usize),
}

/// Some people, each with a place and perhaps an object and a feeling.
#[derive(Clone, Debug)]
pub(crate) struct Scene {
    characters: Vec<Character>,
    kinds: Kinds,
}

#[derive(Clone, Debug)]
struct Character {
    person: Person,
    object: String,
    place: Place,
    feeling: &'static str,
    moved: bool,
    hands: Hands,
}

/// What became of the object a character had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hands {
    /// Still held, and nothing else.
    Own,
    /// Given to the character of this index.
    Gave(usize),
    /// Still held, with another.
    Both,
}

/// Which facts a scene tells beside the places.
#[derive(Clone, Copy, Debug)]
struct Kinds {
    objects: bool,
    feelings: bool,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Place,
    Object,
    Feeling,
}

impl Scene {
    /// Draws a training scene of `count` characters (at most 14).
    pub(crate) fn training(random: &mut Random, count: usize) -> Self {
        let kinds = Kinds { objects: random.chance(75), feelings: random.chance(55) };
        Self { characters: characters(random, count, Side::Training, 15), kinds }
    }

    /// Draws a scene with all kinds of facts in which the combination of character `about`, and no
    /// other, is held out.
    pub(crate) fn held_out(random: &mut Random, count: usize, about: usize) -> Self {
        let kinds = Kinds { objects: true, feelings: true };
        Self { characters: characters(random, count, Side::HeldOut(about), 0), kinds }
    }

    /// Tells the scene. It ends with `changes` times somebody walking on or giving something away.
    pub(crate) fn tell(&mut self, random: &mut Random, changes: usize) -> String {
        let mut sentences = if random.chance(60) { self.by_character(random) } else { self.by_kind(random) };
        if random.chance(30) {
            let at = random.below(sentences.len() + 1);
            sentences.insert(at, random.pick(&ASIDES).to_owned());
        }
        for _ in 0..changes {
            let given = if self.kinds.objects && random.chance(50) { self.give(random) } else { None };
            sentences.push(given.unwrap_or_else(|| self.move_someone(random)));
        }
        sentences.join(" ")
    }

    /// All questions the scene answers, one of each kind for each character, in order.
    pub(crate) fn questions(&self, random: &mut Random) -> Vec<Question> {
        let mut questions = Vec::new();
        for (about, character) in self.characters.iter().enumerate() {
            for (ask, answer) in self.asked_of(random, character) {
                questions.push(Question { about, ask, answer });
            }
        }
        questions
    }

    /// A question about somebody who is not in the scene.
    pub(crate) fn unknown(&self, random: &mut Random) -> Option<Question> {
        let stranger = people(random, 1, 15).pop()?.name;
        let known = self.characters.iter().any(|character| character.person.name == stranger);
        let ask = fill(WHERE_PERSON[random.below(WHERE_PERSON.len())].0, &stranger, "");
        (!known).then(|| Question { about: self.characters.len(), ask, answer: UNKNOWN.to_owned() })
    }

    /// Whether the combinations in this scene are those its `side` allows.
    #[cfg(test)]
    pub(crate) fn keeps_to(&self, side: Side) -> bool {
        self.characters.iter().enumerate().all(|(index, character)| {
            let out = held_out(&character.person.name, &character.object, character.place);
            out == (side == Side::HeldOut(index))
        })
    }

    fn asked_of(&self, random: &mut Random, character: &Character) -> Vec<(String, String)> {
        let name = &character.person.name;
        let place = character.place.noun;
        let there = there(character.place);
        let mut asked = Vec::new();
        let mut add = |forms: &[(&str, &str)], random: &mut Random, first: &str, second: &str| {
            let (ask, answer) = forms[random.below(forms.len())];
            asked.push((fill(ask, first, second), capital(&fill(answer, first, second))));
        };
        let (ask, answer) = WHERE_PERSON[random.below(WHERE_PERSON.len())];
        let target = if answer.contains("went") { format!("to the {place}") } else { there.clone() };
        add(&[(ask, answer)], random, name, &target);
        add(&WHO_THERE, random, name, &there);
        if self.kinds.objects {
            if let Hands::Gave(receiver) = character.hands {
                add(&WHO_HOLDS, random, &self.characters[receiver].person.name, &character.object);
            } else {
                add(&WHO_HAS, random, name, &character.object);
            }
            if character.hands == Hands::Own {
                add(&WHAT_HAS, random, name, &character.object);
            }
            if !character.moved && character.hands == Hands::Own {
                add(&WHERE_OBJECT, random, &character.object, &there);
            }
        }
        if self.kinds.feelings {
            add(&HOW_FEELS, random, name, character.feeling);
            add(&WHO_FEELS, random, name, character.feeling);
        }
        asked
    }

    fn by_character(&self, random: &mut Random) -> Vec<String> {
        let mut sentences = Vec::new();
        for index in random.distinct(self.characters.len(), self.characters.len()) {
            let character = &self.characters[index];
            let mut kinds = self.told(random);
            let mut subject = character.person.name.clone();
            while let Some(kind) = kinds.pop() {
                let joined = self.kinds.objects && matches!(kind, Kind::Place) && random.chance(50);
                if joined && kinds.iter().any(|kind| matches!(kind, Kind::Object)) {
                    kinds.retain(|kind| !matches!(kind, Kind::Object));
                    sentences.push(place_and_object(random, character, &subject));
                } else {
                    sentences.push(sentence(random, character, kind, &subject));
                }
                if random.chance(60) {
                    subject = capital(character.person.pronouns.subject());
                }
            }
        }
        sentences
    }

    fn by_kind(&self, random: &mut Random) -> Vec<String> {
        let mut sentences = Vec::new();
        for kind in self.told(random) {
            for index in random.distinct(self.characters.len(), self.characters.len()) {
                let character = &self.characters[index];
                sentences.push(sentence(random, character, kind, &character.person.name));
            }
        }
        sentences
    }

    fn told(&self, random: &mut Random) -> Vec<Kind> {
        let mut kinds = vec![Kind::Place];
        if self.kinds.objects {
            kinds.push(Kind::Object);
        }
        if self.kinds.feelings {
            kinds.push(Kind::Feeling);
        }
        random.shuffle(&mut kinds);
        kinds
    }

    /// Lets somebody give their object away, if two are there who can.
    fn give(&mut self, random: &mut Random) -> Option<String> {
        let [giver, receiver]: [usize; 2] = random.distinct(2, self.characters.len()).try_into().ok()?;
        let (from, to) = (&self.characters[giver], &self.characters[receiver]);
        let free = from.hands == Hands::Own && to.hands == Hands::Own;
        if !free || held_out(&to.person.name, &from.object, to.place) {
            return None;
        }
        let told = fill(random.pick(&GIFTS), &from.person.name, &from.object).replace("{3}", &to.person.name);
        self.characters[giver].hands = Hands::Gave(receiver);
        self.characters[receiver].hands = Hands::Both;
        Some(told)
    }

    fn move_someone(&mut self, random: &mut Random) -> String {
        let all = random.distinct(self.characters.len(), self.characters.len());
        // Whoever holds two objects stays, so that no other combination has to be checked.
        let Some(index) = all.into_iter().find(|index| self.characters[*index].hands == Hands::Own) else {
            return random.pick(&ASIDES).to_owned();
        };
        let taken: Vec<Place> = self.characters.iter().map(|character| character.place).collect();
        let character = &mut self.characters[index];
        for place in places(random, 2 + taken.len()) {
            if !taken.contains(&place) && !held_out(&character.person.name, &character.object, place) {
                character.place = place;
                character.moved = true;
                break;
            }
        }
        fill(random.pick(&MOVES), &character.person.name, character.place.noun)
    }
}

/// Draws `count` people with one plain fact each, and all questions about them. Each answer is a
/// sentence of the story, word for word: what there is to learn first.
pub(crate) fn drill(random: &mut Random, count: usize) -> (String, Vec<Question>) {
    let same = random.below(2 * DRILLS.len());
    let mut sentences = Vec::new();
    let mut questions = Vec::new();
    for (about, character) in characters(random, count, Side::Training, 0).into_iter().enumerate() {
        let kind = if same < DRILLS.len() { same } else { random.below(DRILLS.len()) };
        let mut seconds = vec![there(character.place), character.object, character.feeling.to_owned()];
        let second = seconds.swap_remove(kind);
        let [answer, forward, back] = DRILLS[kind].map(|form| fill(form, &character.person.name, &second));
        questions.extend([forward, back].map(|ask| Question { about, ask, answer: answer.clone() }));
        sentences.push(answer);
    }
    (sentences.join(" "), questions)
}

/// "in the garden".
pub(crate) fn there(place: Place) -> String {
    format!("{} the {}", place.preposition, place.noun)
}

/// `text` with its first letter in upper case.
pub(crate) fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn characters(random: &mut Random, count: usize, side: Side, invented: usize) -> Vec<Character> {
    // Nearly every draw finds a place for everyone, so this ends soon.
    loop {
        let people = people(random, count, invented);
        let objects = objects(random, count, invented / 2);
        let feelings = feelings(random, count);
        let mut characters: Vec<Character> = Vec::with_capacity(count);
        for ((person, object), feeling) in people.into_iter().zip(objects).zip(feelings) {
            let keep_out = side == Side::HeldOut(characters.len());
            let taken: Vec<Place> = characters.iter().map(|character| character.place).collect();
            let fits = |place: &Place| !taken.contains(place) && held_out(&person.name, &object, *place) == keep_out;
            let Some(place) = places(random, 32).into_iter().find(fits) else { break };
            characters.push(Character { person, object, place, feeling, moved: false, hands: Hands::Own });
        }
        if characters.len() == count {
            return characters;
        }
    }
}

fn sentence(random: &mut Random, character: &Character, kind: Kind, subject: &str) -> String {
    match kind {
        Kind::Place => place_sentence(random, character, subject),
        Kind::Object => fill(random.pick(&OBJECT_FACTS), subject, &character.object),
        Kind::Feeling => fill(random.pick(&FEELING_FACTS), subject, character.feeling),
    }
}

fn place_sentence(random: &mut Random, character: &Character, subject: &str) -> String {
    if random.chance(50) {
        fill(random.pick(&GOING_FACTS), subject, character.place.noun)
    } else {
        fill(random.pick(&BEING_FACTS), subject, &there(character.place))
    }
}

fn place_and_object(random: &mut Random, character: &Character, subject: &str) -> String {
    let form = random.pick(&JOINED_FACTS);
    // A name keeps its capital inside a sentence, a pronoun does not.
    let pronoun = Pronouns::subject(character.person.pronouns);
    let inner = if subject == character.person.name { subject } else { pronoun };
    fill(form, if form.starts_with("{1}") { subject } else { inner }, &character.object)
        .replace("{place}", character.place.noun)
        .replace("{there}", &there(character.place))
        .replace("{There}", &capital(&there(character.place)))
}

fn fill(form: &str, first: &str, second: &str) -> String {
    form.replace("{1}", first).replace("{2}", second)
}

const DRILLS: [[&str; 3]; 3] = [
    ["{1} is {2}.", "Where is {1}?", "Who is {2}?"],
    ["{1} has the {2}.", "What does {1} have?", "Who has the {2}?"],
    ["{1} felt {2}.", "How did {1} feel?", "Who felt {2}?"],
];

const ASIDES: [&str; 8] = [
    "The sun was warm.",
    "It was a windy day.",
    "A dog barked.",
    "The birds sang.",
    "It was getting late.",
    "Soft rain began to fall.",
    "The sky was blue.",
    "Everyone was busy.",
];

const GOING_FACTS: [&str; 6] = [
    "{1} went to the {2}.",
    "{1} walked to the {2}.",
    "{1} ran to the {2}.",
    "{1} is going to the {2}.",
    "{1} came to the {2}.",
    "{1} hurried to the {2}.",
];

const BEING_FACTS: [&str; 5] =
    ["{1} is {2}.", "{1} was {2}.", "{1} stayed {2}.", "{1} is playing {2}.", "{1} waited {2}."];

const OBJECT_FACTS: [&str; 6] = [
    "{1} has the {2}.",
    "{1} took the {2}.",
    "{1} picked up the {2}.",
    "{1} is holding the {2}.",
    "{1} found the {2}.",
    "{1} carried the {2}.",
];

const FEELING_FACTS: [&str; 4] = ["{1} felt {2}.", "{1} was {2}.", "{1} is {2}.", "{1} looked {2}."];

const JOINED_FACTS: [&str; 6] = [
    "{1} took the {2} to the {place}.",
    "{1} went to the {place} with the {2}.",
    "{1} was {there} with the {2}.",
    "{1} brought the {2} to the {place}.",
    "{1} is {there} and has the {2}.",
    "{There}, {1} held the {2}.",
];

const MOVES: [&str; 5] = [
    "Later, {1} went to the {2}.",
    "Then {1} went to the {2}.",
    "After that, {1} walked to the {2}.",
    "At last {1} ran to the {2}.",
    "In the evening {1} went to the {2}.",
];

const GIFTS: [&str; 4] = [
    "{1} gave the {2} to {3}.",
    "Then {1} gave {3} the {2}.",
    "Later, {1} gave the {2} to {3}.",
    "{3} took the {2} from {1}.",
];

const WHERE_PERSON: [(&str, &str); 5] = [
    ("Where is {1}?", "{1} is {2}."),
    ("Where is {1} now?", "{1} is {2}."),
    ("Where did {1} go?", "{1} went {2}."),
    ("Where was {1}?", "{1} was {2}."),
    ("Can you tell me where {1} is?", "{1} is {2}."),
];

const WHO_THERE: [(&str, &str); 3] =
    [("Who is {2}?", "{1} is {2}."), ("Who was {2}?", "{1} was {2}."), ("Who can be found {2}?", "{1} is {2}.")];

const WHAT_HAS: [(&str, &str); 3] = [
    ("What does {1} have?", "{1} has the {2}."),
    ("What is {1} holding?", "{1} has the {2}."),
    ("What did {1} take?", "{1} took the {2}."),
];

const WHO_HAS: [(&str, &str); 3] = [
    ("Who has the {2}?", "{1} has the {2}."),
    ("Who is holding the {2}?", "{1} has the {2}."),
    ("Who took the {2}?", "{1} took the {2}."),
];

const WHO_HOLDS: [(&str, &str); 2] =
    [("Who has the {2}?", "{1} has the {2}."), ("Who is holding the {2}?", "{1} has the {2}.")];

const WHERE_OBJECT: [(&str, &str); 2] =
    [("Where is the {1}?", "The {1} is {2}."), ("Where was the {1}?", "The {1} was {2}.")];

const HOW_FEELS: [(&str, &str); 3] = [
    ("How does {1} feel?", "{1} feels {2}."),
    ("How did {1} feel?", "{1} felt {2}."),
    ("How was {1}?", "{1} was {2}."),
];

const WHO_FEELS: [(&str, &str); 3] =
    [("Who feels {2}?", "{1} feels {2}."), ("Who felt {2}?", "{1} felt {2}."), ("Who was {2}?", "{1} was {2}.")];
