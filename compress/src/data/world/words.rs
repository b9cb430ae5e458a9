//! The words of the world. Every list is ours; names of people and towns are put together from syllables by the seed.

use crate::data::random::Stream;

/// Jobs a person may have.
pub const JOBS: &[&str] = &[
    "baker",
    "carpenter",
    "doctor",
    "farmer",
    "fisher",
    "gardener",
    "guard",
    "judge",
    "miller",
    "miner",
    "nurse",
    "painter",
    "pilot",
    "potter",
    "sailor",
    "singer",
    "smith",
    "tailor",
    "teacher",
    "weaver",
];

/// Colours.
pub const COLOURS: &[&str] =
    &["red", "blue", "green", "yellow", "white", "black", "brown", "grey", "pink", "purple", "gold", "silver"];

/// Food, grown and eaten.
pub const FOODS: &[&str] = &[
    "bread",
    "cheese",
    "soup",
    "rice",
    "beans",
    "apples",
    "pears",
    "plums",
    "cherries",
    "carrots",
    "onions",
    "mushrooms",
    "honey",
    "nuts",
    "corn",
    "grapes",
];

/// Musical instruments.
pub const INSTRUMENTS: &[&str] =
    &["flute", "drum", "harp", "fiddle", "horn", "lute", "bell", "guitar", "piano", "trumpet", "whistle", "cello"];

/// Things that stand about, are owned, and are made of something.
pub const OBJECTS: &[&str] = &[
    "table", "chair", "lamp", "clock", "mirror", "bucket", "basket", "ladder", "hammer", "kettle", "spoon", "plate",
    "bottle", "candle", "carpet", "blanket", "wagon", "boat", "kite", "ring", "key", "box", "book", "map",
];

/// What objects are made of.
pub const MATERIALS: &[&str] =
    &["wood", "iron", "glass", "clay", "stone", "copper", "wool", "paper", "leather", "bone"];

/// Where objects are kept.
pub const ROOMS: &[&str] =
    &["kitchen", "cellar", "attic", "barn", "garden", "hall", "bedroom", "workshop", "tower", "cabin"];

/// The four regions towns lie in.
pub const REGIONS: &[&str] = &["north", "south", "east", "west"];

/// Waters a town may stand by.
pub const WATERS: &[&str] = &["river", "lake", "sea", "pond", "canal", "spring", "swamp", "waterfall"];

/// Weather a town may often have.
pub const WEATHERS: &[&str] = &["rainy", "sunny", "windy", "foggy", "snowy", "dry", "stormy", "cloudy"];

/// Times of the day, for openings.
pub const TIMES: &[&str] = &["morning", "evening", "afternoon", "night", "day"];

/// Days, in order.
pub const DAYS: &[&str] = &["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// Months, in order.
pub const MONTHS: &[&str] = &[
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Numbers, each at its own index.
pub const NUMBERS: &[&str] = &[
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
];

/// Pairs of opposites.
pub const OPPOSITES: &[(&str, &str)] = &[
    ("hot", "cold"),
    ("big", "small"),
    ("old", "young"),
    ("fast", "slow"),
    ("hard", "soft"),
    ("high", "low"),
    ("light", "dark"),
    ("long", "short"),
    ("loud", "quiet"),
    ("rich", "poor"),
    ("strong", "weak"),
    ("sweet", "sour"),
    ("thick", "thin"),
    ("wet", "dusty"),
    ("wide", "narrow"),
    ("happy", "sad"),
    ("full", "empty"),
    ("open", "closed"),
    ("clean", "dirty"),
    ("early", "late"),
];

/// An animal, and what is so of it.
#[derive(Debug, Clone, Copy)]
pub struct Animal {
    /// "dog"
    pub name: &'static str,
    /// How many legs, a word of [`NUMBERS`].
    pub legs: &'static str,
    /// What it does with its voice: "the dog barks".
    pub voice: &'static str,
    /// Where it lives: "in the {habitat}".
    pub habitat: &'static str,
    /// What it eats.
    pub diet: &'static str,
}

const fn animal(
    name: &'static str,
    legs: &'static str,
    voice: &'static str,
    habitat: &'static str,
    diet: &'static str,
) -> Animal {
    Animal { name, legs, voice, habitat, diet }
}

/// Animals, from the smallest to the biggest.
pub const ANIMALS: &[Animal] = &[
    animal("ant", "six", "taps", "soil", "crumbs"),
    animal("bee", "six", "buzzes", "hive", "nectar"),
    animal("spider", "eight", "clicks", "web", "flies"),
    animal("mouse", "four", "squeaks", "cellar", "crumbs"),
    animal("frog", "four", "croaks", "pond", "flies"),
    animal("snake", "zero", "hisses", "soil", "eggs"),
    animal("crow", "two", "caws", "forest", "seeds"),
    animal("duck", "two", "quacks", "pond", "weeds"),
    animal("hen", "two", "clucks", "barn", "seeds"),
    animal("owl", "two", "hoots", "forest", "mice"),
    animal("cat", "four", "meows", "house", "mice"),
    animal("rabbit", "four", "thumps", "meadow", "weeds"),
    animal("goose", "two", "honks", "lake", "weeds"),
    animal("fox", "four", "yelps", "forest", "hens"),
    animal("dog", "four", "barks", "house", "meat"),
    animal("goat", "four", "bleats", "hills", "leaves"),
    animal("pig", "four", "grunts", "barn", "roots"),
    animal("wolf", "four", "howls", "hills", "meat"),
    animal("deer", "four", "snorts", "meadow", "leaves"),
    animal("donkey", "four", "brays", "barn", "hay"),
    animal("cow", "four", "moos", "meadow", "hay"),
    animal("horse", "four", "neighs", "meadow", "hay"),
    animal("bear", "four", "growls", "forest", "berries"),
    animal("whale", "zero", "sings", "sea", "fish"),
];

const ONSETS: &[&str] = &["B", "D", "F", "G", "H", "J", "K", "L", "M", "N", "P", "R", "S", "T", "V", "Z"];
const VOWELS: &[&str] = &["a", "e", "i", "o", "u"];
const GIVEN_ENDS: &[&str] = &["bo", "dri", "fu", "kel", "lo", "mip", "nu", "rax", "sko", "tun", "vek", "zi"];
const FAMILY_ENDS: &[&str] = &["brand", "dorn", "gard", "hammel", "lind", "mont", "nesk", "rolf", "strom", "vitz"];
const TOWN_ENDS: &[&str] = &["brool", "dask", "fenn", "gath", "loom", "marn", "pell", "quin", "strel", "vosk"];
const TOWN_PREFIXES: &[&str] = &["Old", "New", "Upper", "Lower"];

/// `count` different words, each of an onset, a vowel and one of `ends`; no two begin alike.
fn invented(stream: &mut Stream, ends: &[&str], count: usize) -> Vec<String> {
    let mut beginnings: Vec<String> =
        ONSETS.iter().flat_map(|onset| VOWELS.iter().map(move |vowel| format!("{onset}{vowel}"))).collect();
    assert!(count <= beginnings.len(), "{count} names from {} beginnings", beginnings.len());
    stream.shuffle(&mut beginnings);
    beginnings.truncate(count);
    beginnings.into_iter().map(|beginning| beginning + *stream.pick(ends)).collect()
}

/// `count` of all the names that take one word of `first` and one of `second`.
fn combined<A: AsRef<str>>(stream: &mut Stream, first: &[A], second: &[String], count: usize) -> Vec<String> {
    let pair = |n: usize| format!("{} {}", first[n / second.len()].as_ref(), second[n % second.len()]);
    let mut names: Vec<String> = (0..first.len() * second.len()).map(pair).collect();
    assert!(count <= names.len(), "{count} names of {} possible ones", names.len());
    stream.shuffle(&mut names);
    names.truncate(count);
    names
}

/// `count` (at most 144) different names of people: a given name and a family name.
///
/// There are a dozen of each, and neither tells anything about its bearer: only both together do. So what a model knows
/// of somebody cannot lie in the embedding of one token; it has to be worked out in the blocks, which are compressed.
pub fn person_names(stream: &mut Stream, count: usize) -> Vec<String> {
    let given = invented(stream, GIVEN_ENDS, 12);
    let family = invented(stream, FAMILY_ENDS, 12);
    combined(stream, &given, &family, count)
}

/// `count` (at most 24) different names of towns, again of two words that tell nothing apart.
pub fn town_names(stream: &mut Stream, count: usize) -> Vec<String> {
    let stems = invented(stream, TOWN_ENDS, 6);
    combined(stream, TOWN_PREFIXES, &stems, count)
}
