use super::*;

fn parse(text: &str) -> Result<Sweep> {
    Sweep::parse("s.toml", text, Path::new(""))
}

fn names(text: &str) -> Vec<String> {
    parse(text).unwrap().points.into_iter().map(|point| point.name).collect()
}

#[track_caller]
fn refuses(text: &str, words: &[&str]) {
    let error = format!("{:#}", parse(text).unwrap_err());
    assert!(words.iter().all(|word| error.contains(word)), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn lists_are_axes_and_seeds_are_for_what_reads_a_text() {
    let text = "[[point]]\nmethod = [\"rtn\", \"gptq\"]\nbits = [4, 3]\ngroup_size = 64\nseeds = [0, 1]";
    assert_eq!(names(text), ["rtn-4", "rtn-3", "gptq-4", "gptq-4-seed1", "gptq-3", "gptq-3-seed1"]);
    let sweep = parse(text).unwrap();
    let seeds: Vec<_> = sweep.points.iter().map(|point| point.seed).collect();
    assert_eq!(seeds, [None, None, Some(0), Some(1), Some(0), Some(1)]);
    assert_eq!((sweep.points[5].setting.as_str(), sweep.points[5].series.as_str()), ("gptq-3", "gptq"));
    assert_eq!(sweep.points[5].rate.as_deref(), Some("3 bits"));
    let What::Made { recipe, drop: None } = &sweep.points[5].what else { panic!("a ready folder") };
    assert_eq!((recipe.stages[0].params["group_size"].as_integer(), recipe.calibration.seed), (Some(64), Some(1)));
    let text = "[[point]]\nmethod = [\"magnitude\", \"wanda\"]\npattern = [\"2:4\", \"4:8\"]\n\n[[point]]\nmethod = \"wanda\"\n\
                sparsity = [0.5, 0.625]";
    assert_eq!(names(text), ["magnitude-2of4", "magnitude-4of8", "wanda-2of4", "wanda-4of8", "wanda-50", "wanda-62.5"]);
    assert_eq!(parse(text).unwrap().points[5].rate.as_deref(), Some("62.5 %"));
    assert_eq!(parse(text).unwrap().points[5].kind, Kind::Sparse);
}

#[test]
fn other_axes_are_in_the_names_and_make_series_of_their_own() {
    let text = "[[point]]\nmethod = \"rtn\"\nbits = [4, 2]\ngroup_size = [32, 64]\nformat = [\"gptq\", \"dense\"]";
    let sweep = parse(text).unwrap();
    assert_eq!(sweep.points.len(), 8);
    assert_eq!(sweep.points[0].name, "rtn-4-group_size-32-format-gptq");
    assert_eq!(sweep.points[0].series, "rtn group_size 32 format gptq");
    assert_eq!(names("[[point]]\nmethod = \"rtn\"\nname = \"nearest\""), ["nearest-4"]);
    let given = parse("[[point]]\nfolder = \"org/model-awq@main\"").unwrap();
    assert_eq!((given.points[0].name.as_str(), given.points[0].kind), ("model-awq-main", Kind::Given));
}

#[test]
fn layers_are_an_axis_alone_and_before_a_method() {
    let alone = parse("[[point]]\nlayers.drop = [\"27\", \"3,20-27\"]").unwrap();
    let names: Vec<&str> = alone.points.iter().map(|point| point.name.as_str()).collect();
    assert_eq!(names, ["drop-27", "drop-3_20-27"]);
    assert_eq!(alone.points[1].rate.as_deref(), Some("9 layers"));
    assert_eq!((alone.points[0].series.as_str(), alone.points[0].kind), ("layers", Kind::Layers));
    let both = parse("[[point]]\nmethod = \"rtn\"\nbits = [4, 3]\nlayers.drop = [\"0\", \"0-1\"]").unwrap();
    let names: Vec<&str> = both.points.iter().map(|point| point.name.as_str()).collect();
    assert_eq!(names, ["drop-0-rtn-4", "drop-0-1-rtn-4", "drop-0-rtn-3", "drop-0-1-rtn-3"]);
    assert_eq!(
        (both.points[3].series.as_str(), both.points[3].rate.as_deref()),
        ("rtn 3 bits", Some("2 layers, 3 bits"))
    );
    assert!(both.points.iter().all(|point| point.kind == Kind::Layers));
    let many: Vec<String> = (0..40).map(|layer| (3 * layer).to_string()).collect();
    let many = parse(&format!("[[point]]\nlayers.drop = \"{}\"", many.join(","))).unwrap();
    assert_eq!(many.points[0].name, "drop-40-layers");
}

#[test]
fn what_is_wrong_is_said_in_a_sentence() {
    let point = "[[point]]\nmethod = \"rtn\"\n";
    refuses("bits = 3", &["s.toml", "line 1", "unknown field `bits`", "`suite`", "`point`"]);
    refuses(&format!("{point}[[suite]]\npath = \"world\"\nlimit = 3"), &["line 5", "unknown field `limit`", "`items`"]);
    refuses(&format!("{point}layers.drop = [1, 2]"), &["point 1", "layers.", "`drop` should be a text"]);
    refuses(&format!("{point}layers.keep = \"1\""), &["point 1", "`layers.keep`", "`layers.drop`"]);
    refuses(&format!("{point}layers = 3"), &["point 1", "`layers`", "found 3"]);
    refuses("[[point]]\nlayers.drop = \"3-x\"", &["point 1", "3-x"]);
    refuses("[[point]]\nlayers.drop = \"3\"\nbits = 4", &["point 1", "unknown key `bits`", "without a `method`"]);
    refuses("[[point]]\nlayers.drop = [\"3\", \"4\"]\nname = \"x\"", &["point 1", "`name`", "found 2"]);
    refuses("[[point]]\nmethod = \"gtpq\"", &["point 1", "unknown method `gtpq`", "`gptq`"]);
    refuses("[[point]]\nmethod = [\"rtn\", \"wanda\"]\nsparsity = 0.5", &["point 1", "method `rtn`", "`sparsity`"]);
    refuses("[[point]]\nmethod = \"gptq\"\nbits = [5]", &["point 1", "5"]);
    refuses("[[point]]\nbits = 4", &["point 1", "neither a `method` nor `layers.drop` nor a `folder`"]);
    refuses(&format!("{point}bits = []"), &["`bits` is an empty list"]);
    refuses(&format!("{point}seeds = [-1]"), &["`seeds`", "-1"]);
    refuses(&format!("{point}name = \"../x\""), &["`../x`", "name"]);
    refuses(&format!("{point}format = \"zip\""), &["unknown format `zip`", "`gptq`"]);
    refuses(&format!("{point}{point}"), &["two points are called `rtn-4`", "`name`"]);
    refuses("[[point]]\nfolder = \"x\"\nbits = 3", &["point 1", "unknown key `bits`", "`series`"]);
    refuses("[[point]]\nfolder = \"${NO_SUCH_VARIABLE}/x\"", &["NO_SUCH_VARIABLE", "environment"]);
    refuses("[[point]]\nfolder = \"${x\"", &["never closed"]);
    refuses("chat = \"perhaps\"", &["`chat`", "auto"]);
    refuses("", &["no point"]);
    refuses(&format!("bootstrap.replicates = 0\n{point}"), &["replicates"]);
    refuses(&format!("text.window = 0\n{point}"), &["text.window"]);
    refuses(&format!("{point}[[suite]]\npath = \"world\"\nitems = 0"), &["suite 1", "items"]);
    let many: Vec<String> = (0..200).map(|seed| seed.to_string()).collect();
    let many = many.join(", ");
    refuses(&format!("[[point]]\nmethod = \"rtn\"\nbits = [{many}]\ngroup_size = [{many}]"), &["more than 10000"]);
    refuses("[[point]", &["s.toml", "line 1"]);
}

#[test]
fn the_sweeps_that_come_with_the_program_are_sound() {
    for (text, points) in [(include_str!("../sweeps/embedded.toml"), 11), (include_str!("../sweeps/plain.toml"), 6)] {
        assert_eq!(parse(text).unwrap().points.len(), points);
    }
}
