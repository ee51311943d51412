//! Tests of user mistakes: one clear line, the right exit code, and nothing half-done.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Output, Stdio};

use crate::harness::{ingest_file, ok, query, refused, simulate, synclake, text};

fn run(args: &[&str]) -> Output {
    synclake().args(args).output().unwrap()
}

/// A wrong command line is rejected with one line that names the mistake, and nothing is created.
#[test]
fn command_lines() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().to_str().unwrap();
    let nowhere = format!("{here}/nowhere");
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&["extract", "--lake", here, "--date", "2026-13-01"], 2, &["2026-13-01", "YYYY-MM-DD"]),
        (&["extract", "--lake", here, "--date", "2026-1-1"], 2, &["2026-1-1"]),
        (&["ingest", "--sauce", "x"], 2, &["--sauce"]),
        (&["ingest", "--lake", here], 2, &["--source is missing", "SYNCLAKE_SOURCE"]),
        (&["ingest", "--source", "file:x"], 2, &["--lake is missing"]),
        (&["ingest", "--source", "ftp:x", "--lake", here], 2, &["ftp:x", "kinesis:<stream>"]),
        (&["ingest", "--source", "file:x", "--lake", "s3://"], 2, &["names no bucket"]),
        (&["ingest", "--source", "file:x", "--lake", "gs://b"], 2, &["gs://"]),
        (&["ingest", "--source", "file:x", "--lake", here, "--memory", "1MiB"], 2, &["64MiB"]),
        (&["ingest", "--source", "file:x", "--lake", here, "--flush-interval", "5 parsecs"], 2, &["5 parsecs", "60s"]),
        (&["ingest", "--source", "kinesis:a", "--lake", here, "--from", "noon"], 2, &["noon", "trim-horizon"]),
        (&["ingest", "--source", "kinesis:a/b", "--lake", here], 2, &["a/b", "--source"]),
        (&["ingest", "--source", &format!("file:{nowhere}"), "--lake", here], 1, &["nowhere", "No such file"]),
        (&["ingest", "--source", &format!("file:{here}"), "--lake", here], 1, &["holds no .json"]),
        (&["simulate", "--duplicates", "1.5"], 2, &["1.5"]),
        (&["simulate", "--events", "-1"], 2, &["-1"]),
        (&["simulate", "--to", "sqs:x"], 2, &["kinesis:<stream>"]),
        (&["extract", "--lake", &nowhere, "--date", "yesterday"], 1, &["nowhere does not exist", "synclake ingest"]),
        (&["extract", "--lake", here, "--date", "yesterday"], 1, &["is not a lake", "synclake ingest"]),
        (&["--config", &nowhere, "extract", "--lake", here, "--date", "yesterday"], 2, &["nowhere"]),
        (&["ingest", "--source", "file:/etc/hostname", "--lake", "/proc/lake"], 1, &["/proc/lake"]),
        (
            &["ingest", "--source", "file:/etc/hostname", "--lake", "/etc/hostname"],
            1,
            &["/etc/hostname", "it is a file"],
        ),
        (&["status", "--lake", "/etc/hostname"], 1, &["/etc/hostname", "it is a file", "give a folder"]),
        (&["status", "--lake", "/etc/hostname/lake"], 1, &["/etc/hostname/lake", "lies below one"]),
        (
            &["ingest", "--source", "file:/etc/hostname", "--lake", &format!("{here}/a%20b")],
            1,
            &["a%20b", "another name"],
        ),
        (&["frobnicate"], 2, &["frobnicate"]),
    ];
    for (args, code, parts) in cases {
        refused(&run(args), *code, parts);
    }
    let odd = OsStr::from_bytes(b"a\xff");
    let parts = ["not UTF-8: ", r"a\xFF", "symbolic link"];
    for command in [synclake().arg("status"), query().args(["-c", "select 1"])] {
        refused(&command.arg("--lake").arg(odd).output().unwrap(), 2, &parts);
    }
    let by_variable = synclake().arg("status").env("SYNCLAKE_LAKE", odd).output().unwrap();
    refused(&by_variable, 2, &["SYNCLAKE_LAKE", parts[1], parts[2]]);
    assert_eq!(std::fs::read_dir(here).unwrap().count(), 1, "nothing was made but the folder with the odd name");
}

/// A statement that is wrong, too large or not read-only fails with one clear line and leaves no file.
#[test]
fn sql() {
    // The build side of a hash join cannot spill.
    const STARVED: &str = "with s as (select value, repeat(value::varchar, 200) as text from generate_series(10000, 99999)) \
                           select max(a.text), max(b.text) from s a join s b using (value)";
    let folder = tempfile::tempdir().unwrap();
    let (events, _) = simulate(folder.path(), &["--events", "50"]);
    let lake = folder.path().join("lake");
    ingest_file(&events, &lake);
    let spilled = tempfile::tempdir().unwrap();
    let mut starved = query();
    starved.arg("--lake").arg(&lake).args(["--memory", "64MiB", "-c", STARVED]).env("TMPDIR", spilled.path());
    let starved = starved.output().unwrap();
    let told = text(&starved.stderr);
    assert!(told.contains("out of memory") && told.contains("raise --memory"), "{told}");
    assert!(starved.status.code() == Some(1) && !told.contains("datafusion."), "{told}");
    // A limit on the file size acts like a full disk, at the first write or at a later one.
    // Rows and memory grow with the number of threads, so that each thread spills on any machine.
    let threads = std::thread::available_parallelism().unwrap().get();
    let (last, memory) = (100_000 + threads * 450_000, format!("{}MiB", threads * 32));
    let spills = format!("select repeat(value::varchar, 50) as t from generate_series(100000, {last}) order by t desc");
    for blocks in ["0", "4000"] {
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"");
        let full = std::process::Command::new("sh")
            .args(["-c", &script, "sh", env!("CARGO_BIN_EXE_synclake-query")])
            .args(["--memory", &memory, "-c", &spills, "--lake"])
            .arg(&lake)
            .env("TMPDIR", spilled.path())
            .output()
            .unwrap();
        let told = text(&full.stderr);
        assert!(full.status.code() == Some(1) && told.lines().count() == 1, "{blocks}: {told}");
        assert!(told.contains("File too large") && told.contains("TMPDIR"), "{told}");
        assert!(told.starts_with("error: cannot spill to"), "{told}");
    }
    assert_eq!(
        std::fs::read_dir(spilled.path()).unwrap().count(),
        0,
        "what was spilled is removed, also after an error"
    );
    let run = |sql: &str| query().arg("--lake").arg(&lake).args(["-c", sql]).output().unwrap();
    let file = folder.path().join("stolen.csv");
    let to_file = format!("copy (select 1) to '{}'", file.display());
    let part = |n: usize| format!(" || repeat('{n}', 15000) || k");
    let joined: String = (10..60).map(part).collect();
    let joined =
        format!("select max(length(k{joined})) from (select key as k, unnest(range(1, 4000)) from sync_records)");
    let chain = format!("select {}", vec!["1"; 20_000].join("+"));
    let unions = vec!["select 1"; 5_000].join(" union all ");
    let nested = format!("select {}1{}", "(".repeat(1_400), ")".repeat(1_400));
    let cases: &[(&str, &[&str])] = &[
        (&to_file, &["read-only"]),
        ("create external table t stored as csv location '/etc/passwd'", &["read-only"]),
        ("create table t as select 1", &["read-only"]),
        ("create view v as select 1", &["read-only"]),
        ("drop view current_state", &["read-only"]),
        ("insert into sync_records select * from sync_records", &["read-only"]),
        ("delete from sync_records", &["read-only"]),
        ("update sync_records set key = 'x'", &["read-only"]),
        ("set datafusion.execution.batch_size = 1", &["no setting", "--help"]),
        ("prepare p as select 1", &["no statement begins with prepare"]),
        ("begin", &["read-only"]),
        ("explain insert into sync_records select * from sync_records", &["read-only"]),
        ("select * from '/etc/passwd'", &["/etc/passwd"]),
        ("select * from read_csv('/etc/passwd')", &["read_csv"]),
        ("", &["empty"]),
        ("-- only a comment", &["empty"]),
        (" ; ; ", &["empty"]),
        ("select 'open", &["Unterminated"]),
        ("selct 1", &["selct", "did you mean select?"]),
        ("select nothing_like_it from current_state", &["nothing_like_it"]),
        ("select * from nowhere", &["nowhere"]),
        ("select 1 limit -1", &["LIMIT"]),
        ("select repeat('a', 2000000000)", &["too long"]),
        ("select repeat('a', 2000000000::bigint + length(key)) from current_state", &["too long"]),
        ("select lpad('a', 2000000000)", &["too long"]),
        ("select length(replace(repeat('a', 1000000), 'a', repeat('b', 1000)))", &["replace", "too long"]),
        ("select length(regexp_replace(repeat('a', 100000), '', repeat('b', 100000), 'g'))", &["too long"]),
        ("select array_length(array_repeat(key, 1000000000)) from sync_records", &["array_repeat", "too long"]),
        ("select array_length(array_resize([1], 1000000000))", &["array_resize", "too long"]),
        ("select count(*) from (select unnest(range(1, 1000000000)) from sync_records) t", &["too long"]),
        ("select repeat('a', 600000) || repeat('b', 600000), key from sync_records", &["too long for a column"]),
        (&joined, &["||", "too long"]),
        (&chain, &["too deep"]),
        (&unions, &["too deep"]),
        (&nested, &["recursion"]),
        ("\\frob", &["\\frob"]),
        ("\\d nowhere", &["nowhere"]),
    ];
    for (sql, parts) in cases {
        refused(&run(sql), 1, parts);
    }
    assert!(!file.exists());
    let injected = "select count(*) as n from current_state where identity_id = ''' OR 1=1 --'";
    let found = ok(query().arg("--lake").arg(&lake).args(["--format", "csv", "-c", injected]));
    assert_eq!(found, "n\n0\n");

    // The stack must hold every statement that the size check admits.
    let chain = format!("select {} as n", vec!["1"; 2_900].join("+"));
    let unions = format!("select count(*) as n from ({})", vec!["select 1"; 900].join(" union all "));
    for sql in [chain, unions] {
        ok(query().arg("--lake").arg(&lake).args(["-c", &sql]));
    }

    for (bytes, parts) in [
        (b"select '\0'".to_vec(), ["NUL"]),
        (vec![b' '; 10_000_000], ["too long"]),
        (b"select '\xff'".to_vec(), ["UTF-8"]),
    ] {
        let mut child = query()
            .arg("--lake")
            .arg(&lake)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The program may stop reading before the end.
        let _ = child.stdin.take().unwrap().write_all(&bytes);
        refused(&child.wait_with_output().unwrap(), 1, &parts);
    }
    let out = folder.path().join("two.csv");
    let two = query().arg("--lake").arg(&lake).args(["-c", "select 1; select 2", "-o"]).arg(&out).output().unwrap();
    refused(&two, 1, &["two.csv", "statements where one is expected"][1..]);
    assert!(!out.exists());
    let failing = query()
        .arg("--lake")
        .arg(&lake)
        .args(["-c", "select 1/(sync_count-sync_count) from sync_records", "-o"])
        .arg(&out)
        .output()
        .unwrap();
    refused(&failing, 1, &["Divide by zero"]);
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "no partial file stays: {left:?}");
}

/// A reader that closes the pipe early causes no error, in any format.
#[test]
fn a_reader_that_leaves_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let (events, _) = simulate(folder.path(), &["--events", "3000"]);
    let lake = folder.path().join("lake");
    ingest_file(&events, &lake);
    for format in ["table", "csv", "json", "ndjson", "vertical"] {
        let command = format!(
            "'{}' --lake '{}' --format {format} -c 'select * from sync_records' | head -n 1; echo ${{PIPESTATUS[0]}}",
            env!("CARGO_BIN_EXE_synclake-query"),
            lake.display()
        );
        let output = std::process::Command::new("bash").args(["-c", &command]).output().unwrap();
        assert!(text(&output.stdout).ends_with("\n0\n"), "{format}: {}", text(&output.stdout));
        assert!(output.stderr.is_empty(), "{format}: {}", text(&output.stderr));
    }
}

fn a_lake(folder: &Path) -> std::path::PathBuf {
    let (events, _) = simulate(folder, &["--events", "50"]);
    let lake = folder.join("lake");
    ingest_file(&events, &lake);
    lake
}

/// An error of a damaged lake names the damaged file.
#[test]
fn damaged_lakes_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let lake = a_lake(folder.path());
    let run =
        || query().arg("--lake").arg(&lake).args(["-c", "select sum(sync_count) from sync_records"]).output().unwrap();
    let commit = lake.join("sync_records/_delta_log/00000000000000000002.json");
    let whole = std::fs::read(&commit).unwrap();
    std::fs::write(&commit, "{\"add\":").unwrap();
    refused(&run(), 1, &["00000000000000000002.json"]);
    std::fs::write(&commit, &whole).unwrap();
    let data = std::fs::read_dir(lake.join("sync_records")).unwrap();
    let pool = data.map(|e| e.unwrap().path()).find(|p| p.to_string_lossy().contains("pool=")).unwrap();
    let date = std::fs::read_dir(pool).unwrap().next().unwrap().unwrap().path();
    let file = std::fs::read_dir(date).unwrap().next().unwrap().unwrap().path();
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, [&bytes[..bytes.len() - 8], b"GARBAGE!"].concat()).unwrap();
    refused(&run(), 1, &[file.file_name().unwrap().to_str().unwrap()]);
    std::fs::remove_file(&file).unwrap();
    refused(&run(), 1, &[file.file_name().unwrap().to_str().unwrap()]);
}

/// A result replaces a file without changing its permissions; a read-only file stays; a killed query leaves no file.
#[test]
fn an_output_file_keeps_its_mode() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let (events, _) = simulate(folder.path(), &["--events", "5"]);
    let lake = folder.path().join("lake");
    ingest_file(&events, &lake);
    let mode = |name: &str| std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o777;
    let make = |name: &str, mode: u32| {
        let path = folder.path().join(name);
        std::fs::write(&path, "secret").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let run = |sql: &str, output: &str| {
        let args = ["--format", "csv", "-c", sql, "-o", output];
        query().arg("--lake").arg(&lake).args(args).current_dir(&folder).output().unwrap()
    };
    make("private.csv", 0o600);
    make("kept.csv", 0o444);
    assert!(run("select 1 as a", "private.csv").status.success());
    assert_eq!(
        (mode("private.csv"), std::fs::read_to_string(folder.path().join("private.csv")).unwrap()),
        (0o600, "a\n1\n".to_owned())
    );
    refused(&run("select 1 as a", "kept.csv"), 1, &["kept.csv", "read-only"]);
    assert_eq!((mode("kept.csv"), std::fs::read(folder.path().join("kept.csv")).unwrap()), (0o444, b"secret".to_vec()));
    let shown = run("select 1 as a", "-");
    assert_eq!((text(&shown.stdout).as_str(), folder.path().join("-").exists()), ("a\n1\n", false));
    // `/dev/stdout` keeps its place among other output, and a link is followed to its target.
    let program = env!("CARGO_BIN_EXE_synclake-query");
    let script = format!(
        "(echo before; {program} --lake lake --format csv -c 'select 1 as a' -o /dev/stdout; echo after) > all.txt"
    );
    assert!(std::process::Command::new("sh").args(["-c", &script]).current_dir(&folder).status().unwrap().success());
    assert_eq!(std::fs::read_to_string(folder.path().join("all.txt")).unwrap(), "before\na\n1\nafter\n");
    std::os::unix::fs::symlink("target.csv", folder.path().join("link.csv")).unwrap();
    for sql in ["select 1 as a", "select 2 as a"] {
        assert!(run(sql, "link.csv").status.success());
    }
    assert!(folder.path().join("link.csv").is_symlink());
    assert_eq!(std::fs::read_to_string(folder.path().join("target.csv")).unwrap(), "a\n2\n");
    refused(&run("\\d current_state", "columns.txt"), 1, &["-o", "backslash"]);
    assert!(!folder.path().join("columns.txt").exists());
    // A query that is terminated while it writes leaves no file.
    let slow = "select a.key from sync_records a, sync_records b, sync_records c, sync_records d, sync_records e, \
                sync_records f, sync_records g, sync_records h, sync_records i, sync_records j, sync_records k";
    let child = query().arg("--lake").arg(&lake).args(["-c", slow, "-o", "slow.csv"]).current_dir(&folder).spawn();
    let mut child = child.unwrap();
    let staged = || {
        let names = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("slow.csv")).count()
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while staged() == 0 {
        assert!(std::time::Instant::now() < deadline && child.try_wait().unwrap().is_none());
        std::thread::yield_now();
    }
    assert!(std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    assert_eq!((child.wait().unwrap().code(), staged()), (Some(143), 0));
}

/// A `synclake` that is `synclake-query` under another name is an error, and no loop.
#[test]
fn a_program_that_is_the_other_one_is_named() {
    let folder = tempfile::tempdir().unwrap();
    // A file that this process wrote could still be open for writing in a child of another test.
    let make = |how: &[&str], from: &str, to: &str| {
        ok(std::process::Command::new(how[0]).args(&how[1..]).args([from, to]).current_dir(&folder));
    };
    let run = || {
        let mut command = std::process::Command::new("timeout");
        command.arg("20").arg(folder.path().join("synclake-query")).arg("--version").output().unwrap()
    };
    make(&["cp"], env!("CARGO_BIN_EXE_synclake-query"), "synclake-query");
    refused(&run(), 1, &["cannot start", "put both into one folder"]);
    for how in [&["cp"][..], &["ln", "-f"], &["ln", "-sf"]] {
        make(how, "synclake-query", "synclake");
        refused(&run(), 1, &["synclake\" is not the program synclake", "install both programs again"]);
    }
    make(&["ln", "-sf"], env!("CARGO_BIN_EXE_synclake"), "synclake");
    assert!(text(&run().stdout).starts_with("synclake-query "));
}
