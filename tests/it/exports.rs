//! Tests that results reach files, folders and objects whole or not at all, and that other programs read them.

use std::io::Write;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};

use serde_json::Value;

use crate::fleet::wait_until;
use crate::harness::{ingest_file, ok, python, query, refused, rows, setting, simulate, text};
use crate::kinesis::make_bucket;

fn fixture(folder: &Path) -> String {
    let lake = folder.join("lake");
    ingest_file(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/golden.ndjson").as_ref(), &lake);
    lake.display().to_string()
}

fn export(lake: &str, args: &[&str], out: &str) -> Command {
    let mut command = query();
    command.args(["--lake", lake]).args(args).args(["-o", out]);
    if out.starts_with("s3://") {
        command.args(["--endpoint-url", &setting("SYNCLAKE_TEST_S3")]);
    }
    command
}

/// Runs Python with arguments, and returns what it printed as JSON.
fn by_python(script: &str, args: &[&str]) -> Value {
    serde_json::from_str(&ok(python().args(["-c", script]).args(args))).unwrap()
}

/// pyarrow finds the same rows and types in Arrow files, Arrow streams and Parquet; the name of the file decides the format.
#[test]
fn arrow_holds_what_parquet_holds() {
    let folder = tempfile::tempdir().unwrap();
    let lake = fixture(folder.path());
    let sql = "select *, interval '3' day as three, [key, value] as pair, map(['k'], [pool]) as pools, \
               to_timestamp_seconds(sync_count) as at from changes order by identity_id, key, arrived_at";
    let place = |name: &str| folder.path().join(name).display().to_string();
    for name in ["x.arrow", "x.parquet"] {
        assert_eq!(ok(&mut export(&lake, &["-c", sql], &place(name))), "");
    }
    let stream = query().args(["--lake", &lake, "--format", "arrow", "-c", sql]).output().unwrap();
    assert!(stream.status.success(), "{}", text(&stream.stderr));
    std::fs::write(place("x.arrows"), stream.stdout).unwrap();
    let script = "import sys, json, pyarrow as pa, pyarrow.parquet as pq\n\
                  file = pa.ipc.open_file(sys.argv[1]).read_all()\n\
                  stream = pa.ipc.open_stream(sys.argv[2]).read_all()\n\
                  parquet = pq.read_table(sys.argv[3])\n\
                  assert file.equals(stream)\n\
                  assert str(parquet['three'][0]) == sys.argv[4], parquet['three'][0]\n\
                  kept = [name for name in parquet.column_names if name != 'three']\n\
                  assert file.select(kept).to_pylist() == parquet.select(kept).to_pylist()\n\
                  assert str(parquet.schema.field('at').type).startswith('timestamp'), parquet.schema\n\
                  parquet.sort_by('pool').filter(pa.compute.field('key') == 'x')\n\
                  types = [str(f.type) for f in list(file.schema) + list(parquet.schema)]\n\
                  views = [of for of in types if 'view' in of or 'dictionary' in of]\n\
                  print(json.dumps([file.num_rows, str(file.schema.field('last_modified_date').type), views]))";
    let three = rows(&lake, "select interval '3' day as three")[0]["three"].as_str().unwrap().to_owned();
    let told = by_python(script, &[&place("x.arrow"), &place("x.arrows"), &place("x.parquet"), &three]);
    assert_eq!(told[0], rows(&lake, "select count(*) as n from changes")[0]["n"]);
    assert!(told[1].as_str().unwrap().starts_with("timestamp"), "{told}");
    assert_eq!(told[2], serde_json::json!([]));
    let parquet = ["--format", "parquet", "-c", "select 1 as a", "-c", "select 2 as a"];
    let two = query().args(["--lake", &lake]).args(parquet).output().unwrap();
    assert_eq!(two.status.code(), Some(1), "{}", text(&two.stderr));
    assert!(text(&two.stderr).contains("a second result"), "{}", text(&two.stderr));
    let twice = "select a.key, b.key from changes a cross join changes b limit 1";
    let twice = export(&lake, &["-c", twice], &place("y.arrow")).output().unwrap();
    refused(&twice, 1, &["two columns are named \"key\""]);
}

/// A spreadsheet gets its byte order mark once, and formulas as text.
#[test]
fn csv_suits_a_spreadsheet() {
    let folder = tempfile::tempdir().unwrap();
    let lake = fixture(folder.path());
    let out = folder.path().join("x.csv");
    let sql = "select '=1+1' as \"é\"";
    ok(&mut export(&lake, &["--bom", "--guard-formulas", "-c", sql], out.to_str().unwrap()));
    assert_eq!(std::fs::read(&out).unwrap(), "\u{feff}é\n'=1+1\n".as_bytes());
    let script = format!("\\o {}\n{sql};\n{sql}", out.display());
    ok(query().args(["--lake", &lake, "--bom", "-c", &script]));
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "\u{feff}é\n=1+1\né\n=1+1\n");
}

/// Partitions hold all rows once, in the order of the statement, and Hive readers find the values of the columns.
#[test]
fn a_partitioned_folder_is_read_by_hive_readers() {
    let folder = tempfile::tempdir().unwrap();
    let (events, _) = simulate(folder.path(), &["--events", "3000"]);
    let lake = folder.path().join("lake");
    ingest_file(&events, &lake);
    let lake = lake.display().to_string();
    let out = folder.path().join("out").display().to_string();
    let sql = "select event_date, case when op = 'remove' then null else dataset_name || '/=%é' end as part, key, value, \
               sync_count from changes order by key desc, sync_count, value";
    ok(&mut export(&lake, &["--partition-by", "event_date,part", "-c", sql], &out));
    assert!(Path::new(&out).join("_SUCCESS").exists());
    let script = "import sys, json, glob, duckdb, pyarrow.parquet as pq\n\
                  for path in glob.glob(sys.argv[1] + '/**/*.parquet', recursive=True):\n\
                  \x20   keys = pq.ParquetFile(path).read()['key'].to_pylist()\n\
                  \x20   assert keys == sorted(keys, key=lambda key: (key is None, key or ''), reverse=True), path\n\
                  found = duckdb.sql(f\"select event_date::varchar as event_date, part, key, value, sync_count from \
                  read_parquet('{sys.argv[1]}/*/*/*.parquet', hive_partitioning = true)\").fetchall()\n\
                  print(json.dumps(found))";
    let mut found: Vec<String> =
        by_python(script, &[&out]).as_array().unwrap().iter().map(|row| row.to_string()).collect();
    let of_row = |row: Value| {
        let part = |name: &str| row[name].clone();
        Value::Array(["event_date", "part", "key", "value", "sync_count"].map(part).to_vec()).to_string()
    };
    let mut expected: Vec<String> = rows(&lake, sql).into_iter().map(of_row).collect();
    found.sort_unstable();
    expected.sort_unstable();
    assert!(expected.len() > 3000 && expected.iter().any(|row| row.contains("/=%é")), "{}", expected.len());
    assert!(found == expected, "{:?} {:?}", found.first(), expected.first());

    let again = export(&lake, &["--partition-by", "event_date", "-c", sql], &out).output().unwrap();
    refused(&again, 1, &["has files already", "name a new folder"]);
    let beside = folder.path().join("beside");
    let beside = beside.to_str().unwrap();
    for (args, parts) in [
        (["--partition-by", "day", "-c", sql], ["the result has no column day", "it has event_date, part"]),
        (["--partition-by", "a", "-c", "select '' as a, 1 as b"], ["a has the text ''", "nullif(a, '')"]),
        (["--partition-by", "a", "-c", "select 1.5 as a, 1 as b"], ["names no folder", "cast it"]),
        (["--partition-by", "a", "-c", "select 1 as a"], ["no column is left", ""]),
        (["--partition-by", "a", "-c", "select 1 as a, 2 as \"A\""], ["two columns are named a", "but for capitals"]),
        (["--partition-by", "a", "-c", "select key as a, cast(value as bigint) as b from changes"], ["cannot", ""]),
    ] {
        let output = export(&lake, &args, beside).output().unwrap();
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(parts.iter().all(|part| error.to_lowercase().contains(&part.to_lowercase())), "{error}");
    }
    // Nothing stays of what failed.
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| !name.to_str().unwrap().starts_with("beside")), "{names:?}");
    let table = format!("{lake}/state/x.csv");
    refused(&export(&lake, &["-c", "select 1"], &table).output().unwrap(), 1, &["folder of the table state"]);
}

fn curl(method: &str, path: &str) -> String {
    ok(Command::new("curl").args(["-sf", "-X", method, &format!("{}/{path}", setting("SYNCLAKE_TEST_S3"))]))
}

/// Objects of any size appear whole, replace older ones, and nothing stays of a result that failed or was killed.
#[tokio::test(flavor = "multi_thread")]
async fn results_go_straight_to_s3() {
    let folder = tempfile::tempdir().unwrap();
    make_bucket("exports-bucket").await;
    let lake = fixture(folder.path());
    // Some 40 MB of CSV, which are three parts.
    let many = "changes a cross join changes b cross join changes c cross join changes d";
    let large = format!("select a.key, repeat('x', 1000) as pad from {many} limit 40000");
    let object = "s3://exports-bucket/deep/report.csv";
    ok(&mut export(&lake, &["-c", "select 1 as a"], object));
    assert_eq!(curl("GET", "exports-bucket/deep/report.csv"), "a\n1\n");
    ok(&mut export(&lake, &["-c", &large], object));
    let whole = curl("GET", "exports-bucket/deep/report.csv");
    assert_eq!((whole.lines().count(), whole.lines().last().map(str::len) > Some(1000)), (40_001, true));
    ok(&mut export(&lake, &["-c", "select * from changes"], "s3://exports-bucket/deep/x.parquet"));
    let uploads = || curl("GET", "exports-bucket?uploads=").matches("<Upload>").count();
    assert_eq!(uploads(), 0);

    // The last row fails, when parts have been sent.
    let fails = format!(
        "select pad, cast(case when n = 40000 then pad else '1' end as bigint) as b from (select pad, row_number() over () \
         as n from ({large}))"
    );
    let failed = export(&lake, &["-c", &fails], "s3://exports-bucket/failed.csv").output().unwrap();
    assert_eq!(failed.status.code(), Some(1), "{}", text(&failed.stderr));
    let endless = format!("select repeat('x', 1000) as pad from {many} cross join changes e");
    let mut killed = export(&lake, &["-c", &endless], "s3://exports-bucket/killed.csv");
    let mut killed = killed.stderr(Stdio::null()).spawn().unwrap();
    wait_until("an upload", || uploads() == 1);
    let pid = killed.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(killed.wait().unwrap().code(), Some(143));
    assert_eq!(uploads(), 0);
    let listed = curl("GET", "exports-bucket");
    assert!(!listed.contains("failed.csv") && !listed.contains("killed.csv"), "{listed}");

    let prefix = "s3://exports-bucket/parts";
    ok(&mut export(&lake, &["--partition-by", "op", "-c", "select * from changes"], prefix));
    let listed = curl("GET", "exports-bucket?prefix=parts");
    for key in ["parts/op=remove/part-0.parquet", "parts/op=replace/part-0.parquet", "parts/_SUCCESS"] {
        assert!(listed.contains(key), "{key} is not in {listed}");
    }
    // One of several objects cannot be completed: none of them stays.
    let by_day =
        || export(&lake, &["--partition-by", "event_date", "-c", "select * from changes"], "s3://exports-bucket/days");
    let failed = by_day().env("FAILPOINTS", "upload/complete=2*off->1*return").output().unwrap();
    refused(&failed, 1, &["write s3://exports-bucket/days/event_date="]);
    let under = || curl("GET", "exports-bucket?prefix=days/").matches("<Key>").count();
    assert_eq!((under(), uploads()), (0, 0));
    // A stop while the objects appear: as if the program had been stopped before, or had ended.
    let stopped =
        by_day().env("FAILPOINTS", "upload/completed=1*return(terminate)->1*sleep(1000)->off").output().unwrap();
    assert_eq!(stopped.status.code(), Some(143), "{}", text(&stopped.stderr));
    assert_eq!((under(), uploads()), (0, 0));
    ok(&mut by_day());
    assert!(under() > 3, "{} objects", under());
    let again = export(&lake, &["--partition-by", "op", "-c", "select * from changes"], prefix).output().unwrap();
    refused(&again, 1, &["s3://exports-bucket/parts has files already"]);
    let nowhere = export(&lake, &["-c", "select 1"], "s3://no-such-bucket/x.csv").output().unwrap();
    refused(&nowhere, 1, &["write s3://no-such-bucket/x.csv"]);
    refused(&export(&lake, &["-c", "select 1"], "s3://exports-bucket").output().unwrap(), 2, &["names no object"]);
}

/// Ctrl-C in the shell ends an upload: no object appears, no part stays, and the shell goes on.
#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_in_the_shell_ends_an_upload() {
    let folder = tempfile::tempdir().unwrap();
    make_bucket("stopped-bucket").await;
    let lake = fixture(folder.path());
    let mut shell = python();
    shell.args(["-c", "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)", env!("CARGO_BIN_EXE_synclake-query")]);
    shell.args(["--lake", &lake, "--endpoint-url", &setting("SYNCLAKE_TEST_S3")]);
    let given = query();
    shell.envs(given.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell.env("TERM", "xterm").env("XDG_STATE_HOME", folder.path());
    let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut keys = shell.stdin.take().unwrap();
    let history = folder.path().join("synclake/history");
    // A line is in the history when the shell has taken it.
    let typed = |keys: &mut ChildStdin, text: &str| {
        keys.write_all(format!("{text}\r").as_bytes()).unwrap();
        wait_until(text, || std::fs::read_to_string(&history).is_ok_and(|lines| lines.trim_end().ends_with(text)));
    };
    let uploads = || curl("GET", "stopped-bucket?uploads=").matches("<Upload>").count();
    typed(&mut keys, "\\o s3://stopped-bucket/x.csv");
    typed(&mut keys, "select repeat('x', 1000) as pad from changes a, changes b, changes c, changes d, changes e;");
    wait_until("an upload", || uploads() == 1);
    keys.write_all(b"\x03").unwrap();
    wait_until("the end of the upload", || uploads() == 0);
    // Typed ahead, all at once.
    keys.write_all(b"\\o\rselect 4242 + 1 as alive;\r\\q\r").unwrap();
    let done = shell.wait_with_output().unwrap();
    let shown = text(&done.stdout);
    assert!(done.status.success() && shown.contains("cancelled") && shown.contains("4243"), "{shown}");
    assert_eq!(curl("GET", "stopped-bucket").matches("<Key>").count(), 0);
}
