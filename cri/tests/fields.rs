//! Every field that a client can set is looked at somewhere in this crate. A field that a new version of CRI brings makes this test
//! fail until it is honoured or refused by name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Fields that nothing has to look at, and why.
const NOTHING_TO_DO: [(&str, &str, &str); 5] = [
    ("LinuxSandboxSecurityContext", "seccomp_profile_path", "a pod without a process of its own has nothing to filter"),
    ("ImageSpec", "user_specified_image", "what a person wrote; `image` is what counts, and the whole is told back"),
    ("CreateContainerRequest", "sandbox_config", "the same that RunPodSandbox was given, which is on record"),
    ("PullImageRequest", "sandbox_config", "for runtimes that keep images per pod"),
    ("PortForwardRequest", "port", "the stream names its ports"),
];

/// Source of the crate, without its tests and without NRI, which only hands on.
fn source(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() && entry.file_name() != "nri" {
            source(&path, text);
        } else if path.is_file() {
            let whole = fs::read_to_string(&path).unwrap();
            text.push_str(whole.split("#[cfg(test)]").next().unwrap());
        }
    }
}

/// As the generated code calls it.
fn field_name(name: &str) -> String {
    let mut snake = String::new();
    let mut before = '_';
    for c in name.chars() {
        if c.is_uppercase() && before.is_lowercase() {
            snake.push('_');
        }
        snake.extend(c.to_lowercase());
        before = c;
    }
    if snake == "type" { "r#type".to_owned() } else { snake }
}

#[test]
fn every_field_of_every_request_is_looked_at() {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = fs::read_to_string(crate_folder.join("../proto/tests/fixtures/cri-v1.tsv")).unwrap();
    let mut messages: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
    for line in table.lines() {
        if let ["message", message, field, _, kind, ..] = line.split('\t').collect::<Vec<_>>()[..] {
            messages.entry(message).or_default().push((field, kind));
        }
    }
    let mut reached: BTreeSet<&str> = BTreeSet::new();
    let mut next: Vec<&str> = messages.keys().copied().filter(|m| m.ends_with("Request")).collect();
    while let Some(message) = next.pop() {
        // Windows is refused as a whole.
        if !message.starts_with("Windows") && reached.insert(message) {
            let words = messages[message].iter().flat_map(|(_, kind)| kind.split(|c: char| !c.is_alphanumeric()));
            next.extend(words.filter(|w| messages.contains_key(w)));
        }
    }
    assert!(reached.len() > 60 && reached.contains("SELinuxOption"), "the table is not what it was: {reached:?}");
    let mut text = String::new();
    source(&crate_folder.join("src"), &mut text);
    let words: BTreeSet<&str> = text.split(|c: char| !c.is_alphanumeric() && !"_#.".contains(c)).collect();
    let read = |field: &str| words.iter().any(|word| word.split('.').skip(1).any(|part| part == field));
    let mut passed_over = Vec::new();
    for message in reached {
        for (field, _) in &messages[message] {
            let excused = NOTHING_TO_DO.iter().any(|(m, f, _)| m == &message && f == field);
            if !excused && !read(&field_name(field)) {
                passed_over.push(format!("{message}.{field}"));
            }
        }
    }
    assert!(passed_over.is_empty(), "nobody looks at {passed_over:?}");
}
