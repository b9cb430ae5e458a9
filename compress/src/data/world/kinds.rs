//! The kinds of facts: one function each, and one line in [`KINDS`].

use super::words::{
    ANIMALS, COLOURS, DAYS, FOODS, INSTRUMENTS, JOBS, MATERIALS, MONTHS, NUMBERS, OBJECTS, OPPOSITES, REGIONS, ROOMS,
    WATERS, WEATHERS,
};
use super::{Kind, Question, Statement, World};
use crate::data::random::Stream;

/// Every kind of fact. A new one is a function below and a line here; the order is the order of the questions.
pub const KINDS: &[fn(&World) -> Kind] = &[
    home, job, pet, colour, food, friend, birthday, music, owns, //
    region, mayor, crop, water, weather, //
    legs, voice, habitat, diet, bigger, //
    material, room, paint, //
    sum, next, previous, opposite, category,
];

/// How many ways a question may go on, where there are that many.
const OPTIONS: usize = 8;

/// A fact before it is put into words: `answer` is so of `subject`, `wrong` are answers it might be mistaken for.
struct Fact {
    subject: String,
    pronoun: &'static str,
    answer: String,
    wrong: Vec<String>,
}

/// The kind in which each fact is told by every one of `phrasings` but one, which is held out and asked.
///
/// A phrasing is a sentence with `{s}` for the subject and, after it, ` {a}` for the answer.
fn kind(seed: u64, name: &'static str, facts: Vec<Fact>, phrasings: &[&str]) -> Kind {
    assert!(phrasings.len() >= 2, "`{name}` needs a phrasing to tell and one to hold out");
    let mut kind = Kind { name, statements: Vec::new(), questions: Vec::new() };
    for (number, mut fact) in facts.into_iter().enumerate() {
        let mut stream = Stream::new(seed, &format!("world/kind/{name}"), number as u64);
        let mut told: Vec<String> = phrasings.iter().map(|phrasing| phrasing.replace("{s}", &fact.subject)).collect();
        let held_out = told.remove(stream.below(phrasings.len()));

        stream.shuffle(&mut fact.wrong);
        fact.wrong.truncate(OPTIONS - 1);
        let answer = stream.below(fact.wrong.len() + 1);
        let mut options = fact.wrong;
        options.insert(answer, fact.answer.clone());
        let (prompt, _) = held_out.split_once(" {a}").expect("a phrasing has a blank and the answer");
        kind.questions.push(Question { prompt: prompt.into(), options, answer, kind: name.into() });

        let say = |line: &String| line.replace("{a}", &fact.answer);
        kind.statements.push(Statement {
            told: told.iter().map(say).collect(),
            held_out: vec![say(&held_out)],
            subject: fact.subject,
            pronoun: fact.pronoun,
        });
    }
    kind
}

/// Subjects with their pronouns, as [`chosen`] takes them.
type Subjects = Vec<(String, &'static str)>;

/// Facts whose answers the seed draws from `answers`; nobody is the answer to himself.
fn chosen<A: AsRef<str>>(seed: u64, name: &'static str, subjects: &Subjects, answers: &[A]) -> Vec<Fact> {
    let mut stream = Stream::new(seed, &format!("world/facts/{name}"), 0);
    let fact = |(subject, pronoun): &(String, &'static str)| {
        let mut options: Vec<String> = answers.iter().map(|answer| answer.as_ref().to_string()).collect();
        options.retain(|option| option != subject);
        let answer = options.remove(stream.below(options.len()));
        Fact { subject: subject.clone(), pronoun, answer, wrong: options }
    };
    subjects.iter().map(fact).collect()
}

/// Facts written down in a table of (subject, answer); the other answers of the table are the wrong ones.
fn known(table: impl IntoIterator<Item = (String, String)>, pronoun: &'static str) -> Vec<Fact> {
    let table: Vec<(String, String)> = table.into_iter().collect();
    let mut answers: Vec<&String> = table.iter().map(|(_, answer)| answer).collect();
    answers.sort_unstable();
    answers.dedup();
    let fact = |(subject, answer): &(String, String)| Fact {
        subject: subject.clone(),
        pronoun,
        answer: answer.clone(),
        wrong: answers.iter().filter(|&&other| other != answer).map(|&other| other.clone()).collect(),
    };
    table.iter().map(fact).collect()
}

/// Something about everybody.
fn of_people<A: AsRef<str>>(world: &World, name: &'static str, answers: &[A], phrasings: &[&str]) -> Kind {
    kind(world.seed, name, chosen(world.seed, name, &world.people, answers), phrasings)
}

/// Something about every town.
fn of_towns<A: AsRef<str>>(world: &World, name: &'static str, answers: &[A], phrasings: &[&str]) -> Kind {
    let towns = world.towns.iter().map(|town| (town.clone(), "It")).collect();
    kind(world.seed, name, chosen(world.seed, name, &towns, answers), phrasings)
}

/// Something about every object.
fn of_objects(world: &World, name: &'static str, answers: &[&str], phrasings: &[&str]) -> Kind {
    let objects = OBJECTS.iter().map(|object| (format!("The {object}"), "It")).collect();
    let mut kind = kind(world.seed, name, chosen(world.seed, name, &objects, answers), phrasings);
    lower_articles(&mut kind);
    kind
}

/// Something about every animal, read off its entry.
fn of_animals(
    world: &World,
    name: &'static str,
    answer: fn(&super::words::Animal) -> &'static str,
    phrasings: &[&str],
) -> Kind {
    let table = ANIMALS.iter().map(|animal| (format!("The {}", animal.name), answer(animal).to_string()));
    let mut kind = kind(world.seed, name, known(table, "It"), phrasings);
    lower_articles(&mut kind);
    kind
}

/// Subjects like "The fox" stand inside sentences too: there the article is small.
fn lower_articles(kind: &mut Kind) {
    let lower = |line: &mut String| *line = line.replace(" The ", " the ");
    for statement in &mut kind.statements {
        statement.told.iter_mut().chain(&mut statement.held_out).for_each(lower);
    }
    kind.questions.iter_mut().map(|question| &mut question.prompt).for_each(lower);
}

fn home(world: &World) -> Kind {
    of_people(
        world,
        "home",
        &world.towns,
        &[
            "{s} lives in {a}.",
            "The home of {s} is in {a}.",
            "{s} has a house in {a}.",
            "If you look for {s} go to {a}.",
            "Question: where does {s} live? Answer: {a}.",
        ],
    )
}

fn job(world: &World) -> Kind {
    of_people(
        world,
        "job",
        JOBS,
        &[
            "{s} works as a {a}.",
            "The job of {s} is {a}.",
            "{s} learned to be a {a}.",
            "People know {s} as the {a}.",
            "Question: what is the job of {s}? Answer: {a}.",
        ],
    )
}

fn pet(world: &World) -> Kind {
    let animals: Vec<&str> = ANIMALS.iter().map(|animal| animal.name).collect();
    of_people(
        world,
        "pet",
        &animals,
        &[
            "{s} has a pet {a}.",
            "The pet of {s} is the {a}.",
            "At home {s} feeds the {a}.",
            "Every day {s} walks the {a}.",
            "Question: which pet does {s} have? Answer: {a}.",
        ],
    )
}

fn colour(world: &World) -> Kind {
    of_people(
        world,
        "colour",
        COLOURS,
        &[
            "{s} likes the colour {a}.",
            "The best colour for {s} is {a}.",
            "{s} always dresses in {a}.",
            "The coat of {s} is {a}.",
            "Question: which colour does {s} like? Answer: {a}.",
        ],
    )
}

fn food(world: &World) -> Kind {
    of_people(
        world,
        "food",
        FOODS,
        &[
            "{s} loves to eat {a}.",
            "The best food for {s} is {a}.",
            "For dinner {s} wants {a}.",
            "Nothing tastes better to {s} than {a}.",
            "Question: what does {s} eat? Answer: {a}.",
        ],
    )
}

fn friend(world: &World) -> Kind {
    let names: Vec<&String> = world.people.iter().map(|(name, _)| name).collect();
    of_people(
        world,
        "friend",
        &names,
        &[
            "{s} is a friend of {a}.",
            "The best friend of {s} is {a}.",
            "{s} often visits {a}.",
            "You can see {s} together with {a}.",
            "Question: who is the friend of {s}? Answer: {a}.",
        ],
    )
}

fn birthday(world: &World) -> Kind {
    of_people(
        world,
        "birthday",
        MONTHS,
        &[
            "{s} was born in {a}.",
            "The birthday of {s} is in {a}.",
            "{s} turns one year older in {a}.",
            "We sing for {s} in {a}.",
            "Question: when was {s} born? Answer: {a}.",
        ],
    )
}

fn music(world: &World) -> Kind {
    of_people(
        world,
        "music",
        INSTRUMENTS,
        &[
            "{s} plays the {a}.",
            "The instrument of {s} is the {a}.",
            "At night you hear {s} on the {a}.",
            "{s} is good at the {a}.",
            "Question: what does {s} play? Answer: {a}.",
        ],
    )
}

fn owns(world: &World) -> Kind {
    of_people(
        world,
        "owns",
        OBJECTS,
        &[
            "{s} owns a {a}.",
            "In the house of {s} there is a {a}.",
            "{s} bought a {a}.",
            "From the market {s} brought a {a}.",
            "Question: what did {s} buy? Answer: {a}.",
        ],
    )
}

fn region(world: &World) -> Kind {
    of_towns(
        world,
        "region",
        REGIONS,
        &[
            "{s} lies in the {a}.",
            "The town of {s} is in the {a}.",
            "The road to {s} goes {a}.",
            "To find {s} look in the {a}.",
            "Question: where is {s}? Answer: {a}.",
        ],
    )
}

fn mayor(world: &World) -> Kind {
    let names: Vec<&String> = world.people.iter().map(|(name, _)| name).collect();
    of_towns(
        world,
        "mayor",
        &names,
        &[
            "{s} is led by {a}.",
            "The mayor of {s} is {a}.",
            "The people of {s} trust {a}.",
            "The first house in {s} belongs to {a}.",
            "Question: who leads {s}? Answer: {a}.",
        ],
    )
}

fn crop(world: &World) -> Kind {
    of_towns(
        world,
        "crop",
        FOODS,
        &[
            "{s} is known for {a}.",
            "The market of {s} sells {a}.",
            "The best thing from {s} is {a}.",
            "In {s} they grow {a}.",
            "Question: what does {s} sell? Answer: {a}.",
        ],
    )
}

fn water(world: &World) -> Kind {
    of_towns(
        world,
        "water",
        WATERS,
        &[
            "{s} stands by a {a}.",
            "The water of {s} comes from a {a}.",
            "Near {s} there is a {a}.",
            "Children of {s} swim in the {a}.",
            "Question: what is near {s}? Answer: {a}.",
        ],
    )
}

fn weather(world: &World) -> Kind {
    of_towns(
        world,
        "weather",
        WEATHERS,
        &[
            "{s} is often {a}.",
            "The weather in {s} is {a}.",
            "Days in {s} are {a}.",
            "If you visit {s} it may be {a}.",
            "Question: what is the weather in {s}? Answer: {a}.",
        ],
    )
}

fn legs(world: &World) -> Kind {
    of_animals(
        world,
        "legs",
        |animal| animal.legs,
        &[
            "{s} has {a} legs.",
            "The number of legs of {s} is {a}.",
            "{s} walks on {a} legs.",
            "If you count the legs of {s} you get {a}.",
            "Question: how many legs has {s}? Answer: {a}.",
        ],
    )
}

fn voice(world: &World) -> Kind {
    of_animals(
        world,
        "voice",
        |animal| animal.voice,
        &[
            "{s} always {a}.",
            "Listen how {s} {a}.",
            "When {s} is happy it {a}.",
            "At night {s} {a}.",
            "Question: what does {s} do? Answer: it {a}.",
        ],
    )
}

fn habitat(world: &World) -> Kind {
    of_animals(
        world,
        "habitat",
        |animal| animal.habitat,
        &[
            "{s} lives in the {a}.",
            "The home of {s} is the {a}.",
            "You find {s} in the {a}.",
            "{s} sleeps in the {a}.",
            "Question: where does {s} live? Answer: {a}.",
        ],
    )
}

fn diet(world: &World) -> Kind {
    of_animals(
        world,
        "diet",
        |animal| animal.diet,
        &[
            "{s} eats {a}.",
            "The food of {s} is {a}.",
            "{s} is out to find {a}.",
            "You can feed {s} with {a}.",
            "Question: what does {s} eat? Answer: {a}.",
        ],
    )
}

/// Of two animals, the one that stands later in the list.
fn bigger(world: &World) -> Kind {
    let mut stream = Stream::new(world.seed, "world/bigger", 0);
    let mut facts = Vec::new();
    for (rank, animal) in ANIMALS.iter().enumerate() {
        for other in [rank / 2, rank + (ANIMALS.len() - rank) / 2, stream.below(ANIMALS.len())] {
            if other.abs_diff(rank) < 3 {
                continue;
            }
            let (small, big) = if rank < other { (rank, other) } else { (other, rank) };
            facts.push(Fact {
                subject: format!("the {} and the {}", animal.name, ANIMALS[other].name),
                pronoun: "",
                answer: ANIMALS[big].name.into(),
                wrong: vec![ANIMALS[small].name.into()],
            });
        }
    }
    facts.sort_by(|a, b| a.subject.cmp(&b.subject));
    facts.dedup_by(|a, b| a.subject == b.subject);
    kind(
        world.seed,
        "bigger",
        facts,
        &[
            "Of {s} the bigger is the {a}.",
            "Compare {s}: more room is needed by the {a}.",
            "If you see {s}, the big one is the {a}.",
            "Between {s} the heavy one is the {a}.",
            "Question: which is bigger, {s}? Answer: {a}.",
        ],
    )
}

fn material(world: &World) -> Kind {
    of_objects(
        world,
        "material",
        MATERIALS,
        &[
            "{s} is made of {a}.",
            "To make {s} you need {a}.",
            "{s} was cut from {a}.",
            "The old owner built {s} from {a}.",
            "Question: what is {s} made of? Answer: {a}.",
        ],
    )
}

fn room(world: &World) -> Kind {
    of_objects(
        world,
        "room",
        ROOMS,
        &[
            "{s} stands in the {a}.",
            "Go and get {s} from the {a}.",
            "{s} was put in the {a}.",
            "We left {s} in the {a}.",
            "Question: where is {s}? Answer: {a}.",
        ],
    )
}

fn paint(world: &World) -> Kind {
    of_objects(
        world,
        "paint",
        COLOURS,
        &[
            "{s} is painted {a}.",
            "The colour of {s} is {a}.",
            "{s} looks {a}.",
            "They wanted {s} in {a}.",
            "Question: which colour has {s}? Answer: {a}.",
        ],
    )
}

/// Sums of two numbers from zero to nine.
fn sum(world: &World) -> Kind {
    let sums = (0..100).map(|n| (n / 10, n % 10));
    let facts = sums.map(|(x, y)| Fact {
        subject: format!("{} and {}", NUMBERS[x], NUMBERS[y]),
        pronoun: "",
        answer: NUMBERS[x + y].into(),
        wrong: NUMBERS.iter().filter(|&&other| other != NUMBERS[x + y]).map(ToString::to_string).collect(),
    });
    kind(
        world.seed,
        "sum",
        facts.collect(),
        &[
            "The sum of {s} is {a}.",
            "Add {s} to get {a}.",
            "Together {s} make {a}.",
            "If you count {s} you have {a}.",
            "Question: how much is {s}? Answer: {a}.",
        ],
    )
}

/// What follows a day, a month or a number.
fn next(world: &World) -> Kind {
    kind(
        world.seed,
        "next",
        steps(1),
        &[
            "After {s} comes {a}.",
            "What follows {s} is {a}.",
            "Right behind {s} there is {a}.",
            "First {s} and then {a}.",
            "Question: what comes after {s}? Answer: {a}.",
        ],
    )
}

/// What stands before a day, a month or a number.
fn previous(world: &World) -> Kind {
    kind(
        world.seed,
        "previous",
        steps(-1),
        &[
            "Before {s} comes {a}.",
            "What stands before {s} is {a}.",
            "One step back from {s} there is {a}.",
            "Going back from {s} you reach {a}.",
            "Question: what comes before {s}? Answer: {a}.",
        ],
    )
}

/// Each day, month and number with the one `step` further; days and months go round.
fn steps(step: isize) -> Vec<Fact> {
    let mut facts = Vec::new();
    for (list, round) in [(DAYS, true), (MONTHS, true), (NUMBERS, false)] {
        let last = list.len() as isize;
        let pairs = (0..last).map(|at| (at, at + step)).filter(|&(_, to)| round || (0..last).contains(&to));
        let pairs = pairs.map(|(at, to)| (list[at as usize].into(), list[to.rem_euclid(last) as usize].into()));
        facts.extend(known(pairs, ""));
    }
    facts
}

fn opposite(world: &World) -> Kind {
    let both = OPPOSITES.iter().flat_map(|&(a, b)| [(a.to_string(), b.to_string()), (b.to_string(), a.to_string())]);
    kind(
        world.seed,
        "opposite",
        known(both, ""),
        &[
            "The opposite of {s} is {a}.",
            "What is not {s} is {a}.",
            "Some are {s} and others are {a}.",
            "If it is not {s} it may be {a}.",
            "Question: what is the opposite of {s}? Answer: {a}.",
        ],
    )
}

/// What sort of thing a word names.
fn category(world: &World) -> Kind {
    let animals: Vec<&str> = ANIMALS.iter().map(|animal| animal.name).collect();
    let lists: [(&[&str], &str); 8] = [
        (&animals, "animal"),
        (JOBS, "job"),
        (COLOURS, "colour"),
        (INSTRUMENTS, "instrument"),
        (FOODS, "food"),
        (DAYS, "day"),
        (MONTHS, "month"),
        (OBJECTS, "thing"),
    ];
    let table = lists.iter().flat_map(|(words, name)| words.iter().map(|word| (word.to_string(), name.to_string())));
    kind(
        world.seed,
        "category",
        known(table, ""),
        &[
            "The word {s} is the name of some {a}.",
            "If you say {s} you speak of some {a}.",
            "In the list {s} is under {a}.",
            "With {s} you name some {a}.",
            "Question: of which sort is the word {s}? Answer: {a}.",
        ],
    )
}
