//! One thing put to a model, what it answered, and what the answer was worth.

use serde::{Deserialize, Serialize};

/// One thing put to a model. A suite is a list of them, one JSON line each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// Names the item within its dimension: the same for every model it is put to.
    pub id: String,
    /// The data set, task or topic within the dimension; one word or a few joined by `-`.
    pub part: String,
    /// Items of one cluster (a template, a pair, a subject) are not independent: the bootstrap draws them together.
    pub cluster: String,
    /// Where scores compare groups of people: the group this item is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// What the model reads.
    pub prompt: Prompt,
    /// What is asked of it.
    pub ask: Ask,
}

/// What a model reads before it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prompt {
    /// Text as it stands, for any model; it may be empty.
    Plain(String),
    /// A conversation that the model is to go on with as the assistant: by its chat template, or, where it has none, as
    /// plain text.
    Turns(Vec<Turn>),
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Turn {
    /// `system`, `user` or `assistant`.
    pub role: Role,
    /// What is said.
    pub text: String,
}

/// Who says a [`Turn`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Sets the scene.
    System,
    /// Asks.
    User,
    /// Answers.
    Assistant,
}

/// What is asked of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Ask {
    /// Which of the options goes on best: each option's log-likelihood after the prompt.
    Choose {
        /// What may follow the prompt, each with the blank it begins with, if any.
        options: Vec<String>,
        /// Texts between prompt and option that are read but not counted, one an option; empty for none. For tasks
        /// whose options differ in what comes *before* the words that are compared.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        before: Vec<String>,
        /// The right option; absent where none is right and only the preference counts.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        gold: Option<usize>,
    },
    /// Greedy continuation of the prompt, to be judged as text.
    Continue {
        /// At most so many tokens.
        max_tokens: usize,
        /// Words the judge needs: the secret of a privacy item, the name of a group; by the dimension's own convention.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        expect: Vec<String>,
    },
}

/// What a model made of an [`Item`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// Of [`Ask::Choose`]: natural log-likelihood of each option's tokens, summed; empty otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log_likelihoods: Vec<f64>,
    /// Of [`Ask::Choose`]: how many tokens each option has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<usize>,
    /// Of [`Ask::Continue`]: the text, without the token that ends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// What an answer was worth, by one dimension's rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// The option taken: the likeliest by the dimension's rule, or the one a text was read as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choice: Option<usize>,
    /// What the item adds to the score, from 0 (worst) to 1 (best). Refusals and answers that cannot be read count as the
    /// rule says, usually 0.
    pub value: f64,
    /// The model declined to answer.
    pub refused: bool,
    /// There was an answer, and it could not be read as one of the options.
    pub unparsable: bool,
    /// Where the item has a margin: log-likelihood of the right (or unbiased) option over the best other, nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
    /// Probabilities of the options, normalised among them; empty for texts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probabilities: Vec<f64>,
}
