//! The text exposition of metrics, as Prometheus' own `promtool check metrics` reads it.

/// Each sample belongs to the family before it, which has HELP, TYPE and a fitting name, and is a number; no family
/// and no sample comes twice. Gives each sample's name with its labels.
#[track_caller]
pub fn assert_exposition(text: &str) -> Vec<String> {
    let (mut family, mut families, mut samples) = (String::new(), Vec::new(), Vec::new());
    assert!(text.ends_with('\n'), "{text}");
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(matches!(kind, "counter" | "gauge" | "histogram"), "{line}");
            assert!(text.contains(&format!("# HELP {name} ")), "{name}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            assert!(!families.contains(&name), "{name} twice");
            families.push(name);
            family = name.into();
        } else if !line.starts_with('#') {
            let (name, value) = line.rsplit_once(' ').unwrap();
            // A histogram's samples have ends of their own. A third word would be a time stamp.
            let own = name.split('{').next().unwrap();
            let end = own.strip_prefix(family.as_str());
            assert!(matches!(end, Some("" | "_bucket" | "_sum" | "_count")), "{line}");
            assert!(name.ends_with('}') || !name.contains(' '), "a time stamp: {line}");
            value.parse::<f64>().unwrap();
            assert!(!samples.contains(&name.to_string()), "{name} twice");
            samples.push(name.to_string());
        }
    }
    samples
}
