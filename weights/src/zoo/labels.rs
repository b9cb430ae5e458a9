//! Labels as text: a plain word, several with `|` or `;` between, or a list as Python and JSON write it.
//!
//! The authors' own tool runs the list as code; here it is read by a parser that knows quotes, commas and brackets, and
//! nothing else.

/// Most labels of one model.
const MOST: usize = 4096;

/// Longest label, bytes.
const LONGEST: usize = 200;

/// Why `label` is none, if so: what follows "label" in a sentence.
///
/// # Errors
/// If it is empty, too long, or has characters that names of things do not have.
pub fn check(label: &str) -> Result<(), String> {
    let shown: String = label.escape_debug().take(60).collect();
    if label.is_empty() {
        return Err("is empty".into());
    }
    if label.len() > LONGEST {
        return Err(format!("`{shown}…` has {} bytes, expected at most {LONGEST}", label.len()));
    }
    match label.chars().find(|c| c.is_control() || "()[]{}<>=`\"\\$".contains(*c)) {
        Some(c) => Err(format!("`{shown}` has the character `{}`; labels are plain names", c.escape_debug())),
        None => Ok(()),
    }
}

/// The labels in `text`.
///
/// # Errors
/// What is wrong, as a clause that follows the text's place.
pub fn parse(text: &str) -> Result<Vec<String>, String> {
    let text = text.trim();
    let labels = match text.starts_with(['[', '(']) {
        true => literal(text)?,
        false => {
            text.split(['|', ';']).map(|label| label.trim().to_string()).filter(|label| !label.is_empty()).collect()
        }
    };
    if labels.len() > MOST {
        return Err(format!("{} labels of one model, expected at most {MOST}", labels.len()));
    }
    for (at, label) in labels.iter().enumerate() {
        check(label).map_err(|what| format!("label {what}"))?;
        if labels[..at].contains(label) {
            return Err(format!("label `{label}` stands twice"));
        }
    }
    Ok(labels)
}

/// A list or tuple of quoted strings, numbers and bare words.
fn literal(text: &str) -> Result<Vec<String>, String> {
    let bad = |at: usize, what: &str| {
        let near: String = text.chars().skip(at).take(20).collect();
        format!("expected a list such as ['a', 'b'], found {what} at character {} (`{}`)", at + 1, near.escape_debug())
    };
    let closing = if text.starts_with('[') { ']' } else { ')' };
    let chars: Vec<char> = text.chars().collect();
    let (mut at, mut labels, mut expects_value) = (1, Vec::new(), true);
    loop {
        while chars.get(at).is_some_and(|c| c.is_whitespace()) {
            at += 1;
        }
        match chars.get(at) {
            None => return Err(bad(at, "the end")),
            Some(c) if *c == closing => {
                at += 1;
                break;
            }
            Some(',') if !expects_value => {
                expects_value = true;
                at += 1;
            }
            Some(&quote @ ('\'' | '"')) if expects_value => {
                let mut label = String::new();
                at += 1;
                loop {
                    match chars.get(at) {
                        None => return Err(bad(at, "the end inside quotes")),
                        Some(c) if *c == quote => break,
                        Some('\\') => match chars.get(at + 1) {
                            Some(&c @ ('\'' | '"')) => {
                                label.push(c);
                                at += 1;
                            }
                            _ => return Err(bad(at, "a backslash")),
                        },
                        Some(c) => label.push(*c),
                    }
                    at += 1;
                }
                at += 1;
                labels.push(label);
                expects_value = false;
            }
            Some(c) if expects_value && (c.is_alphanumeric() || "-+_.".contains(*c)) => {
                let start = at;
                while chars.get(at).is_some_and(|c| c.is_alphanumeric() || "-+_. ".contains(*c)) {
                    at += 1;
                }
                labels.push(chars[start..at].iter().collect::<String>().trim_end().to_string());
                expects_value = false;
            }
            Some(_) => return Err(bad(at, "something else")),
        }
        if labels.len() > MOST {
            return Err(format!("more than {MOST} labels of one model"));
        }
    }
    match at == chars.len() {
        true => Ok(labels),
        false => Err(bad(at, "more after its end")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_data() {
        for (text, expected) in [
            ("['apple', \"aquarium_fish\", 3]", vec!["apple", "aquarium_fish", "3"]),
            ("[]", vec![]),
            ("(1, 2,)", vec!["1", "2"]),
            ("apple|pear", vec!["apple", "pear"]),
            ("apple; pear", vec!["apple", "pear"]),
            ("[\"potter's wheel\"]", vec!["potter's wheel"]),
            ("great white shark, white shark", vec!["great white shark, white shark"]),
            ("", vec![]),
        ] {
            assert_eq!(parse(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_looks_like_code_is_refused() {
        for text in [
            "__import__('os').system('true')",
            "[__import__('os').system('true')]",
            "['a'] + ['b']",
            "[x for x in ().__class__.__base__.__subclasses__()]",
            "[['a']]",
            "['a' 'b']",
            "[,]",
            "['a",
            "[1",
            "['a\\x41']",
            "a\u{0}b",
            "a|a",
            "${HOME}",
        ] {
            let error = parse(text).unwrap_err();
            assert!(!error.is_empty() && !error.contains('\n'), "{text}: {error}");
        }
        assert!(parse(&format!("[{}]", "1,".repeat(100_000))).unwrap_err().contains("4096"));
        assert!(parse(&"a".repeat(10_000)).unwrap_err().contains("200"));
    }
}
