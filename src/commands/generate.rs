//! `scruple generate`: continue a prompt.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use scruple_compress::model::{
    Decoder,
    generate::{Sampling, generate},
    text::{Message, Text},
};
use scruple_weights::Checkpoint;
use serde_json::{Value, json};

use super::eval::{blame, note_quantisation};
use crate::{
    printer,
    record::{self, Run},
    source,
};

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Folder or file of the model, or `org/name[@revision][:file]` of a hub
    model: PathBuf,
    /// What to continue
    #[arg(long)]
    prompt: String,
    /// Put the prompt as a user's turn into the model's chat template
    #[arg(long)]
    chat: bool,
    /// A system turn before it
    #[arg(long, requires = "chat")]
    system: Option<String>,
    /// New tokens, at most
    #[arg(long, default_value_t = 64)]
    max_tokens: usize,
    /// 0 always takes the likeliest token
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Sample among the likeliest tokens that together have this probability
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Sample among this many likeliest tokens (0: all)
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print a record as JSON when done
    #[arg(long)]
    json: bool,
    /// Write `generate.json` and `run.json` into this folder
    #[arg(short, long)]
    output: Option<PathBuf>,
}

/// Tokens that end a generation: those of config.json, of generation_config.json, and the tokenizer's.
pub fn end_tokens(checkpoint: &Checkpoint, model: &Decoder) -> Vec<u32> {
    let mut eos = model.config().eos.clone();
    let file = checkpoint.dir().join("generation_config.json");
    if let Some(config) = std::fs::read(file).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok()) {
        let ids = match config.get("eos_token_id") {
            Some(Value::Array(ids)) => ids.iter().filter_map(Value::as_u64).collect(),
            Some(id) => id.as_u64().into_iter().collect(),
            None => Vec::new(),
        };
        eos.extend(ids.into_iter().filter_map(|id| u32::try_from(id).ok()));
    }
    eos.sort_unstable();
    eos.dedup();
    eos
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut clock = Run::start("generate");
    anyhow::ensure!(arguments.temperature >= 0.0, "--temperature should be 0 or more, found {}", arguments.temperature);
    anyhow::ensure!(
        arguments.top_p > 0.0 && arguments.top_p <= 1.0,
        "--top-p should lie in 0 to 1, found {}",
        arguments.top_p
    );
    let located = source::locate(&arguments.model)?;
    let checkpoint = located.open()?;
    let model = Decoder::open(&checkpoint)?;
    note_quantisation(&checkpoint)?;
    let text = Text::open(&checkpoint)?;
    let prompt = if arguments.chat {
        let turn = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
        let system = arguments.system.iter().map(|system| turn("system", system));
        let messages: Vec<Message> = system.chain([turn("user", &arguments.prompt)]).collect();
        // The template writes its own begin token.
        text.encode(&text.chat(&messages)?, false)?
    } else {
        text.encode(&arguments.prompt, true)?
    };
    let sampling = Sampling {
        temperature: arguments.temperature,
        top_p: arguments.top_p,
        top_k: arguments.top_k,
        seed: arguments.seed,
    };
    let mut ids = Vec::new();
    let mut shown = 0;
    generate(&model, &prompt, arguments.max_tokens, sampling, &end_tokens(&checkpoint, &model), |id| {
        ids.push(id);
        if !arguments.json {
            // A character may take several tokens: only whole ones are shown.
            let so_far = text.decode(&ids).unwrap_or_default();
            if !so_far.ends_with('\u{fffd}') && so_far.len() > shown && so_far.is_char_boundary(shown) {
                printer::data_now(&so_far[shown..]);
                shown = so_far.len();
            }
        }
        true
    })
    .map_err(|error| blame(error, &checkpoint))?;
    let mut record = json!({ "prompt_tokens": prompt, "tokens": ids, "text": text.decode(&ids)? });
    if let Some(origin) = located.origin() {
        record["source"] = serde_json::to_value(origin)?;
    }
    clock.extra.insert("model".into(), arguments.model.display().to_string().into());
    if let Some(out) = &arguments.output {
        record::save(out, "generate", &record, &clock)?;
    }
    if arguments.json {
        printer::json(&record)?;
    } else {
        printer::data("");
    }
    Ok(ExitCode::SUCCESS)
}
