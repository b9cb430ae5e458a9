use scruple_compress::model::generate::{Sampling, generate};

use super::{rendering::plain, *};
use crate::{
    fixture::Fixture,
    trust::{
        item::{Ask, Item, Prompt, Role, Turn},
        suite,
    },
};

/// Largest accepted difference of a log-likelihood to the definition's, nats: both ways compute in f32 and add in
/// another order; a dozen scored tokens of a few nats are off by some 1e-6 each.
const MAX_DIFFERENCE: f64 = 1e-4;

fn turn(role: Role, text: &str) -> Turn {
    Turn { role, text: text.into() }
}

fn item(prompt: Prompt, ask: Ask) -> Item {
    Item { id: "i".into(), part: "p".into(), cluster: "c".into(), group: None, prompt, ask }
}

fn choose(prompt: &str, options: &[&str]) -> Item {
    let options = options.iter().map(|option| option.to_string()).collect();
    item(Prompt::Plain(prompt.into()), Ask::Choose { options, before: vec![], gold: None })
}

fn open(checkpoint: &Checkpoint, running: Running) -> LanguageModel {
    LanguageModel::open(checkpoint, Chat::Auto, running).unwrap()
}

/// The items of the small world that have options, some, and texts of several lengths.
fn items() -> (Vec<Item>, Vec<Item>) {
    let suite = suite::named("world").unwrap().limit(6);
    let all: Vec<Item> = suite.dimensions.into_iter().flat_map(|(_, items)| items).collect();
    let choices: Vec<Item> = all.into_iter().filter(|item| matches!(item.ask, Ask::Choose { .. })).collect();
    assert!(choices.len() > 25);
    let text = |(at, item): (usize, &Item)| Item {
        ask: Ask::Continue { max_tokens: 3 + at % 9, expect: vec![] },
        ..item.clone()
    };
    let texts = choices.iter().step_by(3).enumerate().map(text).collect();
    (choices, texts)
}

fn answers(model: &LanguageModel, items: &[Item]) -> (Vec<Answer>, Counts) {
    let put = model.put(items).unwrap();
    let mut counts = Counts::default();
    let mut all: Vec<Option<Answer>> = vec![None; items.len()];
    for chunk in model.chunks(&put) {
        for (at, answer) in chunk.iter().zip(model.answer(&put, &chunk, &mut counts).unwrap()) {
            all[*at] = Some(answer);
        }
    }
    (all.into_iter().map(Option::unwrap).collect(), counts)
}

#[test]
fn shared_and_batched_scores_equal_each_sequence_on_its_own() {
    let fixture = Fixture::tiny_world().unwrap();
    let checkpoint = Checkpoint::open(fixture.path()).unwrap();
    let (choices, _) = items();
    let model = open(&checkpoint, Running::default());
    let expected: Vec<Vec<f64>> = model
        .put(&choices)
        .unwrap()
        .iter()
        .map(|put| {
            let score = |(ids, from): (&[u32], usize)| -> f64 {
                let hidden = model.decoder.hidden_once(&ids[..ids.len() - 1]).unwrap();
                let logits: Vec<Vec<f32>> = model.decoder.logits(&hidden).unwrap().to_vec2().unwrap();
                let of = |at: usize| {
                    let total: f64 = logits[at - 1].iter().map(|&logit| f64::from(logit).exp()).sum();
                    f64::from(logits[at - 1][ids[at] as usize]) - total.ln()
                };
                (from..ids.len()).map(of).sum()
            };
            put.sequences().map(score).collect()
        })
        .collect();
    let mut computed = Vec::new();
    for (reuse, rows) in [(true, ROWS), (true, 13), (false, ROWS), (false, 40)] {
        let (found, counts) = answers(&open(&checkpoint, Running { reuse, rows }), &choices);
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found.log_likelihoods.len(), expected.len());
            for (found, expected) in found.log_likelihoods.iter().zip(expected) {
                let difference = (found - expected).abs();
                assert!(difference <= MAX_DIFFERENCE, "{reuse} {rows}: {found}, expected {expected}");
            }
        }
        assert_eq!(counts.tokens_saved > 0, reuse);
        computed.push(counts.tokens - counts.tokens_saved);
    }
    assert_eq!((computed[0], computed[2]), (computed[1], computed[3]));
    assert!(2 * computed[0] < computed[2], "{computed:?}");
}

#[test]
fn what_items_share_does_not_fill_chunks() {
    let fixture = Fixture::tiny_world().unwrap();
    let checkpoint = Checkpoint::open(fixture.path()).unwrap();
    let start = "the old king of the hill ".repeat(12);
    let items: Vec<Item> = (0..200).map(|i| choose(&format!("{start}{i}"), &[" one", " two"])).collect();
    let [shared, apart] = [true, false].map(|reuse| {
        let model = open(&checkpoint, Running { reuse, rows: ROWS });
        let put = model.put(&items).unwrap();
        let tokens: usize = put.iter().flat_map(Put::sequences).map(|(ids, _)| ids.len()).sum();
        let chunks = model.chunks(&put);
        let mut all = chunks.concat();
        all.sort_unstable();
        assert_eq!(all, (0..items.len()).collect::<Vec<_>>());
        (chunks.len(), tokens)
    });
    assert_eq!(shared.0, 1, "of {} tokens", shared.1);
    assert!(apart.0 >= apart.1.div_ceil(scheduling::CHUNK_TOKENS) && apart.0 > 2, "{apart:?}");
}

#[test]
fn texts_made_together_equal_those_made_one_by_one() {
    let fixture = Fixture::tiny_world().unwrap();
    let checkpoint = Checkpoint::open(fixture.path()).unwrap();
    let (_, mut texts) = items();
    texts.push(texts[0].clone()); // a prompt that is wholly shared
    for running in [Running::default(), Running { reuse: true, rows: 30 }] {
        let model = open(&checkpoint, running);
        let (found, counts) = answers(&model, &texts);
        let mut made = 0;
        for (put, found) in model.put(&texts).unwrap().iter().zip(found) {
            let (prompt, _) = put.sequences().next().unwrap();
            let most = put.max_tokens.unwrap();
            let ids = generate(&model.decoder, prompt, most, Sampling::GREEDY, &model.ends, |_| true).unwrap();
            assert_eq!(found.text, Some(model.text.decode(&ids).unwrap()));
            made += ids.len() as u64;
        }
        assert_eq!(counts.tokens_made, made);
    }
}

#[test]
fn prompts_and_options_part_where_the_prompts_own_tokens_end() {
    let fixture = Fixture::tiny_world().unwrap();
    let model = open(&Checkpoint::open(fixture.path()).unwrap(), Running::default());
    let put = |item: Item| model.put(&[item]).unwrap().remove(0);
    let ids = |text: &str| model.text.encode(text, false).unwrap();
    let one = put(choose("the king of", &[" the land"]));
    let whole = [model.begin.clone(), ids("the king of the land")].concat();
    assert_eq!(one.sequences().next().unwrap(), (&whole[..], model.begin.len() + ids("the king of").len()));
    // Blanks behind the prompt count as the option's.
    assert!(put(choose("the king of ", &["the land"])).same_tokens(&one));
    // Without a prompt the whole option is scored, behind what begins a text or stands in for it.
    let bare = put(choose("", &["the land"]));
    let (found, from) = bare.sequences().next().unwrap();
    assert_eq!((&found[from..], from), (&ids("the land")[..], 1));
    // A text before the option is read, and not scored.
    let before = Ask::Choose { options: vec![" land".into()], before: vec![" the".into()], gold: None };
    let apart = put(item(Prompt::Plain("the king of".into()), before));
    let (found, from) = apart.sequences().next().unwrap();
    assert_eq!((found, from), (&whole[..], model.begin.len() + ids("the king of the").len()));
}

#[test]
fn conversations_without_a_template_are_lines() {
    let turns = [
        turn(Role::System, "Be brief."),
        turn(Role::User, "One?"),
        turn(Role::Assistant, "Yes."),
        turn(Role::User, "Two?"),
    ];
    assert_eq!(plain(&turns), "Be brief.\nOne? Yes.\nTwo?");
    assert_eq!(plain(&turns[1..]), "One? Yes.\nTwo?");
}

#[test]
fn conversations_go_through_the_template_and_begun_answers_stand_behind_it() {
    let fixture = Fixture::tiny_world().unwrap();
    let checkpoint = Checkpoint::open(fixture.path()).unwrap();
    let model = open(&checkpoint, Running::default());
    let asked = model.text.chat(&[message("user", "who is the king")]).unwrap();
    let turns = [turn(Role::User, "who is the king"), turn(Role::Assistant, "it is")];
    assert_eq!(model.render(&Prompt::Turns(turns[..1].to_vec())).unwrap(), (asked.clone(), true));
    assert_eq!(model.render(&Prompt::Turns(turns.to_vec())).unwrap(), (format!("{asked}it is"), true));
    // What the tokenizer would put before a text is the template's to write.
    let ask = choose("", &["the land"]).ask;
    let put = model.put(&[item(Prompt::Turns(turns.to_vec()), ask.clone())]).unwrap().remove(0);
    let (ids, from) = put.sequences().next().unwrap();
    assert_eq!(ids, model.text.encode(&format!("{asked}it isthe land"), false).unwrap());
    assert_eq!(from, model.text.encode(&format!("{asked}it is"), false).unwrap().len());
    let off = LanguageModel::open(&checkpoint, Chat::Off, Running::default()).unwrap();
    assert_eq!(off.render(&Prompt::Turns(turns.to_vec())).unwrap(), ("who is the king it is".into(), false));
}

#[test]
fn items_that_cannot_be_put_are_refused_by_name() {
    let fixture = Fixture::tiny_world().unwrap();
    let checkpoint = Checkpoint::open(fixture.path()).unwrap();
    let model = open(&checkpoint, Running::default());
    let most = model.decoder.config().max_positions;
    let long = " land".repeat(most + 2);
    let refused = |item: Item, word: &str| {
        let error = format!("{:#}", model.put(&[item]).unwrap_err());
        assert!(error.contains("item `i`") && error.contains(word), "{error}");
    };
    refused(choose("the king", &[""]), "empty");
    refused(choose("the king", &[]), "no options");
    refused(choose("the king", &[&long]), "context");
    refused(item(Prompt::Turns(vec![]), choose("", &[" a"]).ask), "no turns");
    let none = Ask::Continue { max_tokens: 0, expect: vec![] };
    refused(item(Prompt::Plain("the king".into()), none), "max_tokens");
    // A long prompt loses its beginning and keeps what begins every text.
    let cut = model.put(&[choose(&long, &[" the king"])]).unwrap().remove(0);
    let (ids, _) = cut.sequences().next().unwrap();
    assert!(cut.cut && ids.len() == most + 1 && ids.starts_with(&model.begin));
}
