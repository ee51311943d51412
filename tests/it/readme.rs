//! Tests the commands of README.md and docs/guide.md: the `sh` blocks that are marked as tested run in order.

use std::path::Path;

use crate::harness::ok;

/// The marked commands of the README succeed as written.
#[test]
fn commands_run() {
    run_blocks(include_str!("../../README.md"), 4);
}

/// The marked commands of the guide succeed as written.
#[test]
fn commands_of_the_guide_run() {
    run_blocks(include_str!("../../docs/guide.md"), 8);
}

fn run_blocks(document: &str, at_least: usize) {
    run_blocks_in(tempfile::tempdir().unwrap().path(), document, at_least);
}

/// Runs the marked commands of a document in a folder.
pub(crate) fn run_blocks_in(folder: &Path, document: &str, at_least: usize) {
    let bin = Path::new(env!("CARGO_BIN_EXE_synclake")).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let mut ran = 0;
    let mut blocks = document.split("<!-- tested -->\n```sh\n");
    blocks.next();
    for block in blocks {
        let script = block.split("\n```").next().unwrap();
        let mut bash = std::process::Command::new("bash");
        bash.args(["-euo", "pipefail", "-c", script]).current_dir(folder).env("PATH", &path);
        let out = ok(&mut bash);
        assert!(!out.trim().is_empty() || script.contains('>') || script.contains("--out"), "{script}");
        ran += 1;
    }
    assert!(ran >= at_least, "only {ran} blocks");
}
