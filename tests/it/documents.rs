//! Tests that the documents tell what the programs do.

use std::fmt::Write as _;

use serde_json::Value;

use crate::harness::{ingest_file, ok, query, simulate};

/// docs/columns.md describes every column of every table and view. `SYNCLAKE_UPDATE_DOCS=1` writes it.
#[test]
fn every_column_is_described() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    let (events, _) = simulate(folder.path(), &["--events", "20"]);
    let lake = folder.path().join("lake");
    ingest_file(&events, &lake);
    let described: Value =
        serde_json::from_str(&std::fs::read_to_string(root.join("schemas/columns.json")).unwrap()).unwrap();
    let mut text = "# Columns\n\nGenerated from `schemas/columns.json` and the programs by `tests/it/documents.rs`. \
                    Times are UTC.\n"
        .to_owned();
    let mut names = Vec::new();
    for relation in described["relations"].as_array().unwrap() {
        let name = relation["name"].as_str().unwrap();
        names.push(name.to_owned());
        let (kind, row) = (relation["kind"].as_str().unwrap(), relation["row"].as_str().unwrap());
        write!(text, "\n## `{name}` ({kind})\n\nA row: {}{}\n\n", row[..1].to_lowercase(), &row[1..]).unwrap();
        text += "| column | type | meaning | example |\n|---|---|---|---|\n";
        for line in ok(query().arg("--lake").arg(&lake).args(["-c", &format!("\\d {name}")])).lines() {
            let (column, kind) = line.split_once(' ').unwrap();
            let about = &described["columns"][column];
            let of_relation = &described["in_relation"][format!("{name}.{column}")];
            let meaning = of_relation.as_str().or(about["meaning"].as_str());
            let meaning = meaning.unwrap_or_else(|| panic!("schemas/columns.json lacks {name}.{column}"));
            let example = about["example"].as_str().unwrap();
            writeln!(text, "| `{column}` | {} | {meaning} | `{example}` |", kind.trim()).unwrap();
        }
    }
    let listed = ok(query().arg("--lake").arg(&lake).args(["-c", "\\d"]));
    let mut all: Vec<String> = listed.lines().map(|line| line.split_whitespace().nth(1).unwrap().to_owned()).collect();
    all.sort();
    names.sort();
    assert_eq!(names, all, "schemas/columns.json has each table and view");
    let path = root.join("docs/columns.md");
    if std::env::var_os("SYNCLAKE_UPDATE_DOCS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "run it with SYNCLAKE_UPDATE_DOCS=1");
}

/// Links of the documents lead somewhere.
#[test]
fn links_lead_somewhere() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let listed = ok(std::process::Command::new("git").args(["ls-files", "*.md"]).current_dir(root));
    let mut followed = 0;
    for file in listed.lines() {
        let path = root.join(file);
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if link.contains("://") || link.starts_with('#') {
                continue;
            }
            let target = path.parent().unwrap().join(link.split('#').next().unwrap());
            assert!(target.exists(), "{file} links to {link}");
            followed += 1;
        }
    }
    assert!(followed > 10, "only {followed} links");
}

/// docs/operations.md has a heading for each log line of level ERROR, and no other line.
#[test]
fn every_error_line_has_a_runbook() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources = ok(std::process::Command::new("git").args(["ls-files", "src/*.rs"]).current_dir(root));
    let sources: Vec<String> =
        sources.lines().filter_map(|file| std::fs::read_to_string(root.join(file)).ok()).collect();
    let runbook = std::fs::read_to_string(root.join("docs/operations.md")).unwrap();
    let headings: Vec<&str> = runbook.lines().filter_map(|line| line.strip_prefix("## `")?.strip_suffix('`')).collect();
    // The message is the last text of a call, perhaps with a description, whose text the other check finds.
    let call = regex::Regex::new(r#"(?s)tracing::error!\(.*?"([^"]+)"(?:,\s*[a-z._]+\(\))?\s*\)"#).unwrap();
    let mut lines = 0;
    for found in sources.iter().flat_map(|text| call.captures_iter(text)) {
        let message = found[1].split('{').next().unwrap();
        lines += 1;
        assert!(headings.iter().any(|heading| heading.contains(message)), "no heading has {message:?}");
    }
    assert!(lines >= 6, "{lines}");
    for heading in headings {
        let beginning = heading.split('…').next().unwrap();
        let beginning = beginning.split("; see the table gaps").next().unwrap();
        assert!(sources.iter().any(|text| text.contains(beginning)), "no source has {beginning:?}");
    }
}
