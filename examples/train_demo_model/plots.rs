//! The plots of the tales, beat by beat. Slots in braces are filled by `tales`.

/// A plot: what happens, and what can be asked about it.
#[derive(Debug)]
pub(crate) struct Plot {
    /// Told in this order, each in one of its ways.
    pub(crate) beats: &'static [&'static [&'static str]],
    /// Questions with their answers.
    pub(crate) questions: &'static [(&'static str, &'static str)],
}

/// The ways a tale may open.
pub(crate) const OPENINGS: [&str; 6] = [
    "Once upon a time there was a {trait} {child} named {hero}.",
    "Once upon a time, there lived a {trait} {child} called {hero}.",
    "Once upon a time, {hero} was a {trait} {child} who lived near the {place}.",
    "In a small house near the {place} lived a {trait} {child} named {hero}.",
    "There once was a {trait} {child} named {hero}.",
    "{hero} was a {trait} {child} with a good friend named {friend}.",
];

/// All plots.
pub(crate) const PLOTS: [Plot; 7] = [LOST, FOUND, RESCUE, STORM, GIFT, BRAVE, BRIGADE];

const LOST: Plot = Plot {
    beats: &[
        &[
            "{He} had {an_object} and took it everywhere.",
            "The thing {he} loved most was {an_object}.",
            "{His} best toy was {an_object}.",
        ],
        &[
            "One morning {hero} took the {object} to the {place}.",
            "One day {he} went to the {place} with the {object}.",
            "On a sunny day {he} carried the {object} to the {place}.",
        ],
        &[
            "{He} played until noon, but then the {object} was gone.",
            "But when it was time to go home, {he} could not find the {object}.",
            "Then the wind blew hard, and the {object} was lost.",
        ],
        &["{hero} felt very sad.", "{hero} sat down and felt sad.", "{hero} was sad and began to cry."],
        &[
            "{friend} came by and asked, \"What is wrong?\"",
            "{His} friend {friend} saw {him} and wanted to help.",
            "Just then {friend} came along the path.",
        ],
        &[
            "Together they looked under every tree and behind every wall.",
            "They looked high and low, and they did not give up.",
            "\"Let us look together,\" said {friend}.",
        ],
        &[
            "At last {friend} found the {object} under a bush.",
            "After a while {friend} found the {object} in the tall grass.",
            "Soon {friend} found the {object} behind a big rock.",
        ],
        &[
            "{hero} thanked {friend} and felt happy again.",
            "\"Thank you!\" said {hero}, who felt happy again.",
            "{hero} was happy, and the two friends walked home together.",
        ],
    ],
    questions: &[
        ("What did {hero} lose?", "{hero} lost the {object}."),
        ("Who found the {object}?", "{friend} found the {object}."),
        ("Who helped {hero}?", "{friend} helped {hero}."),
        ("Where did {hero} go?", "{hero} went to the {place}."),
        ("How did {hero} feel at the end?", "{hero} felt happy at the end."),
    ],
};

const FOUND: Plot = Plot {
    beats: &[
        &[
            "One day {he} walked to the {place}.",
            "One morning {he} went to the {place} to play.",
            "After breakfast {he} ran to the {place}.",
        ],
        &[
            "{There}, {he} found {an_object} on the ground.",
            "There {he} saw {an_object} lying in the sun.",
            "Under a bench {he} found {an_object}.",
        ],
        &[
            "\"Who does this belong to?\" {he} asked.",
            "It was pretty, but {he} knew it was not {his} own.",
            "{He} wanted to keep it, but that would not be right.",
        ],
        &[
            "So {hero} asked everyone who came by.",
            "{hero} waited and waited for someone to come.",
            "So {he} went from door to door and asked.",
        ],
        &[
            "Then {friend} came, looking very worried.",
            "At last {he} met {friend}, who looked worried.",
            "In the end {friend} came down the road and looked worried.",
        ],
        &[
            "\"I lost my {object},\" said {friend}.",
            "\"Have you seen my {object}?\" asked {friend}.",
            "{friend} had lost the {object} that day.",
        ],
        &[
            "{hero} gave the {object} back to {friend} with a smile.",
            "\"Here it is,\" said {hero}, and gave the {object} to {friend}.",
            "{hero} smiled and gave {friend} the {object}.",
        ],
        &[
            "{friend} was happy, and {hero} felt proud.",
            "{hero} felt proud, and from that day on they were best friends.",
            "They shared some bread, and {hero} felt proud.",
        ],
    ],
    questions: &[
        ("What did {hero} find?", "{hero} found the {object}."),
        ("Who lost the {object}?", "{friend} lost the {object}."),
        ("Who has the {object}?", "{friend} has the {object}."),
        ("Where did {hero} go?", "{hero} went to the {place}."),
        ("How did {hero} feel at the end?", "{hero} felt proud at the end."),
    ],
};

const RESCUE: Plot = Plot {
    beats: &[
        &[
            "One evening {he} heard a soft sound {there}.",
            "One day {he} heard someone crying {there}.",
            "On a cold day {he} heard a small voice {there}.",
        ],
        &[
            "It was a little {animal} that could not get home.",
            "There sat a small {animal}, all alone.",
            "A little {animal} had fallen into a hole.",
        ],
        &[
            "The {animal} was cold and scared.",
            "The poor {animal} was tired and hungry.",
            "The {animal} looked very scared.",
        ],
        &[
            "\"Do not be afraid,\" said {hero}. \"I will help you.\"",
            "{hero} wanted to help, but {he} did not know how.",
            "{hero} sat down next to the {animal} and spoke softly.",
        ],
        &[
            "Then {he} called {friend}, who came with {an_object}.",
            "{He} ran to {friend}, and {friend} brought {an_object}.",
            "{friend} heard them and came quickly with {an_object}.",
        ],
        &[
            "With the {object} they saved the little {animal}.",
            "Together they used the {object} to help the {animal}.",
            "The {object} was just what they needed to help the {animal}.",
        ],
        &[
            "They gave the {animal} some bread and warm milk.",
            "They took the {animal} home and made a warm bed for it.",
            "The {animal} jumped for joy and followed them home.",
        ],
        &[
            "That night {hero} felt proud and slept well.",
            "{hero} felt proud, and the {animal} was never alone again.",
            "The {animal} was safe, and {hero} felt proud.",
        ],
    ],
    questions: &[
        ("Who did {hero} help?", "{hero} helped the {animal}."),
        ("What did {friend} bring?", "{friend} brought the {object}."),
        ("Who brought the {object}?", "{friend} brought the {object}."),
        ("Where was the {animal}?", "The {animal} was {there}."),
        ("How did {hero} feel at the end?", "{hero} felt proud at the end."),
    ],
};

const STORM: Plot = Plot {
    beats: &[
        &[
            "One day {hero} and {friend} went to the {place}.",
            "On a warm day {hero} and {friend} walked to the {place}.",
            "One morning {hero} and {friend} ran to the {place}.",
        ],
        &[
            "{hero} brought {an_object}, and {friend} brought some bread.",
            "They took {an_object} with them, and some apples too.",
            "{friend} carried the food, and {hero} carried {an_object}.",
        ],
        &[
            "Suddenly the sky grew dark, and a storm came.",
            "But soon the rain began to fall, and the wind blew hard.",
            "Then there was thunder, and it began to rain.",
        ],
        &[
            "{friend} was scared of the thunder.",
            "\"I am scared,\" said {friend}.",
            "The thunder was loud, and {friend} was scared.",
        ],
        &[
            "{hero} took {friend} by the hand and found a dry place under a roof.",
            "{hero} found a dry place for them under an old tree house.",
            "So {hero} led the way to an old hut that was dry and warm.",
        ],
        &[
            "There they played with the {object} and sang songs.",
            "There they sat with the {object} and told stories.",
            "They shared the food, played with the {object}, and laughed.",
        ],
        &[
            "At last the sun came out again.",
            "When the rain stopped, there was a rainbow in the sky.",
            "After an hour the storm was over.",
        ],
        &[
            "{friend} was not scared anymore, and {hero} felt happy.",
            "They walked home hand in hand, and {hero} felt happy.",
            "\"What a day!\" said {hero}, who felt happy.",
        ],
    ],
    questions: &[
        ("Where did {hero} and {friend} go?", "{hero} and {friend} went to the {place}."),
        ("Who was scared?", "{friend} was scared."),
        ("Who went with {hero}?", "{friend} went with {hero}."),
        ("What did they play with?", "They played with the {object}."),
        ("How did {hero} feel at the end?", "{hero} felt happy at the end."),
    ],
};

const GIFT: Plot = Plot {
    beats: &[
        &[
            "It was the birthday of {his} friend {friend}.",
            "{His} friend {friend} had a birthday that day.",
            "The next day was the birthday of {his} friend {friend}.",
        ],
        &[
            "{hero} wanted to give {friend} something nice.",
            "{hero} had no gift yet and felt worried.",
            "\"What can I give to {friend}?\" {he} thought.",
        ],
        &[
            "So {he} went to the {place} to look for a gift.",
            "{He} walked to the {place} and looked around.",
            "Then {he} had an idea and ran to the {place}.",
        ],
        &[
            "There an old woman was selling {an_object}.",
            "There {he} met an old man who had {an_object}.",
            "{There}, a friendly farmer showed {him} {an_object}.",
        ],
        &[
            "{hero} worked all morning to pay for it.",
            "{hero} helped all day long and got it as a reward.",
            "\"You may have it if you help me,\" was the answer, and {hero} helped gladly.",
        ],
        &[
            "In the evening {he} gave the {object} to {friend}.",
            "Then {he} ran to {friend} and gave away the {object}.",
            "When the party began, {hero} gave {friend} the {object}.",
        ],
        &[
            "\"This is the best gift of all!\" said {friend}.",
            "{friend} smiled from ear to ear.",
            "{friend} danced around the room with joy.",
        ],
        &[
            "They ate cake and sang, and {hero} felt happy.",
            "{hero} felt happy, because giving is a joy too.",
            "{hero} was tired but felt happy.",
        ],
    ],
    questions: &[
        ("What did {hero} give to {friend}?", "{hero} gave {friend} the {object}."),
        ("Who has the {object}?", "{friend} has the {object}."),
        ("Where did {hero} go?", "{hero} went to the {place}."),
        ("Who had a birthday?", "{friend} had a birthday."),
        ("How did {hero} feel at the end?", "{hero} felt happy at the end."),
    ],
};

const BRAVE: Plot = Plot {
    beats: &[
        &[
            "Every night {he} heard a strange noise {there}.",
            "People said that something strange lived {there}.",
            "There was a strange light {there}, and nobody knew why.",
        ],
        &[
            "{hero} wanted to know what it was, but {he} was scared.",
            "{He} was too scared to go and look.",
            "{hero} was curious, but also a bit scared.",
        ],
        &[
            "\"Take my {object},\" said {friend}. \"It will help you.\"",
            "{friend} gave {him} {an_object} for good luck.",
            "{His} friend {friend} gave {him} {an_object} to hold.",
        ],
        &[
            "So {hero} took a deep breath and went to the {place}.",
            "With the {object} in {his} hand, {hero} walked to the {place}.",
            "Step by step, {hero} walked to the {place}.",
        ],
        &[
            "It was dark, and something moved.",
            "Something was waiting in the dark.",
            "There were two bright eyes in the dark.",
        ],
        &[
            "But it was only a little {animal} looking for food!",
            "But it was just a small {animal} playing!",
            "It was not a monster at all, but a friendly {animal}!",
        ],
        &[
            "{hero} laughed and sat down with the {animal}.",
            "The {animal} came closer, and {hero} laughed.",
            "{hero} gave the {animal} a bit of bread.",
        ],
        &[
            "From that day on {hero} felt brave.",
            "{hero} went home and felt brave.",
            "{hero} felt brave and told {friend} all about it.",
        ],
    ],
    questions: &[
        ("Who gave {hero} the {object}?", "{friend} gave {hero} the {object}."),
        ("What did {friend} give to {hero}?", "{friend} gave {hero} the {object}."),
        ("Where did {hero} go?", "{hero} went to the {place}."),
        ("What did {hero} find?", "{hero} found the {animal}."),
        ("How did {hero} feel at the end?", "{hero} felt brave at the end."),
    ],
};

const BRIGADE: Plot = Plot {
    beats: &[
        &[
            "One night there was a fire {there}.",
            "One evening {he} saw smoke {there}.",
            "Late one night {he} smelled smoke {there}.",
        ],
        &[
            "{hero} held {his} {object} and ran to wake up {friend}.",
            "{hero} dropped {his} {object} and ran to {friend}.",
            "{hero} had {an_object}, but that could not stop a fire.",
        ],
        &[
            "\"Fire!\" called {hero}. \"We need water!\"",
            "\"Everybody come!\" called {hero}. \"We need water!\"",
            "\"Help!\" called {hero}, and {friend} rang the big bell.",
        ],
        &[
            "One bucket was heavy, and the well was far away.",
            "Nobody could carry all the water alone.",
            "The well was far away, and nobody was strong enough alone.",
        ],
        &[
            "So {friend} had an idea: everyone should stand in a long line.",
            "\"Let us make a line,\" said {friend}.",
            "Then {friend} asked everyone to stand side by side.",
        ],
        &[
            "They passed the buckets from hand to hand, all the way to the fire.",
            "Hand to hand the buckets went, and nobody had to walk.",
            "Each one passed the bucket to the next, and the water never stopped.",
        ],
        &[
            "Before the sun came up, the fire was out.",
            "Soon the fire was out.",
            "Little by little the fire grew small, and then it was out.",
        ],
        &[
            "\"Together we are strong,\" said {hero}, who felt proud.",
            "Everyone cheered, and {hero} felt proud.",
            "{hero} felt proud, for many small hands had done a big thing.",
        ],
    ],
    questions: &[
        ("Where was the fire?", "The fire was {there}."),
        ("Who had the idea?", "{friend} had the idea."),
        ("What did they pass from hand to hand?", "They passed the buckets from hand to hand."),
        ("How did {hero} feel at the end?", "{hero} felt proud at the end."),
    ],
};
