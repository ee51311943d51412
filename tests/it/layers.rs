//! Holds the sources to the table in docs/architecture.md that says which top-level module may import which.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

type Arrows = BTreeMap<String, BTreeSet<String>>;

/// Returns the rows of the table under the heading `## Layers`, in order: a module, and the modules that it may
/// import.
fn allowed() -> Vec<(String, BTreeSet<String>)> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/architecture.md")).unwrap();
    let section = text.split("\n## Layers\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let names = |cell: &str| -> BTreeSet<String> { cell.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
    let rows = section.lines().filter(|line| line.starts_with("| `")).map(|line| {
        let mut cells = line.trim_matches('|').split('|');
        (names(cells.next().unwrap()).pop_first().unwrap(), names(cells.next().unwrap()))
    });
    rows.collect()
}

/// Collects the code of each module: its file and the folder of its name.
fn sources(folder: &Path, room: Option<&str>, found: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if room.is_none() && ["bin", "lib", "snapshots"].contains(&name.as_str()) {
            continue;
        }
        let room = room.unwrap_or(&name);
        match path.is_dir() {
            true => sources(&path, Some(room), found),
            // Tests may import any module.
            false if name == "tests" => {}
            false => {
                let text = std::fs::read_to_string(&path).unwrap();
                let is_tests = |at: usize| text[at..].lines().take(3).any(|line| line.ends_with("mod tests {"));
                let end =
                    text.match_indices("#[cfg(test)]\n").find(|(at, _)| is_tests(*at)).map_or(text.len(), |(at, _)| at);
                let text = &text[..end];
                let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
                let code: String = code.flat_map(|line| [line, "\n"]).collect();
                *found.entry(room.to_owned()).or_default() += &code;
            }
        }
    }
}

/// Returns the modules that each module imports.
fn arrows(sources: &BTreeMap<String, String>) -> Arrows {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let imported = |room: &str, code: &str| -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for after in code.split("crate::").skip(1) {
            match after.strip_prefix('{') {
                None => drop(found.insert(word(after))),
                Some(list) => {
                    let list = list.split(';').next().unwrap();
                    let mut depth = 0;
                    let parts = list.split(|c| {
                        depth += i32::from(c == '{') - i32::from(c == '}');
                        c == ',' && depth == 0
                    });
                    found.extend(parts.map(|part| word(part.trim())));
                }
            }
        }
        found.into_iter().filter(|name| name != room && sources.contains_key(name)).collect()
    };
    sources.iter().map(|(room, code)| (room.clone(), imported(room, code))).collect()
}

/// Returns the imports that the table does not allow.
fn forbidden(arrows: &Arrows, allowed: &[(String, BTreeSet<String>)]) -> Vec<String> {
    let rows: BTreeMap<_, _> = allowed.iter().map(|(room, may)| (room, may)).collect();
    let none = BTreeSet::new();
    let of_room = |(room, imports): (&String, &BTreeSet<String>)| {
        let may = rows.get(room).copied().unwrap_or(&none);
        imports.difference(may).map(|other| format!("{room} imports {other}")).collect::<Vec<_>>()
    };
    arrows.iter().flat_map(of_room).collect()
}

/// The modules import exactly what the architecture table allows, and the table has no circle.
#[test]
fn rooms_import_what_the_architecture_allows() {
    let allowed = allowed();
    // A module may import only modules above it in the table, so there is no circle.
    let mut above = BTreeSet::new();
    for (room, may) in &allowed {
        assert!(may.is_subset(&above), "{room} may import only what stands above it in the table");
        assert!(above.insert(room.clone()), "{room} has two rows");
    }
    let mut sources_of = BTreeMap::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), None, &mut sources_of);
    let found = arrows(&sources_of);
    assert_eq!(found.keys().cloned().collect::<BTreeSet<_>>(), above, "each room has a row, and each row a room");
    assert_eq!(forbidden(&found, &allowed), Vec::<String>::new());
    for (room, may) in &allowed {
        assert_eq!(
            may.difference(&found[room]).collect::<Vec<_>>(),
            Vec::<&String>::new(),
            "{room} needs them no more"
        );
    }
    // A planted import is found.
    for planted in ["use crate::ingest::IngestOptions;", "use crate::{cpu, ingest::{self, IngestOptions}};"] {
        let mut sources_of = sources_of.clone();
        *sources_of.get_mut("lake").unwrap() += planted;
        assert_eq!(forbidden(&arrows(&sources_of), &allowed), ["lake imports ingest"], "{planted}");
    }
}
