//! SQL fuzzer that finds wrong answers without knowing the right ones: four oracles judge random queries over random
//! lakes.
//!
//! | oracle | what must be equal |
//! |---|---|
//! | DuckDB | our rows and DuckDB's, from the same files by the SQL that `synclake ddl` prints |
//! | plain | our rows with and without the optimizer shortcuts |
//! | NoREC | `count(*) where p`, and `sum(case when p then 1 else 0 end)` over the unfiltered rows |
//! | TLP | the rows of `p`, `not p` and `p is null` together, and all rows |
//!
//! `SYNCLAKE_FUZZ_QUERIES=20000 SYNCLAKE_FUZZ_SEED=1 make fuzz-sql` runs more queries. A finding names its lake;
//! `SYNCLAKE_FUZZ_LAKE` starts with that lake again.

mod generate;
mod lake;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type, TimeUnit, TimestampMicrosecondType};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use synclake::aws::AwsSettings;
use synclake::lake::{Location, Store};
use synclake::query::{Engine, Guards, Limits, Scope};

use generate::{Generator, Query};

use crate::harness::{ok, setting, synclake};

/// Number of queries per lake.
const QUERIES_OF_A_LAKE: u64 = 100;

type Rows = Vec<Vec<Option<String>>>;

/// Returns the cells of a column as text, in the same form as duck.py.
fn cells(column: &ArrayRef) -> Vec<Option<String>> {
    let number = |value: f64| match value == value.trunc() && value.abs() < 1e15 {
        true => format!("{}", value as i64),
        false => format!("{value:.9e}"),
    };
    match column.data_type() {
        DataType::Null => vec![None; column.len()],
        DataType::Float64 | DataType::Float32 => {
            let column = cast(column, &DataType::Float64).unwrap();
            column.as_primitive::<arrow::datatypes::Float64Type>().iter().map(|v| v.map(number)).collect()
        }
        DataType::Timestamp(..) => {
            let column = cast(column, &DataType::Timestamp(TimeUnit::Microsecond, None)).unwrap();
            column.as_primitive::<TimestampMicrosecondType>().iter().map(|v| v.map(|v| format!("@{v}"))).collect()
        }
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => {
            let column = cast(column, &DataType::Int64).unwrap();
            column.as_primitive::<Int64Type>().iter().map(|v| v.map(|v| v.to_string())).collect()
        }
        _ => {
            let column = cast(column, &DataType::Utf8).unwrap();
            column.as_string::<i32>().iter().map(|v| v.map(str::to_owned)).collect()
        }
    }
}

fn rows_of(batches: &[RecordBatch]) -> Rows {
    let mut rows = Rows::new();
    for batch in batches {
        let columns: Vec<_> = batch.columns().iter().map(cells).collect();
        rows.extend((0..batch.num_rows()).map(|row| columns.iter().map(|c| c[row].clone()).collect::<Vec<_>>()));
    }
    rows
}

/// Returns the rows of a query, or its error.
async fn ask(engine: &Engine, sql: &str) -> Result<Rows, String> {
    let answer = async {
        let frame = engine.sql(sql).await.map_err(|e| e.to_string())?;
        let batches = frame.collect().await.map_err(|e| synclake::query::QueryError::from(e).to_string())?;
        Ok(rows_of(&batches))
    };
    tokio::time::timeout(Duration::from_secs(60), answer).await.unwrap_or_else(|_| Err("no answer in 60 s".to_owned()))
}

fn sorted(mut rows: Rows) -> Rows {
    rows.sort();
    rows
}

/// A DuckDB process that answers queries over a lake.
struct Duck {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Duck {
    fn open(lake: &Path) -> Self {
        let ddl = lake.with_file_name("duckdb.sql");
        std::fs::write(&ddl, ok(synclake().args(["ddl", "--engine", "duckdb", "--lake"]).arg(lake))).unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fuzz_sql/duck.py");
        let mut child = Command::new(setting("SYNCLAKE_TEST_PYTHON"))
            .arg(script)
            .arg(ddl)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let questions = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, questions, answers }
    }

    fn ask(&mut self, sql: &str) -> Result<Rows, String> {
        writeln!(self.questions, "{}", Value::from(sql)).unwrap();
        self.questions.flush().unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let answer: Value = serde_json::from_str(&line).expect("duck.py ended");
        match answer["error"].as_str() {
            Some(error) => Err(error.to_owned()),
            None => Ok(serde_json::from_value(answer["rows"].clone()).unwrap()),
        }
    }
}

impl Drop for Duck {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A lake and the three engines that answer queries over it.
struct Arena {
    _folder: tempfile::TempDir,
    engine: Engine,
    plain: Engine,
    duck: Duck,
}

impl Arena {
    async fn new(seed: u64, guards: Guards) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let lake = lake::make(folder.path(), &mut ChaCha8Rng::seed_from_u64(seed));
        let store = Store::open(&Location::Folder(lake.clone()), &AwsSettings::default()).await.unwrap();
        let limits = Limits { memory_bytes: 1 << 30, threads: 3, guards, ..Limits::default() };
        let engine = Engine::open(&store, &limits, Scope::default()).unwrap();
        let plain = Limits { threads: 1, has_shortcuts: false, ..limits };
        let plain = Engine::open(&store, &plain, Scope::default()).unwrap();
        Self { _folder: folder, engine, plain, duck: Duck::open(&lake) }
    }

    /// Returns what is wrong with the answers to a query, or `None`.
    async fn judge(&mut self, query: &Query) -> Option<String> {
        let normal = |rows: Rows| if query.ordered { rows } else { sorted(rows) };
        let ours = ask(&self.engine, &query.sql).await.map(normal);
        let plain = ask(&self.plain, &query.sql).await.map(normal);
        let duck = self.duck.ask(&query.sql).map(normal);
        match (&ours, &duck) {
            (Ok(ours), Ok(duck)) if ours != duck => return Some(format!("DuckDB: {}", difference(ours, duck))),
            (Err(error), Ok(_)) => return Some(format!("refused: {error}")),
            (Ok(_), Err(error)) if error.contains("Overflow") || error.contains("out of range") => {
                return Some(format!("an overflow is not told: DuckDB says {error}"));
            }
            _ => {}
        }
        match (&ours, &plain) {
            (Ok(ours), Ok(plain)) if ours != plain => return Some(format!("plain: {}", difference(ours, plain))),
            (Ok(_), Err(error)) | (Err(error), Ok(_)) => {
                return Some(format!("plain: only one of the two fails: {error}"));
            }
            _ => {}
        }
        let (from, p) = query.filter.as_ref()?;
        self.no_rec(from, p).await.or(self.tlp(from, p).await)
    }

    async fn number(&self, sql: &str) -> Result<i64, String> {
        let rows = ask(&self.engine, sql).await.map_err(|error| format!("{error}: {sql}"))?;
        Ok(rows.first().and_then(|row| row[0].as_deref()?.parse().ok()).unwrap_or(0))
    }

    async fn no_rec(&self, from: &str, p: &str) -> Option<String> {
        let filtered = self.number(&format!("select count(*) from {from} where {p}")).await;
        let counted = self
            .number(&format!("select sum(case when p then 1 else 0 end) from (select ({p}) as p from {from}) r"))
            .await;
        match (filtered, counted) {
            (Ok(filtered), Ok(counted)) if filtered == counted => None,
            (Ok(filtered), Ok(counted)) => {
                Some(format!("NoREC: {filtered} rows by the filter, {counted} by computing it"))
            }
            (Err(error), _) | (_, Err(error)) => Some(format!("NoREC: {error}")),
        }
    }

    async fn tlp(&self, from: &str, p: &str) -> Option<String> {
        let count = |condition: String| async move {
            self.number(&format!("select count(*) from {from} where {condition}")).await
        };
        let parts = [
            count("true".to_owned()).await,
            count(format!("({p})")).await,
            count(format!("not ({p})")).await,
            count(format!("({p}) is null")).await,
        ];
        let [all, yes, no, unknown] = match parts.into_iter().collect::<Result<Vec<_>, _>>() {
            Ok(parts) => parts.try_into().unwrap(),
            Err(error) => return Some(format!("TLP: {error}")),
        };
        (all != yes + no + unknown).then(|| format!("TLP: {yes} true, {no} false and {unknown} unknown of {all} rows"))
    }
}

fn difference(found: &Rows, expected: &Rows) -> String {
    let (mut a, mut b) =
        (found.iter().filter(|r| !expected.contains(r)), expected.iter().filter(|r| !found.contains(r)));
    format!("{} rows and not {}; only here {:?}, only there {:?}", found.len(), expected.len(), a.next(), b.next())
}

/// Runs `queries` queries from the seed on and returns the findings, at most `enough`.
async fn hunt(guards: Guards, queries: u64, enough: usize) -> Vec<String> {
    let first = number_of("SYNCLAKE_FUZZ_LAKE", number_of("SYNCLAKE_FUZZ_SEED", 1) * 1_000_000);
    let mut found = Vec::new();
    let mut asked = 0;
    while asked < queries && found.len() < enough {
        let lake = first + asked / QUERIES_OF_A_LAKE;
        let mut arena = Arena::new(lake, guards).await;
        for n in 0..QUERIES_OF_A_LAKE.min(queries - asked) {
            let query = Generator::new(ChaCha8Rng::seed_from_u64(lake * 1_000 + n)).query();
            asked += 1;
            if let Some(what) = arena.judge(&query).await {
                found.push(format!("lake {lake}, query {n}: {what}\n  {}", query.sql));
                if queries > 1_000 {
                    eprintln!("{}", found[found.len() - 1]);
                }
                if found.len() >= enough {
                    break;
                }
            }
        }
        if queries > 1_000 {
            eprintln!("{asked} queries, {} findings", found.len());
        }
    }
    found
}

fn number_of(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().map_or(otherwise, |text| text.parse().unwrap())
}

/// Random queries return the same answers as DuckDB, and the other oracles find no fault.
#[tokio::test(flavor = "multi_thread")]
async fn random_queries_are_answered_as_duckdb_answers_them() {
    let queries = number_of("SYNCLAKE_FUZZ_QUERIES", 300);
    let found = hunt(Guards::default(), queries, 1_000).await;
    assert!(found.is_empty(), "{} findings in {queries} queries\n{}", found.len(), found.join("\n"));
}

/// The fuzzer finds a wrong answer as soon as any one guard is off: each guard is needed and each fault is detectable.
#[tokio::test(flavor = "multi_thread")]
async fn random_queries_find_each_fault_that_a_guard_holds_off() {
    let all = Guards::default();
    let without = [
        ("fixed_filters", Guards { fixed_filters: false, ..all }),
        ("rechecked_filters", Guards { rechecked_filters: false, ..all }),
        ("checked_integers", Guards { checked_integers: false, ..all }),
        ("ordered_conditions", Guards { ordered_conditions: false, ..all }),
        ("subqueries", Guards { subqueries: false, ..all }),
    ];
    for (name, guards) in without {
        let found = hunt(guards, 500, 1).await;
        let found = found.first().unwrap_or_else(|| panic!("500 queries do not find that {name} is off"));
        eprintln!("without {name}: {found}");
    }
}
