//! Holds the workspace of `tests/bench` to the main one. Only `make bench-steps` builds it, so no build shows a difference.

use std::collections::BTreeSet;

/// Parses a TOML file of the repository.
fn parsed(path: &str) -> toml::Table {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(path).unwrap().parse().unwrap()
}

/// Returns the name and the version of each package of a lock file.
fn packages(lock: &toml::Table) -> BTreeSet<(&str, &str)> {
    let packages = lock["package"].as_array().unwrap().iter();
    packages.map(|package| (package["name"].as_str().unwrap(), package["version"].as_str().unwrap())).collect()
}

/// `make bench-steps` measures what `cargo build --release` builds: the same profile, the same versions.
#[test]
fn the_benches_measure_what_is_shipped() {
    let release = |manifest| parsed(manifest)["profile"]["release"].clone();
    assert_eq!(release("tests/bench/Cargo.toml"), release("Cargo.toml"));
    let (ours, theirs) = (parsed("Cargo.lock"), parsed("tests/bench/Cargo.lock"));
    let (ours, theirs) = (packages(&ours), packages(&theirs));
    let names: BTreeSet<&str> = ours.iter().map(|(name, _)| *name).collect();
    let other: Vec<_> = theirs.iter().filter(|package| names.contains(package.0) && !ours.contains(package)).collect();
    assert!(
        other.is_empty(),
        "tests/bench/Cargo.lock has other versions: {other:?}; \
         run cp Cargo.lock tests/bench/ && cargo metadata --manifest-path tests/bench/Cargo.toml > /dev/null"
    );
    let common = ours.intersection(&theirs).count();
    assert!(common > 300, "only {common} packages in common");
}
