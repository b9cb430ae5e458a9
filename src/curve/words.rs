//! Figures and names as people read them: one place for signs, dashes and units, so that picture and page agree.

/// Stands where there is no figure.
pub const NONE: &str = "–";

/// `value` where it is a number one can draw.
pub fn finite(value: Option<f64>) -> Option<f64> {
    value.filter(|value| value.is_finite())
}

/// The mean of what there is.
pub fn mean(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.into_iter().fold((0.0, 0usize), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / count as f64)
}

/// `value` with so many digits behind the point and a real minus sign; never a minus zero.
pub fn number(value: f64, digits: usize) -> String {
    if value.abs() >= 1e7 {
        return format!("{value:.1e}").replace('-', "−");
    }
    let text = format!("{value:.digits$}");
    let nothing = !text.bytes().any(|byte| (b'1'..=b'9').contains(&byte));
    if nothing { text.trim_start_matches('-').into() } else { text.replace('-', "−") }
}

/// Points in plain letters, as a terminal and a record have them; never a minus zero.
pub fn points(value: f64) -> String {
    let text = format!("{value:.1}");
    if text == "-0.0" { "0.0".into() } else { text }
}

/// A score, or a rate in percent.
pub fn score(value: Option<f64>) -> String {
    finite(value).map_or(NONE.into(), |value| number(value, 1))
}

/// A difference in points, with its sign.
pub fn change(value: Option<f64>) -> String {
    let Some(value) = finite(value) else { return NONE.into() };
    let text = number(value, 1);
    if value > 0.0 && text.bytes().any(|byte| (b'1'..=b'9').contains(&byte)) { format!("+{text}") } else { text }
}

/// An interval of differences.
pub fn change_interval(low: f64, high: f64) -> String {
    format!("{} to {}", change(Some(low)), change(Some(high)))
}

/// A probability.
pub fn probability(value: Option<f64>) -> String {
    match finite(value) {
        None => NONE.into(),
        Some(value) if value < 0.001 => "< 0.001".into(),
        Some(value) => number(value, 3),
    }
}

/// Bits per weight, without zeros at the end.
pub fn bits(value: f64) -> String {
    let text = number(value, 2);
    text.trim_end_matches('0').trim_end_matches('.').into()
}

/// A perplexity.
pub fn perplexity(value: Option<f64>) -> String {
    finite(value).map_or(NONE.into(), |value| number(value, if value.abs() < 100.0 { 2 } else { 0 }))
}

/// Bytes in the unit that leaves a few digits; units of 1000.
pub fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["bytes", "kB", "MB", "GB", "TB"] {
        if value < 999.5 || unit == "TB" {
            let digits = usize::from(unit != "bytes" && value < 9.95);
            return format!("{value:.digits$} {unit}");
        }
        value /= 1000.0;
    }
    unreachable!("the last unit takes everything")
}

/// A count with thin gaps between groups of three.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 item`, `2 items`.
pub fn counted(number: usize, one: &str) -> String {
    format!("{} {one}{}", count(number as u64), if number == 1 { "" } else { "s" })
}

/// `machine-ethics` as a heading: `Machine ethics`.
pub fn heading(name: &str) -> String {
    let words = clean(name).replace('-', " ");
    let mut letters = words.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

/// At most so many characters.
pub fn clip(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.into();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

/// `text` without characters that act instead of being seen: controls, and those that turn the direction of what follows.
/// Line ends and tabs stay.
pub fn clean(text: &str) -> String {
    let acts = |c: char| {
        (c.is_control() && c != '\n' && c != '\t')
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
    };
    text.chars().map(|c| if acts(c) { '\u{fffd}' } else { c }).collect()
}

/// `text` for a page, between tags and within quotation marks alike.
pub fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in clean(text).chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_as_people_write_them() {
        assert_eq!(change(Some(-12.34)), "−12.3");
        assert_eq!(change(Some(2.0)), "+2.0");
        assert_eq!(change(Some(-0.04)), "0.0");
        assert_eq!(change(Some(0.04)), "0.0");
        assert_eq!(change(None), NONE);
        assert_eq!(score(Some(f64::NAN)), NONE);
        assert_eq!(score(Some(f64::INFINITY)), NONE);
        assert_eq!(probability(Some(0.0)), "< 0.001");
        assert_eq!(probability(Some(1.0)), "1.000");
        assert_eq!(bits(4.25), "4.25");
        assert_eq!(bits(4.0), "4");
        assert_eq!(bits(20.0), "20");
        assert_eq!(perplexity(Some(21.714)), "21.71");
        assert_eq!(perplexity(Some(3.2e9)), "3.2e9");
        assert_eq!(bytes(269_060_552), "269 MB");
        assert_eq!(bytes(2_500), "2.5 kB");
        assert_eq!(bytes(999_600), "1.0 MB");
        assert_eq!(bytes(12), "12 bytes");
        assert_eq!(count(1_126_000), "1,126,000");
        assert_eq!(counted(1, "item"), "1 item");
        assert_eq!(heading("machine-ethics"), "Machine ethics");
        assert_eq!(heading(""), "");
        assert_eq!(clip("abcdef", 4), "abc…");
    }

    #[test]
    fn nothing_in_a_string_acts_on_a_page() {
        assert_eq!(escape("<b a='\"'>&"), "&lt;b a=&#39;&quot;&#39;&gt;&amp;");
        assert_eq!(escape("a\0b\u{202e}c\nd"), "a\u{fffd}b\u{fffd}c\nd");
    }
}
