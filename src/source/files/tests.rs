use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;

use proptest::prelude::*;
use proptest::test_runner::TestRng;

use super::*;

fn options() -> ReadOptions {
    ReadOptions::new(256 << 20, CancellationToken::new())
}

/// A model of the lake: positions by shard, and every committed record.
#[derive(Default)]
struct Lake {
    positions: BTreeMap<ShardKey, SequenceNumber>,
    keys: BTreeSet<(ShardKey, String)>,
    lines: Vec<String>,
}

impl Lake {
    fn open(&self, path: &Path) -> Result<Opened, SourceError> {
        FileReader::open(path, &options(), |shard| self.positions.get(shard).cloned())
    }

    fn commit(&mut self, chunk: Chunk) {
        for record in chunk.records {
            let key = (chunk.shard.clone(), record.sequence_number.to_string());
            assert!(self.keys.insert(key.clone()), "{key:?} twice");
            self.lines.push(plain(&String::from_utf8_lossy(&record.bytes)));
        }
        let before = self.positions.insert(chunk.shard, chunk.position.clone());
        assert!(before.is_none_or(|before| before < chunk.position), "positions move forward");
    }

    /// Reads a file to its end and commits everything.
    fn read(&mut self, path: &Path) -> Result<Option<Box<FileReader>>, SourceError> {
        let Opened::Reader(mut reader) = self.open(path)? else { return Ok(None) };
        while let Some(chunk) = reader.next_chunk(0)? {
            self.commit(chunk);
        }
        Ok(Some(reader))
    }

    /// Returns the lines that a read adds.
    fn added(&mut self, path: &Path) -> Vec<String> {
        let before = self.lines.len();
        self.read(path).unwrap();
        self.lines[before..].to_vec()
    }
}

fn plain(line: &str) -> String {
    line.trim_matches(['\u{feff}', ' ', '\t', '\r']).to_owned()
}

fn append(path: &Path, bytes: &[u8]) {
    fs::OpenOptions::new().create(true).append(true).open(path).unwrap().write_all(bytes).unwrap();
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_grown_file_is_continued_and_a_different_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ndjson");
    let mut lake = Lake::default();
    append(&path, b"{\"a\":1}\n{\"b\":2}\n");
    assert_eq!(lake.added(&path), ["{\"a\":1}", "{\"b\":2}"]);
    let shard = lake.positions.keys().next().unwrap().clone();
    let again = lake.read(&path).unwrap().unwrap();
    assert_eq!((again.shard(), again.resumed_at(), lake.lines.len()), (&shard, 16, 2));

    append(&path, b"{\"c\":3}\n{\"torn");
    let grown = lake.read(&path).unwrap().unwrap();
    assert_eq!((lake.lines[2].as_str(), lake.lines.len()), ("{\"c\":3}", 3));
    assert_eq!((grown.torn_bytes(), grown.lost_bytes()), (Some(6), None));

    let other = folder.path().join("b.ndjson");
    append(&other, b"{\"a\":1}\n{\"x\":2}\n{\"c\":3}\n");
    let other = lake.read(&other).unwrap().unwrap();
    assert_eq!((other.shard().shard(), lake.lines.len()), (format!("{}-1", shard.shard()).as_str(), 6));

    let shorter = folder.path().join("c.ndjson");
    append(&shorter, b"{\"a\":1}\n");
    assert_eq!(lake.added(&shorter).len(), 1, "a shorter file holds a record that was never seen under its shard");
}

#[test]
fn a_first_line_without_a_line_break_is_continued_once_it_has_one() {
    for grown in ["\n", "\r\n", " \n", "  \r\n", " \t \n"] {
        let folder = tempfile::tempdir().unwrap();
        for first in ["{\"a\":1}", "\u{feff}{\"a\":1}", "{\"a\":1} ", "{\"a\":1}\r"] {
            let path = folder.path().join(format!("{}", first.len()));
            let mut lake = Lake::default();
            append(&path, first.as_bytes());
            assert_eq!(lake.added(&path).len(), 1, "{first:?}");
            append(&path, grown.as_bytes());
            append(&path, b"{\"b\":2}\n");
            for _ in 0..3 {
                lake.read(&path).unwrap();
            }
            assert_eq!(lake.lines.len(), 2, "{first:?} {grown:?}: {:?}", lake.lines);
            assert_eq!(lake.positions.len(), 1);
            fs::remove_file(&path).unwrap();
        }
    }
}

#[test]
fn packed_files_have_unpacked_offsets() {
    let folder = tempfile::tempdir().unwrap();
    let text = b"{\"a\":1}\r\n\n{\"b\":2}";
    let (head, tail) = text.split_at(5);
    let zst = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    let skippable = b"\x50\x2a\x4d\x18\x03\0\0\0abc";
    let cases = [
        ("a", text.to_vec()),
        ("a.gz", gzip(text)),
        ("members.gz", [gzip(head), gzip(b""), gzip(tail)].concat()),
        ("zeros.gz", [gzip(text), vec![0; 1_000]].concat()),
        ("garbage.gz", [gzip(text), b"\0\0garbage".to_vec()].concat()),
        ("a.zst", zst(text)),
        ("pzstd.zst", [&skippable[..], &zst(head), skippable, &zst(tail), skippable].concat()),
    ];
    for (name, bytes) in cases {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        let mut lake = Lake::default();
        assert_eq!(lake.added(&path), ["{\"a\":1}", "{\"b\":2}"], "{name}");
        let positions: Vec<_> = lake.positions.into_iter().map(|(k, p)| (k.to_string(), p.to_string())).collect();
        let expected = {
            let mut plain = Lake::default();
            plain.read(&folder.path().join("a")).unwrap();
            plain.positions.into_iter().map(|(k, p)| (k.to_string(), p.to_string())).collect::<Vec<_>>()
        };
        assert_eq!(positions, expected, "{name}");
    }
}

#[test]
fn what_is_damaged_gives_the_lines_before_and_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let text: String = (0..5_000).map(|n| format!("{{\"n\":{n},\"x\":\"{:x}\"}}\n", n * 7_919 % 65_521)).collect();
    let gz = gzip(text.as_bytes());
    let zst = zstd::encode_all(text.as_bytes(), 1).unwrap();
    let mut flipped = gz.clone();
    let at = flipped.len() - 6;
    flipped[at] ^= 1;
    for (name, bytes, is_damaged) in [
        ("half.gz", gz[..gz.len() / 2].to_vec(), false),
        ("half.zst", zst[..zst.len() / 2].to_vec(), false),
        ("header.gz", [&gz[..], b"\x1f"].concat(), false),
        ("flipped.gz", flipped, true),
        ("garbage.zst", [&zst[..], b"garbage"].concat(), true),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        let mut lake = Lake::default();
        let error = lake.read(&path).unwrap_err();
        assert!(name.ends_with("zst") || !lake.lines.is_empty(), "{name}: the lines before the damage are handed over");
        assert_eq!(matches!(error, SourceError::Damaged { .. }), is_damaged, "{name}: {error}");
        assert!(matches!(error, SourceError::Damaged { .. } | SourceError::CutOff { .. }), "{name}: {error}");
        assert!(error.to_string().contains(name), "{error}");
        // The reader continues the file once the whole file replaces the damaged one.
        fs::write(&path, &gz).unwrap();
        lake.read(&path).unwrap();
        assert_eq!(lake.lines.concat(), text.replace('\n', ""), "{name}");
    }
}

#[test]
fn shapes_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("it's");
    let utf16: Vec<u8> = "\u{feff}{}\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let pretty = "{\n  \"a\": 1,\n  \"b\": [\n    1\n  ]\n}\n";
    let refused: &[(&[u8], &str)] = &[
        (b"[{\"a\":1},{\"b\":2}]", "jq -c '.[]' "),
        (b"[{\"a\":1},{\"b\":2}]\n", "jq -c '.[]' "),
        (b"\n [\n  {\"a\":1}\n]\n", "jq -c '.[]' "),
        ("\u{feff}[{}]".as_bytes(), "jq -c '.[]' "),
        (pretty.as_bytes(), "jq -c . "),
        (&pretty.as_bytes()[..20], "jq -c . "),
        (b"{\"a\":1}{\"b\":2}", "jq -c . "),
        (b"{\"a\":1} {\"b\":2}\n", "jq -c . "),
        (b"{\"a\":1}\r{\"b\":2}\r", r"tr '\r' '\n' < "),
        (b"{\"a\":1},\n{\"b\":2},\n", "sed "),
        (&utf16, "iconv -f UTF-16 "),
        (&utf16[2..], "iconv -f UTF-16LE "),
        (b"BZh91AY", "bzip2 -dc "),
        (b"\xfd7zXZ\0\0\x04", "xz -dc "),
    ];
    for (bytes, command) in refused {
        fs::write(&path, bytes).unwrap();
        let error = Lake::default().read(&path).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(command) && error.contains(r"it'\''s' | synclake ingest --source file:-"), "{error}");
        assert!(error.starts_with(&path.display().to_string()), "{error}");
    }
    fs::write(&path, gzip(pretty.as_bytes())).unwrap();
    let error = Lake::default().read(&path).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("gzip -dc ") && error.contains(" | jq -c . | synclake"), "{error}");

    let taken: &[(&[u8], usize)] = &[
        (b"", 0),
        (b"\n\n", 0),
        (b"{\"a\":1}\r", 1),
        (b"[]\n{\"a\":1}\n", 2),
        (b"[1,2]\n{\"a\":1}\n", 2),
        (b"{\"a\":1,\n{\"b\":2}\n", 2),
        (b"{\"a\":\"x\n{\"b\":2}\n", 2),
        (b"{\"a\":1}{\"b\":2}\n{\"c\":3}\n", 2),
        (b"no json\n{\"c\":3}\n", 2),
        (b"{\"to", 0),
        (b"P\n{}\n", 2),
    ];
    for (bytes, count) in taken {
        fs::write(&path, bytes).unwrap();
        assert_eq!(Lake::default().added(&path).len(), *count, "{}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn a_pipe_is_read_as_it_comes_until_a_signal() {
    let (read, mut write) = std::io::pipe().unwrap();
    let path = PathBuf::from(format!("/dev/fd/{}", read.as_raw_fd()));
    let options = options();
    let stop = options.stop.clone();
    let (sent, received) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let Opened::Reader(mut reader) = FileReader::open(&path, &options, |_| None).unwrap() else { panic!() };
        while let Some(chunk) = reader.next_chunk(0).unwrap() {
            sent.send(chunk.records.len()).unwrap();
        }
        (reader.torn_bytes(), reader.lost_bytes())
    });
    for _ in 0..3 {
        write.write_all(b"{\"a\":1}\n{\"b").unwrap();
        assert_eq!(received.recv_timeout(Duration::from_secs(10)), Ok(1), "a line is handed over at once");
        write.write_all(b"\":2}\n").unwrap();
        assert_eq!(received.recv_timeout(Duration::from_secs(10)), Ok(1));
    }
    write.write_all(b"{\"a\":1}\n{\"b\":2}\n{\"c\"").unwrap();
    stop.cancel();
    let torn = reader.join().unwrap();
    assert_eq!(received.iter().sum::<usize>(), 2, "what is in the pipe at a signal is read");
    assert_eq!(torn, (Some(4), Some(4)));
    drop((read, write));
}

#[test]
fn opening_a_pipe_without_a_writer_ends_with_a_signal() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    let options = options();
    let stop = options.stop.clone();
    let open = std::thread::spawn(move || FileReader::open(&path, &options, |_| None).unwrap());
    std::thread::sleep(Duration::from_millis(50));
    assert!(!open.is_finished());
    stop.cancel();
    assert!(matches!(open.join().unwrap(), Opened::Stopped { bytes: 0 }));
}

#[test]
fn folders_are_read_whole_and_each_file_once() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for name in [
        "2026/01/02/a.json",
        "2026/01/b.NDJSON.gz",
        "x.jsonl.zst",
        "lake/_delta_log/0.json",
        "lake/d.json",
        ".git/c.json",
    ] {
        fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
        fs::write(root.join(name), "").unwrap();
    }
    fs::write(root.join("notes.txt"), "").unwrap();
    fs::write(root.join("red\u{1b}[31m\n.json"), "").unwrap();
    std::os::unix::fs::symlink(root, root.join("2026/loop")).unwrap();
    std::os::unix::fs::symlink("nothing", root.join("dangling.json")).unwrap();
    std::os::unix::fs::symlink("self.json", root.join("self.json")).unwrap();
    let found = expand(root.to_str().unwrap()).unwrap();
    let names: Vec<_> = found.files.iter().map(|f| f.strip_prefix(root).unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["2026/01/02/a.json", "2026/01/b.NDJSON.gz", "red\u{1b}[31m\n.json", "x.jsonl.zst"]);
    assert!(found.failed.is_empty());
    assert!(shown(&found.files[2]).ends_with("red\\u{1b}[31m\\n.json"));

    fs::create_dir(root.join("empty")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(root.join("empty/p.json")).status().unwrap().success());
    let error = expand(root.join("empty").to_str().unwrap()).unwrap_err().to_string();
    assert!(error.contains("holds no .json") && error.contains("p.json (named pipes"), "{error}");
}

/// A log in its final form.
#[derive(Clone, Default)]
struct Log {
    content: Vec<u8>,
    /// Lines that the reader must return.
    lines: Vec<String>,
}

/// Returns a log of events. All lines differ, and no line but the last is without a line break. The log may begin like
/// `other`, but not with all of it: it would then be `other`, grown.
fn log(rng: &mut TestRng, number: usize, other: &Log) -> Log {
    let mut content = if rng.random_bool(0.3) { "\u{feff}".as_bytes().to_vec() } else { Vec::new() };
    let mut lines = Vec::new();
    if rng.random_bool(0.4) {
        let breaks = memchr::memchr_iter(b'\n', &other.content).map(|at| at + 1);
        let breaks: Vec<usize> = breaks.filter(|at| *at < other.content.len()).collect();
        if let Some(at) = breaks.get(rng.random_range(0..=breaks.len())) {
            content = other.content[..*at].to_vec();
            lines = String::from_utf8_lossy(&content).lines().map(plain).filter(|line| !line.is_empty()).collect();
        }
    }
    let count = rng.random_range(1..40);
    for n in 0..count {
        if rng.random_bool(0.1) && n > 0 {
            content.extend_from_slice([&b"\n"[..], b"\r\n", b"  \n"][rng.random_range(0..3)]);
        }
        let line = match rng.random_range(0..10) {
            0 if n > 0 => format!("junk {number} {n}"),
            1 => format!("{{\"log\":{number},\"n\":{n},\"x\":\"{}\"}}", "é\\n".repeat(rng.random_range(0..1_000))),
            _ => format!("{{\"log\":{number},\"n\":{n}}}"),
        };
        content.extend_from_slice(line.as_bytes());
        content.extend_from_slice(" ".repeat(if rng.random_bool(0.1) { rng.random_range(0..4) } else { 0 }).as_bytes());
        if n + 1 < count || rng.random_bool(0.8) || line.starts_with("junk") {
            content.extend_from_slice(if rng.random_bool(0.3) { b"\r\n" } else { b"\n" });
        }
        lines.push(line);
    }
    Log { content, lines }
}

/// Returns the bytes in one of the forms in which they may lie on disk.
fn packed(rng: &mut TestRng, bytes: &[u8]) -> Vec<u8> {
    let cut = rng.random_range(0..=bytes.len());
    let (head, tail) = bytes.split_at(cut);
    match rng.random_range(0..5) {
        0 => [gzip(head), gzip(tail), vec![0; rng.random_range(0..3)]].concat(),
        1 => {
            let frame = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
            [&b"\x5a\x2a\x4d\x18\x01\0\0\0x"[..], &frame(head), &frame(tail)].concat()
        }
        _ => bytes.to_vec(),
    }
}

/// Reads a path, directly or through a pipe; perhaps only a part of it, perhaps without committing all of that part.
fn run(rng: &mut TestRng, lake: &mut Lake, path: &Path, is_last: bool) {
    let bytes = fs::read(path).unwrap();
    let mut options = options();
    options.stop = CancellationToken::new();
    let pipe = rng.random_bool(0.3).then(|| std::io::pipe().unwrap());
    let (path, writer) = match pipe {
        None => (path.to_owned(), None),
        Some((read, mut write)) => {
            let path = PathBuf::from(format!("/dev/fd/{}", read.as_raw_fd()));
            let piece = rng.random_range(1..=bytes.len().max(1));
            let writer = std::thread::spawn(move || {
                // A stopped reader leaves the rest unread.
                bytes.chunks(piece).try_for_each(|piece| write.write_all(piece)).ok();
            });
            (path, Some((read, writer)))
        }
    };
    let chunks = if is_last { usize::MAX } else { rng.random_range(0..4) };
    let ending = rng.random_range(0..4);
    let opened = FileReader::open(&path, &options, |shard| lake.positions.get(shard).cloned());
    let Ok(opened) = opened.inspect_err(|error| assert!(matches!(error, SourceError::CutOff { .. }), "{error}")) else {
        assert!(!is_last);
        return;
    };
    if let Opened::Reader(mut reader) = opened {
        for n in 0usize.. {
            if n >= chunks && ending == 0 {
                options.stop.cancel();
            }
            match reader.next_chunk(0) {
                // A process killed before this commit.
                Ok(Some(_)) if n >= chunks && ending == 1 => break,
                Ok(Some(chunk)) => lake.commit(chunk),
                Ok(None) => break,
                Err(SourceError::CutOff { .. }) if !is_last => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
    if let Some((read, writer)) = writer {
        drop(read);
        writer.join().unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Each line comes out exactly once, however files are appended to, rotated, copied, packed and cut, and however
    /// readers are stopped and killed.
    #[test]
    fn every_line_comes_out_exactly_once(mut rng in any::<[u8; 32]>().prop_map(|seed| {
        TestRng::from_seed(proptest::test_runner::RngAlgorithm::ChaCha, &seed)
    }).no_shrink()) {
        let rng = &mut rng;
        let folder = tempfile::tempdir().unwrap();
        let mut lake = Lake::default();
        let mut expected = Vec::new();
        let mut old: Vec<(PathBuf, Vec<u8>)> = Vec::new();
        let mut last = Log::default();
        let current = folder.path().join("log.json");
        for number in 0..rng.random_range(1..4) {
            last = log(rng, number, &last);
            let Log { content, lines } = last.clone();
            expected.extend(lines);
            let mut length = 0;
            while length < content.len() {
                // Cuts fall near the ends of lines more often than elsewhere.
                let end = memchr::memchr(b'}', &content[length..]).map_or(content.len(), |at| length + at);
                let cut = if rng.random_bool(0.5) { end + rng.random_range(0..4) } else { rng.random_range(length..=content.len()) };
                let before = length;
                length = cut.clamp(before, content.len());
                let mut bytes = content[..length].to_vec();
                if rng.random_bool(0.2) {
                    bytes = packed(rng, &bytes);
                    // The cut stays within the last member or frame: a cut between two of them makes a shorter file,
                    // another shard.
                    let is_packed = bytes != content[..length];
                    bytes.truncate(bytes.len() - if is_packed { rng.random_range(0..5) } else { 0 });
                }
                fs::write(&current, bytes).unwrap();
                for _ in 0..rng.random_range(0..3) {
                    run(rng, &mut lake, &current, false);
                }
            }
            fs::write(&current, &content).unwrap();
            let to = folder.path().join(format!("log.{number}.json"));
            if rng.random_bool(0.5) {
                fs::rename(&current, &to).unwrap();
            } else {
                // Copied and truncated: for a moment, the content is there twice.
                fs::copy(&current, &to).unwrap();
                run(rng, &mut lake, &current, false);
                fs::write(&current, "").unwrap();
                run(rng, &mut lake, &current, false);
            }
            old.push((to, content));
        }
        for (path, content) in &old {
            let bytes = packed(rng, content);
            fs::write(path, bytes).unwrap();
            run(rng, &mut lake, path, true);
            run(rng, &mut lake, path, true);
        }
        let count = |lines: &[String]| {
            lines.iter().fold(BTreeMap::<String, i32>::new(), |mut counts, line| {
                *counts.entry(line.clone()).or_default() += 1;
                counts
            })
        };
        let (found, expected) = (count(&lake.lines), count(&expected));
        let wrong = |line: &&String| found.get(*line) != expected.get(*line);
        let wrong: Vec<_> = found.keys().chain(expected.keys()).filter(wrong).map(|l| (&l[..l.len().min(40)], found.get(l))).collect();
        prop_assert!(wrong.is_empty(), "{:?}", wrong);
    }
}
