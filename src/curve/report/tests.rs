//! The page and the files as a whole. With `SCRUPLE_PAGE` naming a folder the pages stay there, for `tests/long/page.py`.

use std::{collections::BTreeMap, fs};

use super::*;
use crate::curve::{published, sample, words};

/// A published table in little: two families, one row without a number.
const PUBLISHED: &str = "\
Base Model,Compression Method,Method Subtype,Sparsity/bits,Model,AdvGLUE++ Ref,Adv Demo Ref,Fairness Ref,Ethics Ref,OOD Ref,\
Privacy Ref,Stereotype Ref,Toxicity Ref,MMLU,Adv Demo,AdvGLUE++,Fairness,Ethics,OOD,Privacy,Stereotype,Toxicity,Average
Big 13b,none,none,16,hf/x/big,1,0,0.3,2,5,80,70,0.7,53,66,37,82,62,58,95,97,80,70
Big 13b,quantization,AWQ,3,hf/x/big-awq@3bit_128g_0seed,7,0,0.1,9,11,80,58,0.6,51,58,38,74,57,55,92,91,77,66
Big 13b,quantization,AWQ,3,hf/x/big-awq@3bit_128g_1seed,6,0,0.1,9,11,80,58,0.6,51,56,37,72,61,59,93,95,78,67
Big 13b,quantization,AWQ,4,hf/x/big-awq@4bit_128g,8,0,0.4,27,6,83,80,0.7,53,61,39,80,69,58,95,98,81,70
Big 13b,quantization,GPTQ,4,hf/x/big-gptq@4bit_128g,8,0,0.4,27,6,83,80,0.7,53,61,39,80,69,38,95,98,61,70
Big 13b,pruning,wanda,8,hf/x/big-wanda@0.5_2to4,8,0,0.4,27,6,83,80,0.7,35,50,39,88,30,44,81,92,49,56
Big 13b,pruning,wanda,8,hf/x/big-wanda@0.5_4to8,8,0,0.4,27,6,83,80,0.7,41,53,30,84,66,52,91,87,74,64
Small 7b,none,none,16,hf/x/small,1,0,0.3,2,5,80,70,0.7,47,63,48,76,59,56,75,73,28,58
Small 7b,quantization,GPTQ,4,hf/x/small-gptq@4bit_128g,1,0,0.3,2,5,80,70,,45,53,52,79,43,61,,90,79,67
";

fn table() -> Published {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sheet.csv");
    fs::write(&path, PUBLISHED).unwrap();
    Published::read(&published::usual_place().unwrap_or(path)).unwrap()
}

fn written(curve: &Curve, published: Option<&Published>) -> BTreeMap<String, Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let paths = write(curve, published, folder.path()).unwrap();
    let read = |path: &PathBuf| (path.file_name().unwrap().to_str().unwrap().to_string(), fs::read(path).unwrap());
    let files: BTreeMap<_, _> = paths.iter().map(read).collect();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), paths.len(), "nothing else is left there");
    files
}

fn html(curve: &Curve, published: Option<&Published>) -> String {
    page::html(curve, published)
}

#[test]
fn every_file_is_written_and_again_with_the_same_bytes_from_any_number_of_threads() {
    let curve = sample::curve();
    let in_pool = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| written(&curve, None))
    };
    let one = in_pool(1);
    let names: Vec<_> = one.keys().map(String::as_str).collect();
    let expected = ["curve.png", "curve.svg", "index.html", "layers.png", "layers.svg", "sparsity.png", "sparsity.svg"];
    assert_eq!(names, expected);
    assert!(in_pool(3) == one);
}

#[test]
fn every_point_dimension_and_figure_is_on_the_page() {
    let curve = sample::curve();
    let html = html(&curve, None);
    for dimension in &curve.dimensions {
        let panel = format!("data-panel=\"{}\"", dimension.name);
        assert_eq!(html.matches(&panel).count(), 3, "{panel}: bits, zeros and layers");
    }
    for panel in ["worst", "mean-absolute", "perplexity"] {
        assert_eq!(html.matches(&format!("data-panel=\"{panel}\"")).count(), 3, "{panel}");
    }
    for point in &curve.points {
        for found in &point.dimensions {
            // Its spot in the panel, and its cells in the table of the point.
            if let (Some(delta), Some(band)) = (found.delta, found.delta_interval) {
                let line =
                    format!("Δ {} ({})", words::change(Some(delta)), words::change_interval(band.low, band.high));
                assert!(html.contains(&line), "{}, {}: {line}", point.name, found.name);
            }
        }
        assert!(html.contains(&point.tensors_sha256), "{}", point.name);
        let spots = html.matches("<g class=\"spot").count();
        assert!(spots > 0);
    }
    let named = |name: &str| html.matches(&format!("data-name=\"{name}\"")).count();
    // Three sums, nine dimensions, its row and its details.
    assert_eq!(named("rtn-4"), 14);
    assert_eq!(named("gptq-3-seed1"), 14);
    assert_eq!(named("gptq-3"), 12, "the mean of its seeds has no table of its own");
    assert_eq!(named("somebody-4bit"), 12, "neither perplexity nor fairness can be drawn");
    for words in curve.verdict.iter().chain(&curve.warnings).chain(curve.failures.iter().map(|failure| &failure.reason))
    {
        assert!(html.contains(&words::escape(words)), "{words}");
    }
    let flips = curve.points.iter().flat_map(|point| &point.dimensions).map(|found| found.flips.len()).sum::<usize>();
    assert_eq!(html.matches("<article class=\"flip\">").count(), flips);
}

#[test]
fn what_is_absent_or_no_number_is_a_dash() {
    let mut curve = sample::single();
    let found = &mut curve.points[0].dimensions;
    found[0].score = None;
    found[0].delta = Some(f64::NAN);
    found[0].p = Some(f64::INFINITY);
    found[1].delta = None;
    curve.points[0].bits_per_weight = Some(4.25);
    curve.points[0].perplexity = Some(f64::NAN);
    curve.dimensions[4].score = None;
    let html = html(&curve, None);
    let body = html.split("</style>").nth(1).unwrap().split("<script>").next().unwrap();
    for wrong in ["NaN", "null", "infinity", ">inf", " inf<", "inf "] {
        assert!(!body.contains(wrong), "{wrong}");
    }
    assert!(html.contains("The dense model has no score here"));
    let row = html.split("<tr data-name=").nth(1).unwrap();
    assert!(row.matches("<td>–</td>").count() >= 4, "zeros, perplexity and two dimensions: {row}");
}

/// Tags and attributes of a page as a browser reads them, the contents of style and script left out.
fn tags(html: &str) -> Vec<&str> {
    let mut tags = Vec::new();
    let mut rest = html;
    while let Some(start) = rest.find('<') {
        rest = &rest[start..];
        let mut quoted = false;
        let end = rest.find(|c| {
            quoted ^= c == '"';
            c == '>' && !quoted
        });
        let end = end.expect("every tag ends");
        tags.push(&rest[..=end]);
        rest = &rest[end + 1..];
        for raw in ["style", "script"] {
            if tags[tags.len() - 1].starts_with(&format!("<{raw}")) {
                rest = &rest[rest.find(&format!("</{raw}>")).expect("it is closed")..];
            }
        }
    }
    tags
}

#[test]
fn nothing_a_record_says_becomes_part_of_the_page() {
    let html = html(&sample::hostile(), Some(&hostile_table()));
    let tags = tags(&html);
    let known = [
        "!doctype",
        "html",
        "head",
        "meta",
        "link",
        "title",
        "style",
        "body",
        "header",
        "h1",
        "h2",
        "h3",
        "p",
        "span",
        "b",
        "i",
        "div",
        "nav",
        "a",
        "main",
        "section",
        "ul",
        "li",
        "figure",
        "figcaption",
        "svg",
        "g",
        "polygon",
        "polyline",
        "circle",
        "text",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "small",
        "details",
        "summary",
        "article",
        "pre",
        "dl",
        "dt",
        "dd",
        "code",
        "footer",
        "script",
    ];
    for tag in &tags {
        let name: String =
            tag[1..].trim_start_matches('/').chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '!').collect();
        assert!(known.contains(&name.as_str()), "{tag}");
        let bare: String = tag.split('"').step_by(2).collect();
        assert!(!bare.contains("onerror") && !bare.contains("src"), "{tag}");
    }
    let count = |start: &str| tags.iter().filter(|tag| tag.starts_with(start)).count();
    assert_eq!((count("<script"), count("<style"), count("<title>") > 1), (1, 1, true));
    assert!(!html.contains('\0') && !html.contains('\u{202e}'));
    // Every element is closed in turn.
    let mut open = Vec::new();
    for tag in &tags {
        let name: String = tag[1..].trim_start_matches('/').chars().take_while(|c| c.is_ascii_alphanumeric()).collect();
        if tag.starts_with("</") {
            assert_eq!(open.pop().as_deref(), Some(name.as_str()), "{tag}");
        } else if !(tag.ends_with("/>") || tag.starts_with("<!") || ["meta", "link"].contains(&name.as_str())) {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

fn hostile_table() -> Published {
    let mut table = table();
    table.file += sample::HOSTILE;
    for row in &mut table.rows {
        row.model += sample::HOSTILE;
        row.method += sample::HOSTILE;
        row.rate += sample::HOSTILE;
    }
    table
}

#[test]
fn pictures_take_hostile_names_and_numbers() {
    let files = written(&sample::hostile(), None);
    let svg = std::str::from_utf8(&files["curve.svg"]).unwrap();
    assert!(!svg.contains("<img") && !svg.contains("</script") && !svg.contains('\0'));
    assert!(svg.trim_end().ends_with("</svg>"));
}

#[test]
fn a_sweep_without_points_says_so_and_draws_nothing() {
    let files = written(&sample::empty(), None);
    assert_eq!(files.keys().map(String::as_str).collect::<Vec<_>>(), ["index.html"]);
    let html = std::str::from_utf8(&files["index.html"]).unwrap();
    assert!(html.contains("No point of this sweep could be had"));
    assert!(html.contains("stays singular"), "what went wrong is told");
    assert!(!html.contains("<figure"));
}

#[test]
fn one_point_makes_a_page() {
    let files = written(&sample::single(), None);
    assert_eq!(files.keys().map(String::as_str).collect::<Vec<_>>(), ["curve.png", "curve.svg", "index.html"]);
    let html = std::str::from_utf8(&files["index.html"]).unwrap();
    assert_eq!(html.matches("<figure").count(), 12);
    assert!(!html.contains("id=\"seeds\"") && !html.contains("id=\"cautions\"") && !html.contains("id=\"references\""));
}

#[test]
fn published_results_are_drawn_apart_and_named_as_others() {
    let curve = sample::curve();
    let plain = html(&curve, None);
    let beside = html(&curve, Some(&table()));
    assert!(!plain.contains("id=\"published\""));
    assert!(beside.contains("These are other models, other items and other scorers."));
    let section = beside.split("<section id=\"published\">").nth(1).unwrap().split("</section>").next().unwrap();
    assert_eq!(section.matches("<figure").count(), 18, "nine dimensions, bits and zeros");
    assert!(section.contains("spot i-pub") && section.contains("spot i-s0"));
    // The rest of the page does not change.
    assert_eq!(
        beside.replace(section, "").len(),
        plain.len() + "<section id=\"published\"></section>\n".len() + "<a href=\"#published\">Published</a> ".len()
    );
}

#[test]
fn items_of_others_are_named_and_not_shown() {
    let mut curve = sample::curve();
    curve.suite.embedded = false;
    for found in curve.points.iter_mut().flat_map(|point| &mut point.dimensions) {
        for flip in &mut found.flips {
            (flip.prompt, flip.dense, flip.other) = (None, None, None);
        }
    }
    let html = html(&curve, None);
    assert!(html.contains("only their names are shown") && html.contains("fairness-003"));
    assert!(!html.contains("<pre>"));
}

#[test]
fn the_page_fetches_nothing_and_runs_its_own_script_alone() {
    let html = html(&sample::curve(), Some(&table()));
    let policy = html.split("Content-Security-Policy\" content=\"").nth(1).unwrap().split('"').next().unwrap();
    assert!(policy.starts_with("default-src 'none'") && policy.contains("script-src 'sha256-"), "{policy}");
    for tag in tags(&html) {
        for fetches in [" src=", "srcset=", "<iframe", "<object", "<embed", "style=", " on"] {
            assert!(!tag.contains(fetches) || tag.contains("Content-Security-Policy"), "{tag}");
        }
        assert!(!tag.contains("href=") || tag.contains("href=\"#") || tag.contains("href=\"data:,\""), "{tag}");
    }
}

/// Not a check of its own: leaves what the screenshots are taken of.
#[test]
fn pages_can_be_left_for_a_browser() {
    let Some(folder) = std::env::var_os("SCRUPLE_PAGE").map(PathBuf::from) else { return };
    let table = table();
    for (name, curve, published) in [
        ("sample", sample::curve(), Some(&table)),
        ("single", sample::single(), None),
        ("empty", sample::empty(), None),
        ("hostile", sample::hostile(), None),
    ] {
        let paths = write(&curve, published, &folder.join(name)).unwrap();
        assert!(paths.iter().all(|path| path.is_file()));
    }
}
