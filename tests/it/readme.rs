//! Tests the commands of the README: every `sh` block that is marked as tested runs, in order, in one folder.

use crate::harness::ok;

/// The marked commands of the README succeed as written.
#[test]
fn commands_run() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let bin = std::path::Path::new(env!("CARGO_BIN_EXE_synclake")).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let mut ran = 0;
    let mut blocks = readme.split("<!-- tested -->\n```sh\n");
    blocks.next();
    for block in blocks {
        let script = block.split("\n```").next().unwrap();
        let mut bash = std::process::Command::new("bash");
        bash.args(["-euo", "pipefail", "-c", script]).current_dir(folder.path()).env("PATH", &path);
        let out = ok(&mut bash);
        assert!(!out.trim().is_empty() || script.contains('>') || script.contains("--out"), "{script}");
        ran += 1;
    }
    assert!(ran >= 5, "only {ran} blocks");
}
