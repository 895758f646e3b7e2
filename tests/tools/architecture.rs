//! The structure of the source: the imports that `src/lib.rs` allows, and that the core decides without input
//! and output.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Every Rust file below `src`, as its path from there and its text without comments.
fn sources() -> Vec<(PathBuf, String)> {
    fn visit(folder: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                visit(&path, files);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                files.push(path);
            }
        }
    }
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    visit(&top, &mut files);
    let text = |file: &PathBuf| {
        let text = fs::read_to_string(file).unwrap();
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        code.collect::<Vec<_>>().join("\n")
    };
    files.iter().map(|file| (file.strip_prefix(&top).unwrap().to_owned(), text(file))).collect()
}

/// The module of a file in that table: the folder below `src`, and within the daemon and the mirrored disk the one below that.
fn area(file: &Path) -> String {
    let parts: Vec<_> = file.iter().map(|part| part.to_str().unwrap().trim_end_matches(".rs")).collect();
    match parts[..] {
        [large @ ("daemon" | "nbd"), small, ..] if small != "mod" => format!("{large}::{small}"),
        [top, ..] => top.to_owned(),
        [] => String::new(),
    }
}

/// The modules that a text imports from, by `crate::`.
fn imports(text: &str) -> BTreeSet<String> {
    let paths = text.split("crate::").skip(1).map(|rest| {
        let path: Vec<_> = rest
            .split("::")
            .map(|name| name.trim_matches(|c: char| !c.is_alphanumeric() && c != '_'))
            .collect();
        let word =
            |name: &str| name.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap().to_owned();
        match (word(path[0]).as_str(), path.get(1)) {
            (large @ ("daemon" | "nbd"), Some(small)) if !word(small).is_empty() => {
                format!("{large}::{}", word(small))
            }
            ("limited", _) => "logging".to_owned(),
            (top, _) => top.to_owned(),
        }
    });
    paths.collect()
}

/// The table that `src/lib.rs` opens with: each module, and the modules that it may import from.
fn table() -> BTreeMap<String, BTreeSet<String>> {
    let text = include_str!("../../src/lib.rs");
    let rows = text.lines().filter_map(|line| line.strip_prefix("//! | [`"));
    let names =
        |cell: &str| -> BTreeSet<String> { cell.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
    let mut table = BTreeMap::new();
    for row in rows {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let [name, _, may, ""] = cells[..] else { panic!("a row of three cells: {row}") };
        table.insert(name.trim_end_matches("`]").to_owned(), names(may));
    }
    table
}

#[test]
fn modules_import_only_what_the_table_allows() {
    let table = table();
    let mut found = BTreeMap::<String, BTreeSet<String>>::new();
    for (file, text) in sources() {
        let area = area(&file);
        // The programs may use everything, the root names the modules.
        if matches!(area.as_str(), "bin" | "lib") {
            continue;
        }
        let allowed = table.get(&area).unwrap_or_else(|| panic!("src/lib.rs has no row for {area}"));
        for import in imports(&text) {
            let large = import.split("::").next().unwrap();
            if import != area && large != area {
                let at = file.display();
                assert!(
                    allowed.contains(&import),
                    "{at}: {area} may not import from {import}: see src/lib.rs"
                );
                found.entry(area.clone()).or_default().insert(import);
            }
        }
    }
    // A permission that is not used would hide the next arrow that runs up.
    for (area, allowed) in &table {
        let unused: Vec<_> = allowed.difference(found.entry(area.clone()).or_default()).collect();
        assert!(unused.is_empty(), "src/lib.rs allows {area} to import from {unused:?}, which it does not");
    }
}

#[test]
fn imports_of_modules_run_one_way() {
    let mut left = table();
    while !left.is_empty() {
        let lowest: Vec<_> = left
            .iter()
            .filter(|(_, may)| may.iter().all(|area| !left.contains_key(area)))
            .map(|(area, _)| area.clone())
            .collect();
        assert!(!lowest.is_empty(), "a circle among {:?}", left.keys());
        for area in lowest {
            left.remove(&area);
        }
    }
}

#[test]
fn the_cores_have_no_input_no_output_no_clock_and_no_thread() {
    let mut seen = 0;
    for (file, text) in sources() {
        let name = file.to_str().unwrap();
        if !(name.starts_with("daemon/core")
            || name.starts_with("nbd/mirror")
            || name.starts_with("nbd/core"))
            || name.contains("tests")
        {
            continue;
        }
        seen += 1;
        for foreign in [
            "std::net::Tcp",
            "std::net::Udp",
            "std::fs",
            "std::thread",
            "std::io",
            "Instant",
            "SystemTime",
            "crate::sys",
        ] {
            assert!(!text.contains(foreign), "{name} uses {foreign}");
        }
    }
    assert!(seen > 5);
}

#[test]
fn every_file_opens_with_its_purpose() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (file, _) in sources() {
        let text = fs::read_to_string(top.join(&file)).unwrap();
        assert!(text.starts_with("//!"), "{} does not say its purpose", file.display());
    }
}

/// The names of a module, from the crate down.
type ModulePath = Vec<String>;

/// The paths that a text names from `start` on, the part of a `use` line behind its `crate::` or `super::`.
fn leaves(start: &str) -> Vec<ModulePath> {
    fn tree<'t>(mut rest: &'t str, prefix: &[String], found: &mut Vec<ModulePath>) -> &'t str {
        let mut path = prefix.to_vec();
        loop {
            rest = rest.trim_start();
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            let (name, after) = rest.split_at(end);
            if name.is_empty() {
                break;
            }
            path.push(name.to_owned());
            rest = after;
            let Some(more) = rest.strip_prefix("::") else { break };
            rest = more;
        }
        let Some(mut group) = rest.strip_prefix('{') else {
            found.push(path);
            return rest;
        };
        loop {
            group = tree(group, &path, found).trim_start();
            if let Some(name) = group.strip_prefix("as ") {
                group = name.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_').trim_start();
            }
            match group.strip_prefix(',').map(str::trim_start) {
                Some(more) if !more.starts_with('}') => group = more,
                _ => break,
            }
        }
        group.find('}').map_or("", |end| &group[end + 1..])
    }
    let mut found = Vec::new();
    tree(start, &[], &mut found);
    found
}

/// The module of a file.
fn module(file: &Path) -> ModulePath {
    let mut path: ModulePath =
        file.iter().map(|part| part.to_str().unwrap().trim_end_matches(".rs").to_owned()).collect();
    if path.last().is_some_and(|last| last == "mod") {
        path.pop();
    }
    path
}

/// The names that each folder's `mod.rs` takes out of its files, so that a name leads to its file.
fn taken_up(files: &[(PathBuf, String)]) -> BTreeMap<ModulePath, ModulePath> {
    let mut names = BTreeMap::new();
    for (file, text) in files.iter().filter(|(file, _)| file.ends_with("mod.rs")) {
        for line in text.split("use ").skip(1) {
            for leaf in leaves(line).into_iter().filter(|leaf| leaf.len() > 1) {
                let name = [module(file), vec![leaf.last().unwrap().clone()]].concat();
                names.insert(name, [module(file), leaf].concat());
            }
        }
    }
    names
}

/// Which files each file imports from. A `mod.rs` is left out: it names its files, and they take what it declares.
fn file_imports(files: &[(PathBuf, String)]) -> BTreeMap<ModulePath, BTreeSet<ModulePath>> {
    let modules: BTreeSet<ModulePath> =
        files.iter().filter(|(file, _)| !file.ends_with("mod.rs")).map(|(file, _)| module(file)).collect();
    let names = taken_up(files);
    let mut imports = BTreeMap::<_, BTreeSet<_>>::new();
    for (file, text) in files.iter().filter(|(file, _)| modules.contains(&module(file))) {
        let own = module(file);
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let found = imports.entry(own.clone()).or_default();
        let from_root = text.split("crate::").skip(1).map(|rest| (vec![], rest));
        let from_parent = text.split("super::").enumerate().skip(1).filter_map(|(at, rest)| {
            // Of `super::super::` the last part has the name.
            let before: Vec<_> = text.split("super::").take(at).collect();
            let ups = 1 + before.iter().rev().take_while(|part| part.is_empty()).count();
            let base = own.len().checked_sub(ups).map(|length| own[..length].to_vec());
            base.filter(|_| !rest.is_empty()).map(|base| (base, rest))
        });
        for (base, rest) in from_root.chain(from_parent) {
            for leaf in leaves(rest) {
                let path = [base.clone(), leaf].concat();
                let through = (1..=path.len()).rev().find_map(|length| names.get(&path[..length]));
                for path in [Some(&path), through].into_iter().flatten() {
                    let target = (1..=path.len()).rev().map(|length| &path[..length]);
                    found.extend(target.filter_map(|path| modules.get(path)).take(1).cloned());
                }
            }
        }
        found.remove(&own);
    }
    imports
}

/// Returns the rest when every file that imports from none of the others, or is imported by none, is taken away, again and
/// again.
fn circles(mut imports: BTreeMap<ModulePath, BTreeSet<ModulePath>>) -> Vec<String> {
    loop {
        let left: BTreeSet<_> = imports.keys().cloned().collect();
        let imported: BTreeSet<_> = imports.values().flatten().cloned().collect();
        let before = imports.len();
        imports.retain(|file, found| imported.contains(file) && found.iter().any(|file| left.contains(file)));
        if imports.len() == before {
            let names = |path: &ModulePath| path.join("/");
            let row = |(file, found): (&ModulePath, &BTreeSet<ModulePath>)| {
                let within = found.iter().filter(|file| left.contains(*file));
                format!("{} -> {}", names(file), within.map(names).collect::<Vec<_>>().join(", "))
            };
            return imports.iter().map(row).collect();
        }
    }
}

#[test]
fn imports_of_files_run_one_way() {
    let mut files = sources();
    files.retain(|(file, _)| !file.iter().any(|part| part == "tests" || part == "tests.rs"));
    let imports = file_imports(&files);
    assert!(imports.values().map(BTreeSet::len).sum::<usize>() > 300, "the imports are not found any more");
    let circles = circles(imports);
    assert!(circles.is_empty(), "files in a circle:\n{}", circles.join("\n"));
}

#[test]
fn a_circle_of_files_is_found_however_it_is_written() {
    let found = |texts: &[(&str, &str)]| {
        let files: Vec<_> = texts.iter().map(|(file, text)| (file.into(), (*text).to_owned())).collect();
        circles(file_imports(&files))
    };
    let one_way = [("r/a.rs", "use super::b::{B, C};"), ("r/b.rs", "use std::fmt;"), ("r/mod.rs", "mod a;")];
    assert!(found(&one_way).is_empty());
    for back in [
        "use super::a::A;",
        "use super::{\n    Other,\n    a::{A, X},\n};",
        "use super::{c, a};",
        "use crate::r::a::A;",
        "fn f() { super::a::f() }",
        "use crate::r::{other::{X, Y}, a as b};",
    ] {
        let circle = [("r/a.rs", "use super::b::B;"), ("r/b.rs", back), ("r/mod.rs", "mod a;\nmod b;")];
        assert_eq!(found(&circle), ["r/a -> r/b", "r/b -> r/a"], "{back}");
    }
    let through =
        [("r/a.rs", "use super::b::B;"), ("r/b.rs", "use super::A;"), ("r/mod.rs", "use a::{A, X};")];
    assert_eq!(found(&through).len(), 2, "by a name that mod.rs takes up");
    let deep = [("r/s/a.rs", "use super::super::b::B;"), ("r/b.rs", "use super::s::a::A;")];
    assert_eq!(found(&deep).len(), 2);
}
