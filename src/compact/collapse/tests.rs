use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::Int64Type;
use proptest::prelude::*;

use super::*;
use crate::batch::parquet::encode_batches;
use crate::compact::merge::tests::{Row, batch, limits, read, row, sorted};
use crate::schema::{COPIES, Table};

/// A delivered row, with its number and what its file states of its copies.
type Delivered = (usize, Row, Option<i64>);
/// The change, a shard or source, sub-sequence, arrival, place; copies; the number of the file; whether the text is a source.
type Delivery = ((prop::sample::Index, String, Option<i64>, i64, Option<i32>), Option<i64>, usize, bool);

/// Rows of some changes. Their deliveries differ, and some changes differ in one column.
fn rows() -> impl Strategy<Value = Vec<(Delivered, usize)>> {
    let op = prop::option::of(prop_oneof![Just("remove".to_owned()), Just("replace".to_owned())]);
    let base = (row(0), op, prop::bool::weighted(0.8)).prop_map(|((_, mut row), op, is_usual)| {
        row.texts[6] = op;
        if is_usual {
            // The columns of the order are never null in files of ingest.
            row.texts[4].get_or_insert_default();
            row.longs[0].get_or_insert_default();
            row.longs[1].get_or_insert_default();
        }
        row
    });
    let variant = (prop::option::weighted(0.5, 0..17usize), any::<bool>());
    let changes = (prop::collection::vec(base, 1..4), prop::collection::vec(variant, 1..5));
    let changes = changes.prop_map(|(bases, variants)| {
        let alter = |row: &Row, (column, is_null): &(Option<usize>, bool)| {
            let mut row = row.clone();
            match column {
                Some(column @ 0..10) => row.texts[*column] = (!is_null).then(|| "other".to_owned()),
                Some(column) => row.longs[*column - 10] = (!is_null).then_some(9),
                None => {}
            }
            row
        };
        bases.iter().flat_map(|row| variants.iter().map(move |variant| alter(row, variant))).collect::<Vec<_>>()
    });
    let delivery = (
        any::<prop::sample::Index>(),
        "[st]",
        prop::option::of(0..2i64),
        0..3i64,
        prop::option::weighted(0.95, 0..2i32),
    );
    let delivery = (delivery, prop::option::weighted(0.3, 1..5i64), 0..4usize, any::<bool>());
    (changes, prop::collection::vec(delivery, 2..80)).prop_map(|(changes, deliveries)| {
        let row = |(number, delivery): (usize, Delivery)| {
            let ((change, text, sub, arrived, index), copies, file, is_source) = delivery;
            let mut row = change.get(&changes).clone();
            row.texts[if is_source { 9 } else { 7 }] = Some(text);
            (row.longs[5], row.longs[6], row.index) = (sub, Some(arrived), index);
            ((number, row, copies), file)
        };
        deliveries.into_iter().enumerate().map(row).collect()
    })
}

fn with_copies(rows: &[Delivered]) -> RecordBatch {
    let plain: Vec<(usize, Row)> = rows.iter().map(|(number, row, _)| (*number, row.clone())).collect();
    let mut columns = batch(&plain).columns().to_vec();
    columns.push(Arc::new(rows.iter().map(|(_, _, copies)| *copies).collect::<Int64Array>()) as ArrayRef);
    RecordBatch::try_new(Table::SyncRecords.collapsed_file_schema(), columns).unwrap()
}

/// Returns a file of sorted rows; without the column `copies` if no row has it.
fn input(path: usize, rows: &[Delivered]) -> Input {
    let all = with_copies(&in_order(rows.to_vec()));
    let columns = if rows.iter().any(|row| row.2.is_some()) { 20 } else { 19 };
    let rows = all.project(&(0..columns).collect::<Vec<_>>()).unwrap();
    let bytes = encode_batches(rows.schema(), std::slice::from_ref(&rows)).unwrap();
    Input { path: path.to_string(), bytes, rows: Some(rows.num_rows() as u64), sha256: None }
}

/// Returns rows in the order of a file.
fn in_order(rows: Vec<Delivered>) -> Vec<Delivered> {
    let copies: BTreeMap<usize, Option<i64>> = rows.iter().map(|(number, _, copies)| (*number, *copies)).collect();
    let plain = rows.into_iter().map(|(number, row, _)| (number, row)).collect();
    sorted(plain).into_iter().map(|(number, row)| (number, row, copies[&number])).collect()
}

/// Collapses rows by the definition: of the rows that agree in all but the delivery, the latest stays, with the sum.
fn expected(rows: &[Delivered]) -> Vec<Delivered> {
    let (mut groups, mut left) = (BTreeMap::<String, Vec<Delivered>>::new(), Vec::new());
    for delivered in rows {
        let (_, row, _) = delivered;
        let is_change = row.texts[4].is_some() || row.texts[6].as_deref() == Some("remove");
        let has_order = [row.longs[0], row.longs[1], row.longs[6]].iter().all(Option::is_some)
            && row.index.is_some()
            && row.texts[7].is_some();
        if !is_change || !has_order {
            left.push(delivered.clone());
            continue;
        }
        let mut content = row.clone();
        (content.texts[7], content.texts[9], content.longs[5], content.longs[6], content.index) =
            (None, None, None, None, None);
        groups.entry(format!("{content:?}")).or_default().push(delivered.clone());
    }
    for group in groups.into_values() {
        let latest = group.iter().max_by_key(|(number, row, _)| {
            let digits = number.to_string();
            (row.longs[6], digits.len(), digits, row.longs[5].unwrap_or(-1), row.index, row.texts[7].clone())
        });
        let (number, row, copies) = latest.unwrap().clone();
        let sum = group.iter().map(|row| row.2.unwrap_or(1)).sum();
        left.push((number, row, if group.len() > 1 { Some(sum) } else { copies }));
    }
    in_order(left)
}

/// The rows of a file with `copies`, also if it lacks the column.
fn found(file: &MergedFile) -> RecordBatch {
    let rows = read(file.bytes.clone());
    if file.has_copies {
        return rows;
    }
    assert!(rows.column_by_name(COPIES).is_none());
    let mut columns = rows.columns().to_vec();
    columns.push(Arc::new(Int64Array::new_null(rows.num_rows())));
    RecordBatch::try_new(Table::SyncRecords.collapsed_file_schema(), columns).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]
    /// However copies are spread over files, the latest of them stays and counts all; a second collapse adds up the first.
    #[test]
    fn the_latest_of_exact_copies_stays_and_counts_them(rows in rows(), limits in limits()) {
        let mut files = vec![Vec::new(); 4];
        rows.iter().for_each(|(row, file)| files[*file].push(row.clone()));
        let all: Vec<Delivered> = rows.into_iter().map(|(row, _)| row).collect();
        let inputs: Vec<Input> = files.iter().enumerate().map(|(path, rows)| input(path, rows)).collect();
        let merged = merge_collapsed(inputs.clone(), limits).unwrap().file.unwrap();
        let wanted = expected(&all);
        prop_assert_eq!(merged.rows + merged.rows_collapsed, all.len() as u64);
        prop_assert_eq!(found(&merged), with_copies(&wanted));
        let has_copies = all.iter().any(|row| row.2.is_some()) || wanted.len() < all.len();
        prop_assert_eq!(merged.has_copies, has_copies, "only a file that needs the column has it");

        let first = merge_collapsed(inputs[..2].to_vec(), limits).unwrap().file.unwrap();
        let first = Input { path: "first".to_owned(), bytes: first.bytes, rows: Some(first.rows), sha256: None };
        let again: Vec<Input> = inputs[2..].iter().cloned().chain([first]).collect();
        prop_assert_eq!(found(&merge_collapsed(again.clone(), limits).unwrap().file.unwrap()), with_copies(&wanted));
        // Without collapsing, a merge keeps every row and what it stands for.
        let plain = merge(again, limits).unwrap().file.unwrap();
        let sum = |file: &MergedFile| found(file).column(19).as_primitive::<Int64Type>().iter().map(|n| n.unwrap_or(1)).sum::<i64>();
        prop_assert_eq!(sum(&plain), sum(&merged));
        prop_assert_eq!(delivered_rows(&plain.bytes).unwrap(), u64::try_from(sum(&plain)).unwrap());
    }
}

#[test]
fn a_row_group_is_full_after_many_copies_too() {
    let template = |number: usize, change: usize| {
        let row = Row {
            texts: std::array::from_fn(|n| Some(format!("{n}-{change:05}"))),
            longs: [Some(1); 7],
            index: Some(1),
        };
        (number, row, None)
    };
    let files = 0..30usize;
    let inputs: Vec<Input> = files
        .map(|file| input(file, &(0..900).map(|change| template(file * 1_000 + change, change)).collect::<Vec<_>>()))
        .collect();
    let limits =
        MergeLimits { chunk_bytes: 1 << 20, rows_bytes: 8 << 20, large_bytes: 1 << 20, fan_in: 4, group_rows: 400 };
    let file = merge_collapsed(inputs, limits).unwrap().file.unwrap();
    let rows = found(&file);
    let copies: BTreeSet<Option<i64>> = rows.column(19).as_primitive::<Int64Type>().iter().collect();
    assert_eq!((file.rows, file.rows_collapsed, copies), (900, 900 * 29, BTreeSet::from([Some(30)])));
    let builder = crate::lake::files::open(file.bytes).unwrap();
    let groups: Vec<i64> = builder.metadata().row_groups().iter().map(|group| group.num_rows()).collect();
    assert_eq!(groups, [400, 400, 100]);
    assert_eq!(file.statistics["numRecords"], 900);
}
