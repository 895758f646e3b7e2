//! Every dependency has a licence that `.deny.toml` allows, and comes from crates.io: what `make deny` checks in depth,
//! here without a tool to install.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Returns true if one of the alternatives is allowed, of each part that has to be kept.
fn is_allowed(expression: &str, allowed: &[&str]) -> bool {
    let expression = expression.replace('/', " OR ").replace(['(', ')'], "");
    expression.split(" AND ").all(|part| part.split(" OR ").any(|licence| allowed.contains(&licence.trim())))
}

#[test]
fn every_dependency_is_from_crates_io_and_has_an_allowed_licence() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let rules = std::fs::read_to_string(root.join(".deny.toml")).unwrap();
    let list = rules.lines().find_map(|line| line.strip_prefix("allow = [")).expect("a list of licences");
    let allowed: Vec<&str> = list.split('"').skip(1).step_by(2).collect();
    assert!(allowed.contains(&"MIT") && !is_allowed("GPL-3.0-only", &allowed) && !is_allowed("", &allowed));

    let mut metadata = Command::new(env!("CARGO"));
    metadata.args(["metadata", "--format-version=1", "--locked"]).current_dir(root);
    // Not those of systems for which nothing is built.
    metadata.arg("--filter-platform=x86_64-unknown-linux-gnu");
    let metadata = metadata.output().unwrap();
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let metadata: Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 20, "{} packages", packages.len());
    for package in packages {
        let (name, licence) = (&package["name"], package["license"].as_str().unwrap_or_default());
        assert!(is_allowed(licence, &allowed), "{name}: licence {licence:?} is not one of {allowed:?}");
        let source = package["source"].as_str();
        let registry = source.is_none_or(|source| source.ends_with("github.com/rust-lang/crates.io-index"));
        assert!(registry, "{name} comes from {source:?}");
    }
}
