//! Documents to learn from: conversations and plain stories, as a person would have them.

use super::facts::Question;
use super::facts::Scene;
use super::facts::drill;
use super::lexicon::any_word;
use super::random::Random;
use super::tales::Tale;
use super::tales::Words;

/// Characters in a held-out question's story: one in eight is the one asked for.
pub(crate) const HELD_OUT_CHARACTERS: usize = 8;

/// A piece of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// A system message.
    System(String),
    /// What the user says.
    User(String),
    /// A short answer; weighs most in training.
    Answer(String),
    /// A story told by the model.
    Story(String),
    /// Text outside any conversation.
    Plain(String),
}

/// How far training has come; stories grow with it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stage {
    /// Most characters in a story.
    most: usize,
    /// Of a hundred documents, how many are stories with questions.
    quizzes: usize,
    /// Of a hundred stories with questions, how many are drills.
    drills: usize,
    /// Of a hundred drills, how many only ask to repeat something.
    echoes: usize,
}

impl Stage {
    /// The stage of `step`.
    pub(crate) fn at(step: usize) -> Self {
        let reached = GROWTH.iter().rev().find(|(from, _)| *from <= step);
        reached.map_or(GROWTH[0].1, |(_, stage)| *stage)
    }
}

/// The stages, with the steps from which they hold. Repeating teaches to copy, drills teach to look a
/// fact up, and only then do long stories told in many ways teach anything: begun with those, training
/// was still guessing after 700 steps (measured).
const GROWTH: [(usize, Stage); 4] = [
    (0, Stage { most: 4, quizzes: 90, drills: 100, echoes: 40 }),
    (300, Stage { most: 6, quizzes: 75, drills: 50, echoes: 20 }),
    (500, Stage { most: 8, quizzes: 68, drills: 20, echoes: 20 }),
    (750, Stage { most: 10, quizzes: 68, drills: 8, echoes: 20 }),
];

/// Draws a training document.
pub(crate) fn document(random: &mut Random, stage: Stage) -> Vec<Part> {
    if random.chance(stage.quizzes) {
        return match (random.chance(stage.drills), random.chance(stage.echoes)) {
            (false, _) => quiz(random, stage),
            (true, false) => drilled(random, stage),
            (true, true) => echo(random),
        };
    }
    match random.below(8) {
        0..2 => plain_tale(random),
        2..7 => told_tale(random),
        _ => small_talk(random),
    }
}

/// A held-out question: the conversation up to it, and the answer.
pub(crate) fn held_out_question(random: &mut Random) -> (Vec<Part>, Question) {
    let about = random.below(HELD_OUT_CHARACTERS);
    let mut scene = Scene::held_out(random, HELD_OUT_CHARACTERS, about);
    let story = scene.tell(random, 0);
    let mut questions = scene.questions(random);
    questions.retain(|question| question.about == about);
    let question = questions.swap_remove(random.below(questions.len()));
    (vec![Part::User(format!("{story} {}", question.ask))], question)
}

fn quiz(random: &mut Random, stage: Stage) -> Vec<Part> {
    let count = random.between(2, stage.most);
    let mut scene = Scene::training(random, count);
    let changes = if random.chance(30) { random.between(1, 2) } else { 0 };
    let story = scene.tell(random, changes);
    let mut questions = scene.questions(random);
    random.shuffle(&mut questions);
    let mut parts = system(random);
    if random.chance(4) {
        parts.extend(talk(&TALKS[random.below(TALKS.len())], random));
    }
    let talked = parts.len();
    if random.chance(8) {
        parts.push(Part::User(story.clone()));
        parts.push(Part::Answer(random.pick(&HEARD).to_owned()));
    }
    for question in questions.into_iter().take(random.between(4, 9)) {
        let question = match scene.unknown(random) {
            Some(unknown) if random.chance(4) => unknown,
            Some(_) | None => question,
        };
        let ask = as_typed(random, &question.ask);
        let told = parts.len() > talked;
        parts.push(Part::User(if told { ask } else { with_story(random, &story, &ask) }));
        parts.push(Part::Answer(question.answer));
    }
    parts
}

fn drilled(random: &mut Random, stage: Stage) -> Vec<Part> {
    let count = random.between(2, stage.most);
    let (story, mut questions) = drill(random, count);
    random.shuffle(&mut questions);
    let mut parts = Vec::new();
    for question in questions.into_iter().take(8) {
        parts.push(Part::User(if parts.is_empty() { format!("{story} {}", question.ask) } else { question.ask }));
        parts.push(Part::Answer(question.answer));
    }
    parts
}

fn echo(random: &mut Random) -> Vec<Part> {
    let mut parts = Vec::new();
    for _ in 0..2 {
        let count = random.between(4, 16);
        let words: Vec<String> = (0..count).map(|_| any_word(random)).collect();
        let text = words.join(" ");
        parts.push(Part::User(format!("{}{text}", random.pick(&ECHOES))));
        parts.push(Part::Story(text));
    }
    parts
}

fn with_story(random: &mut Random, story: &str, ask: &str) -> String {
    match random.below(10) {
        0..6 => format!("{story} {ask}"),
        6..8 => format!("{story}\n{ask}"),
        8 => format!("{story}\n\n{ask}"),
        _ => format!("Story: {story}\nQuestion: {ask}"),
    }
}

/// People do not always type capitals and question marks.
fn as_typed(random: &mut Random, ask: &str) -> String {
    if random.chance(92) {
        return ask.to_owned();
    }
    let mut letters = ask.trim_end_matches('?').chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

fn plain_tale(random: &mut Random) -> Vec<Part> {
    let told = Tale::draw(random, Words::Known).tell(random);
    vec![Part::Plain(format!("{} {}", told.opening, told.rest))]
}

fn told_tale(random: &mut Random) -> Vec<Part> {
    let mut parts = system(random);
    if random.chance(12) {
        parts.extend(talk(&TALKS[random.below(TALKS.len())], random));
    }
    let open = random.chance(20);
    let made_up = !open && random.chance(25);
    let tale = Tale::draw(random, if made_up { Words::MadeUp } else { Words::Known });
    let told = tale.tell(random);
    if open {
        parts.push(Part::User(Tale::open_request(random)));
        parts.push(Part::Story(format!("{} {}", told.opening, told.rest)));
    } else if random.chance(10) {
        parts.push(Part::User(format!("{}{}", random.pick(&CONTINUE), told.opening)));
        parts.push(Part::Story(told.rest));
    } else {
        parts.push(Part::User(tale.request(random)));
        parts.push(Part::Story(format!("{} {}", told.opening, told.rest)));
    }
    let mut questions = tale.questions();
    random.shuffle(&mut questions);
    for (ask, answer) in questions.into_iter().take(random.between(1, 4)) {
        parts.push(Part::User(as_typed(random, &ask)));
        parts.push(Part::Answer(answer));
    }
    if random.chance(15) {
        parts.extend(talk(&THANKS, random));
    }
    if random.chance(12) {
        let told = Tale::draw(random, Words::Known).tell(random);
        parts.push(Part::User(Tale::open_request(random)));
        parts.push(Part::Story(format!("{} {}", told.opening, told.rest)));
    }
    parts
}

fn small_talk(random: &mut Random) -> Vec<Part> {
    let mut parts = system(random);
    for index in random.distinct(3, TALKS.len()) {
        parts.extend(talk(&TALKS[index], random));
    }
    parts
}

fn talk(talk: &Talk, random: &mut Random) -> [Part; 2] {
    let said = random.pick(talk.said);
    let said = if random.chance(30) { said.trim_end_matches(['.', '!', '?']).to_lowercase() } else { said.to_owned() };
    [Part::User(said), Part::Answer(random.pick(talk.answers).to_owned())]
}

fn system(random: &mut Random) -> Vec<Part> {
    if random.chance(12) { vec![Part::System(random.pick(&SYSTEMS).to_owned())] } else { Vec::new() }
}

const SYSTEMS: [&str; 4] = [
    "You are a helpful assistant.",
    "You are a friendly storyteller.",
    "Answer in one short sentence.",
    "You are a helpful assistant. Be kind and brief.",
];

const ECHOES: [&str; 3] = ["Repeat: ", "Say this again: ", "Repeat after me: "];

const HEARD: [&str; 3] = [
    "Thank you for the story. What would you like to know?",
    "I am listening. What is your question?",
    "That is a nice story. Ask me about it!",
];

const CONTINUE: [&str; 3] = ["Continue this story: ", "Go on with this story: ", "How does this story go on? "];

/// Something people say, and what to answer.
struct Talk {
    said: &'static [&'static str],
    answers: &'static [&'static str],
}

const THANKS: Talk = Talk {
    said: &["Thank you!", "Thanks.", "That was a nice story.", "Thank you very much."],
    answers: &["You are welcome!", "You are welcome! Shall I tell you another story?"],
};

const TALKS: [Talk; 8] = [
    Talk {
        said: &["Hello!", "Hi!", "Hello there.", "Good morning.", "Good evening.", "Hey!"],
        answers: &["Hello! Shall I tell you a story?", "Hello! Tell me who went where, and ask me about it."],
    },
    Talk {
        said: &["Who are you?", "What is your name?", "What are you?", "Are you a person?"],
        answers: &["I am the demo model of Brigade, a bucket brigade for language models."],
    },
    Talk {
        said: &["What is Brigade?", "What does Brigade do?", "Tell me about Brigade."],
        answers: &[
            "Brigade is a bucket brigade for language models: each peer holds some layers and passes the work along.",
        ],
    },
    Talk {
        said: &["What can you do?", "Can you help me?", "Help!", "What do you know?"],
        answers: &[
            "I can tell short stories and answer questions about who went where, who has what, and how someone felt.",
        ],
    },
    Talk {
        said: &["How are you?", "How do you feel?", "Are you well?"],
        answers: &["I am well, thank you. Shall I tell you a story?"],
    },
    Talk { said: &["Goodbye!", "Bye.", "See you later.", "Good night."], answers: &["Goodbye! Come back soon."] },
    Talk {
        said: &[
            "What is two plus two?",
            "What is the capital of France?",
            "Write a computer program.",
            "Who is the president?",
            "What is the weather like?",
            "Translate this sentence.",
            "What time is it?",
        ],
        answers: &["I am only a small demo model, so I do not know. But I can tell you a story."],
    },
    THANKS,
];

#[cfg(test)]
mod tests {
    use super::super::facts::Side;
    use super::*;

    #[test]
    fn a_held_out_question_is_about_each_character_alike() {
        let mut asked = [0; HELD_OUT_CHARACTERS];
        for index in 0..800 {
            asked[held_out_question(&mut Random::stream(3, index)).1.about] += 1;
        }

        assert!(asked.iter().all(|count| (60..140).contains(count)), "{asked:?}");
    }

    #[test]
    fn training_scenes_hold_no_held_out_combination() {
        for index in 0..500 {
            let mut random = Random::stream(4, index);
            let mut scene = Scene::training(&mut random, 10);
            scene.tell(&mut random, 2);
            assert!(scene.keeps_to(Side::Training), "{scene:?}");
        }
    }
}
