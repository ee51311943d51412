//! Tests of the exact output of the programs.

use std::io::Write;
use std::process::Stdio;

use crate::harness::{ingest_file, ok, query, refused, setting, synclake, text};

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
    let names = ok(query().arg("--lake").arg(&lake).args([
        "--format",
        "csv",
        "-c",
        "select 1, 'x', 2 as \"Int64(2)\" order by 1",
    ]));
    assert_eq!(names.lines().next(), Some("1,'x',Int64(2)"));
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

/// A mistake is answered with what was probably meant, in the user's words.
#[test]
fn errors_say_what_was_meant() {
    let folder = tempfile::tempdir().unwrap();
    let lake = fixture(folder.path());
    let long = format!("select cast('{}' as bigint)", "x".repeat(500));
    for (sql, parts) in [
        ("selct 1", ["begins with selct at line 1, column 1", "did you mean select?"]),
        ("select * from chnges", ["no table or view chnges", "did you mean changes?"]),
        ("select * from orders", ["no table or view orders", "\\d lists them"]),
        ("select valeu from changes", ["no column valeu at line 1, column 8; did", "did you mean value?"]),
        ("from changes\nwhere kez = 1", ["no column kez at line 2, column 7", "did you mean key?"]),
        ("/* c */ from changes where kez = 1", ["no column kez at line 1, column 28", "did you mean key?"]),
        ("from changes where kez = 1", ["no column kez at line 1, column 20", "did you mean key?"]),
        ("summarize select valeu from changes", ["no column valeu at line 1, column 18", "did you mean value?"]),
        ("summarize chnges", ["no table or view chnges at line 1, column 11", "did you mean changes?"]),
        ("describe chnges", ["no table or view chnges at line 1, column 10", "did you mean changes?"]),
        ("select key from changes order by valeu", ["no column valeu at line 1, column 34", "did you mean value?"]),
        ("select count(*) from changes\ngroup by valeu", ["no column valeu at line 2, column 10", "mean value?"]),
        ("select * from changes, orders", ["no table or view orders at line 1, column 24", ""]),
        ("select c.valeu from changes c", ["no column valeu in c", "did you mean value?"]),
        ("select z.key from changes c", ["reads no table z at line 1, column 8", "did you mean c?"]),
        (
            "select key from changes c where exists (select 1 from state s where s.key = c.nope)",
            ["no column nope in c at line 1, column 77\n", ""],
        ),
        ("select key, count(*) from changes", ["column key is neither in GROUP BY", "add GROUP BY key"]),
        ("select (1 + 2", ["expected ), found the end at line 1, column 14", ""]),
        ("\\format csv\n\nselect\n  nope from changes", ["no column nope at line 4, column 3", ""]),
        ("select price from changes", ["no column price at line 1, column 8; there are", "identity_id"]),
        ("select cuont(*) from changes", ["no function cuont", "did you mean count?"]),
        ("select *\nform changes x", ["expected", "at line 2, column"]),
        ("select 'open", ["Unterminated", "at line 1, column 8"]),
        ("delete from changes", ["delete is not possible", "read-only"]),
        (&long, ["xxxx…'", ""]),
    ] {
        let done = query().arg("--lake").arg(&lake).args(["-c", sql]).output().unwrap();
        refused(&done, 1, &parts);
        let told = text(&done.stderr);
        let is_plain = ["datafusion", "ParserError", "Error during"].iter().all(|word| !told.contains(word));
        assert!(is_plain && told.len() < 400 && told.trim().lines().count() == 1, "{sql}: {told}");
        assert_eq!(told.contains("read-only"), sql.starts_with("delete"), "{sql}: {told}");
    }
    let (outer, inner) = (folder.path().join("outer.sql"), folder.path().join("inner.sql"));
    std::fs::write(&outer, "\\format csv\n\\i ".to_owned() + inner.to_str().unwrap() + "\n").unwrap();
    std::fs::write(&inner, "\\x off\n\n-- c\nselect\n  nope from changes;\n").unwrap();
    let done = query().arg("--lake").arg(&lake).arg("-f").arg(&outer).output().unwrap();
    refused(&done, 1, &["inner.sql: there is no column nope at line 5, column 3"]);
    assert!(!text(&done.stderr).contains("outer.sql"), "the file that holds the mistake is named");
    std::fs::write(&outer, "\\x off\n\n\\format none").unwrap();
    let done = query().arg("--lake").arg(&lake).arg("-f").arg(&outer).output().unwrap();
    refused(&done, 1, &["outer.sql, line 3: unknown format"]);
}

/// `EXPLAIN ANALYZE` says how much of the lake was read, through every view.
#[test]
fn an_analyzed_plan_counts_files_and_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let lake = fixture(folder.path());
    let day = "2026-01-02";
    let mut files = vec![lake.join("sync_records")];
    let (mut all, mut of_day, mut bytes) = (0, 0, 0);
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "parquet")
            && !path.to_str().unwrap().contains("_log")
        {
            all += 1;
            of_day += usize::from(path.to_str().unwrap().contains(day));
            bytes += path.metadata().unwrap().len();
        }
    }
    assert!(of_day > 0 && of_day < all, "{of_day} of {all}");
    for view in ["sync_records", "changes", "daily_changes"] {
        let sql = format!("explain analyze select * from {view} where event_date = date '{day}'");
        let plan = ok(query().arg("--lake").arg(&lake).args(["-c", &sql]));
        let read = plan.lines().skip_while(|line| *line != "Read").nth(1).unwrap_or_default();
        assert!(read.contains(&format!("{of_day} of {all} files")), "{view}: {plan}");
        assert!(read.contains(&format!("(all files have {})", indicatif::HumanBytes(bytes))), "{view}: {read}");
        assert!(read.contains(&format!("{} files were skipped", all - of_day)), "{view}: {read}");
    }
    // A plan alone reads nothing.
    let plan = ok(query().arg("--lake").arg(&lake).args(["-c", "explain select * from changes"]));
    assert!(!plan.contains("Read"), "{plan}");
}

/// Statements and backslash commands of a script run in the order given, and files that it includes in their place.
#[test]
fn a_script_runs_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let lake = fixture(folder.path());
    let part = folder.path().join("it's a part.sql");
    std::fs::write(&part, "select 2 as b;\n\\format tsv\n").unwrap();
    let out = folder.path().join("out.csv");
    let script = format!(
        "\\format csv\nselect 1 as a; select ';' as s\n;\n\\i {}\nselect 3 as c, 4 as d;\n\\format csv\n\\o {}\nselect 5 as e;\n\
         select 6 as f;\n\\o\nselect 7 as g",
        part.display(),
        out.display()
    );
    let mut child = query().arg("--lake").arg(&lake).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success());
    assert_eq!(text(&done.stdout), "a\n1\ns\n;\nb\n2\nc\td\n3\t4\ng\n7\n");
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "e\n5\nf\n6\n");
    let circle = folder.path().join("circle.sql");
    std::fs::write(&circle, format!("\\i {}\n", circle.display())).unwrap();
    refused(&query().arg("--lake").arg(&lake).arg("-f").arg(&circle).output().unwrap(), 1, &["include each other"]);
    let missing = query().arg("--lake").arg(&lake).args(["-c", "\\i /nowhere.sql"]).output().unwrap();
    refused(&missing, 1, &["read /nowhere.sql", "No such file"]);
}

/// `--at` shows all tables as they were committed at one moment, or says why it cannot.
#[test]
fn the_past_of_a_lake_is_read_at_one_moment() {
    let folder = tempfile::tempdir().unwrap();
    let lake = fixture(folder.path());
    let run = |args: &[&str], sql: &str| {
        query().arg("--lake").arg(&lake).args(["--format", "csv"]).args(args).args(["-c", sql]).output().unwrap()
    };
    let count = |args: &[&str], of: &str| {
        let done = run(args, &format!("select count(*) as n from {of}"));
        assert!(done.status.success(), "{args:?} {of}: {}", text(&done.stderr));
        text(&done.stdout).lines().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let relations = ["sync_records", "quarantine", "key_state", "current_state", "changes", "daily_extract"];
    let before = relations.map(|of| count(&[], of));
    let time = chrono::Utc::now().to_rfc3339();
    let log = lake.join("sync_records/_delta_log");
    let versions = || {
        std::fs::read_dir(&log)
            .unwrap()
            .filter(|e| e.as_ref().unwrap().path().extension() == Some("json".as_ref()))
            .count()
    };
    let version = (versions() - 1).to_string();
    ok(synclake().args(["refresh", "--lake"]).arg(&lake));
    let more = folder.path().join("more.ndjson");
    let golden = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/golden.ndjson")).unwrap();
    std::fs::write(&more, golden.replace("us-east-1:0001", "us-east-1:0009") + "no JSON\n").unwrap();
    ingest_file(&more, &lake);
    ok(synclake().args(["extract", "--date", "2026-01-02", "--lake"]).arg(&lake));
    let now = relations.map(|of| count(&[], of));
    assert!(now.iter().zip(before).all(|(now, before)| *now > before), "{before:?} {now:?}");
    assert_eq!(relations.map(|of| count(&["--at", &time], of)), before);
    assert_eq!(relations.map(|of| count(&["--at", &version], of)), before);
    let script =
        format!("\\at {version}\nselect count(*) as n from changes;\n\\at\nselect count(*) as n from changes;");
    let both = text(&run(&[], &script).stdout);
    assert_eq!(both, format!("n\n{}\nn\n{}\n", before[4], now[4]));
    let day = count(&["--at", &time, "--as-of", "2026-01-01"], "sync_records");
    assert!(day > 0 && day < before[0], "{day}");
    let newest = (versions() - 1).to_string();
    refused(&run(&["--at", "999"], "select 1 from changes"), 1, &["no version 999 yet", &newest]);
    refused(&run(&["--at", "2020-01-01"], "select 1 from changes"), 1, &["no lake at 2020-01-01T00:00:00Z"]);
    let wrong = query().arg("--lake").arg(&lake).args(["--at", "monday", "-c", "select 1"]).output().unwrap();
    refused(&wrong, 2, &["monday", "2026-11-20T15:04:05Z"]);
}
