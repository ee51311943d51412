//! Tests of files, folders and pipes as sources: every event arrives once, and no loss is silent.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{assert_every_event_once, count, ingest_file, ok, refused, simulate, synclake, text};

const ROWS: &str = "select count(*) from sync_records";

struct Made {
    folder: tempfile::TempDir,
    events: PathBuf,
    lines: Vec<String>,
    lake: PathBuf,
}

fn made(events: &str) -> Made {
    let folder = tempfile::tempdir().unwrap();
    let (events, _) = simulate(folder.path(), &["--events", events, "--seed", "4"]);
    let lines = std::fs::read_to_string(&events).unwrap().split_inclusive('\n').map(str::to_owned).collect();
    Made { lake: folder.path().join("lake"), folder, events, lines }
}

fn ingest(source: &str, lake: &Path) -> Command {
    let mut command = synclake();
    command.args(["ingest", "--source", source, "--lake"]).arg(lake);
    command
}

fn start(command: &mut Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn terminate(child: Child) -> Output {
    let sent = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let began = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert!(began.elapsed() < Duration::from_secs(15), "ended after {:?}", began.elapsed());
    output
}

fn summary(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stderr)))
}

/// Waits until a running ingest has committed this many records.
fn committed(lake: &Path, records: i64) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !lake.join("sync_records/_delta_log/00000000000000000002.json").exists()
        || count(lake.to_str().unwrap(), "select count(distinct sequence_number) from sync_records") < records
    {
        assert!(Instant::now() < deadline, "no commit in a minute");
    }
}

/// Lines from a quiet pipe are committed by their age and by SIGTERM, while the pipe stays open.
#[test]
fn lines_of_a_quiet_pipe_are_committed_by_age_and_by_a_signal() {
    let Made { folder: _folder, events, lines, lake } = made("60");
    let mut child = start(ingest("file:-", &lake).args(["--flush-age", "300ms"]));
    let mut pipe = child.stdin.take().unwrap();
    pipe.write_all(lines[..20].concat().as_bytes()).unwrap();
    committed(&lake, 20);
    pipe.write_all(lines[20..].concat().as_bytes()).unwrap();
    // The pipe stays open and idle.
    committed(&lake, lines.len() as i64);
    let output = terminate(child);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(summary(&output)["records"], lines.len());
    assert_every_event_once(lake.to_str().unwrap(), &events);
    drop(pipe);
}

/// An incomplete last line of a pipe is lost with an error that says so.
#[test]
fn half_a_line_of_a_pipe_is_lost_aloud() {
    let Made { folder, events, lines, lake } = made("60");
    let path = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    let child = start(ingest(&format!("file:{}", path.display()), &lake).args(["--flush-interval", "300ms"]));
    let mut pipe = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    pipe.write_all(format!("{}{}", lines[..30].concat(), &lines[30][..7]).as_bytes()).unwrap();
    committed(&lake, 30);
    let output = terminate(child);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("7 bytes were read but not committed"), "{}", text(&output.stderr));
    assert_eq!(summary(&output)["records"], 30);
    drop(pipe);

    // The end of a pipe loses the incomplete line in the same way. A file may still grow, so the line is not an error
    // there.
    let mut child = start(&mut ingest("file:-", &lake));
    child.stdin.take().unwrap().write_all(format!("{}no json", lines[..31].concat()).as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert_eq!(
        (&summary(&output)["records"], &summary(&output)["lost_bytes"]["standard input"]),
        (&1.into(), &7.into())
    );
    let torn = folder.path().join("torn");
    std::fs::write(&torn, format!("{}no json", lines[..31].concat())).unwrap();
    assert_eq!(ingest_file(&torn, &lake)["torn"][torn.to_str().unwrap()], 7);
    ingest_file(&events, &lake);
    assert_every_event_once(lake.to_str().unwrap(), &events);
}

/// SIGTERM ends an ingest that waits for the writer of a pipe.
#[test]
fn a_pipe_without_a_writer_ends_with_a_signal() {
    let Made { folder, lake, .. } = made("1");
    let path = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    let child = start(&mut ingest(&format!("file:{}", path.display()), &lake));
    // The first commit of `daily_state` shows that the lake is open and that the ingest waits.
    let deadline = Instant::now() + Duration::from_secs(60);
    while !lake.join("daily_state/_delta_log/00000000000000000000.json").exists() {
        assert!(Instant::now() < deadline);
    }
    assert_eq!(terminate(child).status.code(), Some(0));
}

/// A source that can be read only once doubles and loses no row, even if it starts like files of the lake.
#[test]
fn what_can_be_read_once_is_opened_once() {
    let Made { folder, events, lines, lake } = made("60");
    // Two files of the lake start as the pipe does: one is its beginning, the other is longer and differs.
    for (name, content) in
        [("day", lines[..5].concat()), ("other", format!("{}{}", lines[0], "{\"no\":\"event\"}\n".repeat(400)))]
    {
        std::fs::write(folder.path().join(name), content).unwrap();
        ingest_file(&folder.path().join(name), &lake);
    }
    let script = format!(
        "'{}' ingest --source file:<(cat '{}') --lake '{}'",
        env!("CARGO_BIN_EXE_synclake"),
        events.display(),
        lake.display()
    );
    let summary: Value = serde_json::from_str(&ok(Command::new("bash").args(["-c", &script]))).unwrap();
    assert_eq!(summary["records"], lines.len() - 5);
    assert_eq!(ingest_file(&events, &lake)["records"], 0);
    let doubled = "select count(*) from (select 1 from sync_records group by shard_id, sequence_number, record_index \
                   having count(*) > 1)";
    assert_eq!(count(lake.to_str().unwrap(), doubled), 0);
}

/// A damaged file of a folder does not stop the other files, and the error names it.
#[test]
fn a_bad_file_of_a_folder_stops_no_other() {
    let Made { folder, lines, lake, .. } = made("60");
    let inside = folder.path().join("in/2026/11");
    std::fs::create_dir_all(&inside).unwrap();
    std::fs::create_dir(folder.path().join("in/_temporary")).unwrap();
    let root = folder.path().join("in");
    let packed = |bytes: &str| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(bytes.as_bytes()).unwrap();
        gzip.finish().unwrap()
    };
    let damaged = {
        let mut damaged = packed(&lines[30..].concat());
        let at = damaged.len() - 6;
        damaged[at] ^= 1;
        damaged
    };
    std::fs::write(root.join("a.json"), lines[..10].concat()).unwrap();
    std::fs::write(root.join("b.json.gz"), &packed(&lines[10..20].concat())[..80]).unwrap();
    std::fs::write(inside.join("c.json"), lines[20..30].concat()).unwrap();
    std::fs::write(inside.join("d\u{1b}[31m.json.gz"), damaged).unwrap();
    std::fs::write(root.join("_temporary/e.json"), &lines[0]).unwrap();
    std::os::unix::fs::symlink("..", inside.join("loop")).unwrap();
    let source = format!("file:{}", root.display());
    let output = ingest(&source, &root.join("lake")).output().unwrap();
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    let error = told.lines().last().unwrap();
    assert!(error.contains("2 files could not be read") && error.contains("b.json.gz is cut off"), "{error}");
    assert!(error.contains(r"d\u{1b}[31m.json.gz is damaged") && !told.contains('\u{1b}'), "{error}");
    assert_eq!(summary(&output)["records"], 20, "nothing of a damaged file");

    // The damaged files are repaired. The lake lies in the source folder, and its log is not read as events.
    std::fs::write(root.join("b.json.gz"), packed(&lines[10..20].concat())).unwrap();
    std::fs::write(inside.join("d\u{1b}[31m.json.gz"), packed(&lines[30..].concat())).unwrap();
    let mended: Value = serde_json::from_str(&ok(&mut ingest(&source, &root.join("lake")))).unwrap();
    assert_eq!((&mended["records"], &mended["quarantined"]), (&(lines.len() - 20).into(), &serde_json::json!({})));
    drop(lake);
}

/// JSON that is not one event per line is rejected with a command that converts it.
#[test]
fn other_shapes_are_refused_by_name() {
    let Made { folder, lines, lake, .. } = made("20");
    let array = format!("[{}]", lines.concat().trim_end().replace('\n', ","));
    let pretty: String = lines
        .iter()
        .map(|line| serde_json::to_string_pretty(&serde_json::from_str::<Value>(line).unwrap()).unwrap() + "\n")
        .collect();
    for (name, content, command) in [
        ("array", array, "jq -c '.[]' "),
        ("pretty", pretty, "jq -c . "),
        ("concatenated", lines.concat().replace('\n', ""), "jq -c . "),
        ("returns", lines.concat().replace('\n', "\r"), r"tr '\r' '\n' < "),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let output = ingest(&format!("file:{}", path.display()), &lake).output().unwrap();
        refused(&output, 1, &[path.to_str().unwrap(), command, "| synclake ingest --source file:-"]);
    }
    assert_eq!(count(lake.to_str().unwrap(), "select count(*) from quarantine"), 0);
    assert_eq!(count(lake.to_str().unwrap(), ROWS), 0);
}

/// A file that another ingest read in the meantime is not read again.
#[test]
fn a_file_that_another_ingest_has_read_meanwhile_is_not_read_again() {
    let Made { folder: _folder, events, lake, .. } = made("60");
    // The late ingest fences its shard long after it has looked the shard up.
    let late =
        start(ingest(&format!("file:{}", events.display()), &lake).env("FAILPOINTS", "fence/before=1*sleep(3000)"));
    committed_by_another(&events, &lake);
    let late = late.wait_with_output().unwrap();
    assert_eq!(late.status.code(), Some(0), "{}", text(&late.stderr));
    assert_every_event_once(lake.to_str().unwrap(), &events);
}

fn committed_by_another(events: &Path, lake: &Path) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !lake.join("daily_state/_delta_log/00000000000000000000.json").exists() {
        assert!(Instant::now() < deadline);
    }
    ingest_file(events, lake);
}
