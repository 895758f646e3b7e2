//! The words of comments and documentation: plain English, so that a newcomer understands them at once.
//!
//! It looks for the patterns that mislead most, and judges nothing else. Each finding names its file, line and remedy.

use std::fs;
use std::path::{Path, PathBuf};

/// First words that make a whole comment a clause without a subject of its own.
const CLAUSES: [&str; 8] = ["What", "Who", "Whom", "Whose", "Whether", "Where", "How", "Why"];
const CLAUSE: &str =
    "begin with a noun (a thing), a verb (a function), or \"Returns true if\" / \"True if\" (a boolean)";

/// Words to avoid in a comment, each with its remedy. They are compared in lower case, as whole words.
const WORDS: [(&str, &str); 20] = [
    ("whoever", "name the caller, client or thread"),
    ("whomever", "name the caller, client or thread"),
    ("who asks", "say \"the client\" or \"the caller\""),
    ("for who", "say \"for clients that\""),
    ("so many", "say \"this many\", or name the number"),
    ("told", "say \"sent\", \"reported\", \"logged\" or \"hears of\""),
    ("stranger", "say \"unknown client\""),
    ("strangers", "say \"unknown clients\""),
    ("knock", "say \"sign of life\" or \"call\""),
    ("knocks", "say \"signs of life\" or \"calls\""),
    ("crowd", "say how many there are, and of what"),
    ("tally", "say \"counter\" or \"snapshot\""),
    ("outlet", "say \"link sender\""),
    ("desk", "say \"harness\""),
    ("coat", "say \"codec\""),
    ("books", "say \"counters\""),
    ("rooms", "say \"modules\""),
    ("this room", "say \"this module\""),
    ("turned away", "say \"refused\""),
    ("came to nothing", "say \"failed\""),
];

/// A comment line: its text, and true if it begins a comment or a paragraph of one.
fn comment(line: &str, before: Option<&str>) -> Option<(String, bool)> {
    let parts = |line: &str| {
        let line = line.trim_start();
        let rest = line.strip_prefix("//")?;
        let kind = rest.len() - rest.trim_start_matches(['/', '!']).len();
        Some((rest[..kind].to_owned(), rest[kind..].trim().to_owned()))
    };
    let (kind, text) = parts(line)?;
    let goes_on = before.and_then(parts).is_some_and(|(before, above)| before == kind && !above.is_empty());
    Some((text, !goes_on))
}

/// Returns the remedy for a comment line, if it has a pattern of those above.
fn remedy(text: &str, begins: bool) -> Option<String> {
    let first = text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    if begins && CLAUSES.contains(&first) {
        return Some(format!("it begins with {first:?}: {CLAUSE}"));
    }
    let plain: String =
        text.chars().map(|c| if c.is_alphanumeric() { c.to_ascii_lowercase() } else { ' ' }).collect();
    let plain = format!(" {} ", plain.split_whitespace().collect::<Vec<_>>().join(" "));
    let plain = plain.replace(" told apart ", " ");
    let (word, remedy) = WORDS.iter().find(|(word, _)| plain.contains(&format!(" {word} ")))?;
    Some(format!("it has {word:?}: {remedy}"))
}

fn visit(folder: &Path, found: &mut Vec<String>) -> usize {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    let mut seen = 0;
    for path in entries {
        if path.is_dir() {
            seen += visit(&path, found);
            continue;
        }
        // This file names the words.
        if path.extension().is_none_or(|ending| ending != "rs") || path.ends_with("tools/plain_english.rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let mut before = None;
        for (number, line) in text.lines().enumerate() {
            if let Some((text, begins)) = comment(line, before) {
                seen += 1;
                let finding = remedy(&text, begins);
                found.extend(finding.map(|why| format!("{}:{}: {why}", path.display(), number + 1)));
            }
            before = Some(line);
        }
    }
    seen
}

#[test]
fn comments_are_plain_english() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let seen: usize = ["src", "tests"].iter().map(|folder| visit(&top.join(folder), &mut found)).sum();
    assert!(seen > 5000, "only {seen} lines of comments were found");
    assert!(found.is_empty(), "comments that are not plain English:\n{}", found.join("\n"));
}

#[test]
fn each_pattern_is_found_and_its_remedy_named() {
    let of = |text, before| {
        let (text, begins) = comment(text, before)?;
        remedy(&text, begins)
    };
    assert!(of("/// What is wanted.", None).unwrap().contains("noun"));
    assert!(of("    //! Whether it is.", Some("//!")).unwrap().contains("Returns true if"));
    assert!(of("// The peers are told of it.", None).unwrap().contains("reported"));
    assert!(of("/// It takes so\u{20}many bytes, no more.", None).unwrap().contains("this many"));
    assert_eq!(of("/// What a sentence goes on with.", Some("/// The part of a file")), None);
    assert_eq!(of("/// Both are told apart by their ids.", None), None);
    assert_eq!(of("/// Whatever comes.", None), None);
    assert_eq!(of("let what = \"What\";", None), None);
}
