//! Tests of the exact output of the programs.

use std::io::Write;
use std::process::Stdio;

use crate::harness::{ingest_file, ok, query, setting, synclake, text};

fn fixture(folder: &std::path::Path) -> std::path::PathBuf {
    let lake = folder.join("lake");
    ingest_file(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/golden.ndjson").as_ref(), &lake);
    lake
}

/// Every help text has examples.
#[test]
fn help_teaches_by_example() {
    let names = ["synclake", "ingest", "extract", "simulate", "refresh", "status", "care", "manifest", "ddl", "query"];
    let of_pools = ["catalog", "stream", "bulk-publish", "doctor", "iam-policy"];
    for name in names.into_iter().chain(of_pools) {
        let mut command = if name == "query" { query() } else { synclake() };
        if !["synclake", "query"].contains(&name) {
            command.arg(name);
        }
        let help = ok(command.arg("--help").env("COLUMNS", "110"));
        assert!(help.contains("Examples:"), "{name}");
        insta::assert_snapshot!(format!("help_{name}"), help);
    }
}

/// Every output format shows the same result; Parquet also goes into a file.
#[test]
fn every_format_of_one_result() {
    let folder = tempfile::tempdir().unwrap();
    let lake = fixture(folder.path());
    let sql = "select dataset_name, key, value, sync_count, last_modified_date from current_state \
               where identity_id = 'us-east-1:0001' order by 1, 2";
    for format in ["table", "csv", "tsv", "json", "ndjson", "markdown", "vertical"] {
        let out = ok(query().arg("--lake").arg(&lake).args(["--format", format, "-c", sql]));
        insta::assert_snapshot!(format!("format_{format}"), out);
    }
    let file = folder.path().join("out.parquet");
    ok(query().arg("--lake").arg(&lake).args(["--format", "parquet", "-c", sql, "-o"]).arg(&file));
    let bytes = std::fs::read(&file).unwrap();
    assert!(bytes.starts_with(b"PAR1") && bytes.ends_with(b"PAR1"));
    // Parquet also goes through a pipe.
    let piped = query().arg("--lake").arg(&lake).args(["--format", "parquet", "-c", sql]).output().unwrap().stdout;
    assert!(piped.starts_with(b"PAR1") && piped.ends_with(b"PAR1"));
}

/// SQL comes from `-c`, a file or standard input, and backslash commands work.
#[test]
fn commands_files_and_standard_input() {
    let folder = tempfile::tempdir().unwrap();
    let lake = fixture(folder.path());
    insta::assert_snapshot!("relations", ok(query().arg("--lake").arg(&lake).args(["-c", "\\d"])));
    insta::assert_snapshot!("columns", ok(query().arg("--lake").arg(&lake).args(["-c", "\\d current_state"])));
    insta::assert_snapshot!("backslash_help", ok(query().arg("--lake").arg(&lake).args(["-c", "\\?"])));
    let file = folder.path().join("a.sql");
    std::fs::write(&file, "select 1 as a; -- one\nselect 'x;y' as b;\n").unwrap();
    let both = ok(query().arg("--lake").arg(&lake).args(["--format", "csv", "-f"]).arg(&file));
    assert_eq!(both, "a\n1\nb\nx;y\n");
    let twice =
        ok(query().arg("--lake").arg(&lake).args(["--format", "csv", "-c", "select 1 as a", "-c", "select 2 as b"]));
    assert_eq!(twice, "a\n1\nb\n2\n");
    let mut child = query()
        .arg("--lake")
        .arg(&lake)
        .args(["--format", "csv"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"select 3 as c").unwrap();
    assert_eq!(text(&child.wait_with_output().unwrap().stdout), "c\n3\n");
    let timed = query().arg("--lake").arg(&lake).args(["--timing", "-c", "select 1"]).output().unwrap();
    assert!(text(&timed.stderr).starts_with("1 rows in "));
    // The program stops at the first failure and keeps the results that it has printed.
    let failed = query()
        .arg("--lake")
        .arg(&lake)
        .args(["--format", "csv", "-c", "select 1 as a; select x; select 2 as b"])
        .output()
        .unwrap();
    assert_eq!((text(&failed.stdout).as_str(), failed.status.code()), ("a\n1\n", Some(1)));
}

/// A flag wins over the environment, and the environment wins over the settings file.
#[test]
fn settings_come_from_flags_then_environment_then_file() {
    let folder = tempfile::tempdir().unwrap();
    let lake = fixture(folder.path());
    let file = folder.path().join("settings.toml");
    std::fs::write(&file, format!("lake = {:?}\n", lake.to_str().unwrap())).unwrap();
    let ask = ["--format", "csv", "-c", "select 1 as a"];
    assert_eq!(ok(query().arg("--config").arg(&file).args(ask)), "a\n1\n");
    assert_eq!(ok(query().env("SYNCLAKE_CONFIG", &file).args(ask)), "a\n1\n");
    let nowhere = folder.path().join("nowhere");
    let output = query().arg("--config").arg(&file).env("SYNCLAKE_LAKE", &nowhere).args(ask).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "the environment wins over the file");
    let output =
        ok(query().arg("--config").arg(&file).env("SYNCLAKE_LAKE", &nowhere).arg("--lake").arg(&lake).args(ask));
    assert_eq!(output, "a\n1\n", "a flag wins over both");
}

/// `-o` writes through a symbolic link and into a named pipe, and replaces neither.
#[test]
fn output_goes_through_links_and_into_pipes() {
    let folder = tempfile::tempdir().unwrap();
    let lake = fixture(folder.path());
    let run = |out: &std::path::Path| {
        ok(query().arg("--lake").arg(&lake).args(["--format", "csv", "-c", "select 1 as a", "-o"]).arg(out))
    };
    let (target, link) = (folder.path().join("target.csv"), folder.path().join("link.csv"));
    std::fs::write(&target, "old").unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    run(&link);
    assert!(link.is_symlink());
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "a\n1\n");
    let pipe = folder.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let reader = std::process::Command::new("cat").arg(&pipe).stdout(Stdio::piped()).spawn().unwrap();
    run(&pipe);
    assert_eq!(text(&reader.wait_with_output().unwrap().stdout), "a\n1\n");
    assert!(!std::fs::metadata(&pipe).unwrap().is_file());
}

/// A report is text on a terminal and one JSON document otherwise, whichever command writes it.
#[test]
fn reports_are_for_people_on_a_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let lake = fixture(folder.path());
    let script = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)";
    for (command, shown) in [
        ("status", "WHAT TO DO NEXT"),
        ("verify", "0 orphans"),
        ("compact", "replaced 0 files"),
        ("vacuum", "deleted 0 files"),
        ("care", "it covers version"),
    ] {
        let piped = synclake().args([command, "--lake"]).arg(&lake).output().unwrap();
        let report: serde_json::Value = serde_json::from_slice(&piped.stdout).unwrap();
        assert!(piped.status.success() && report.is_object(), "{command}: {report}");
        assert_eq!(text(&piped.stderr), "", "{command}");
        let mut on_terminal = std::process::Command::new(setting("SYNCLAKE_TEST_PYTHON"));
        on_terminal.args(["-c", script, env!("CARGO_BIN_EXE_synclake"), command, "--lake"]).arg(&lake);
        let printed = ok(on_terminal.stdin(Stdio::null()));
        assert!(printed.contains(shown) && !printed.contains('{'), "{command}: {printed}");
    }
}
