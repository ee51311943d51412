//! The aggregate `latest`: of all rows of a group, the row that comes last in the [order](super::order) of changes.
//!
//! **It is idempotent and associative**: the latest of the latest is the latest, however rows are split, repeated or
//! reordered. The maintained state depends on that.

use std::cmp::Ordering;
use std::mem::size_of;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, StructArray, UInt32Array};
use arrow::compute::{cast, interleave, take};
use arrow::datatypes::{DataType, Field, FieldRef, Fields};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, Volatility,
};

use super::order::{ORDER, OrderPrefix, OrderPrefixes, PREFIX_COLUMNS, TieBreakers};

/// Returns the aggregate `latest(<the columns of ORDER>, <any others>)`. Its result is a struct of the latest row: the
/// arguments whose numbers are in `kept`, as fields `c<number>`.
pub(super) fn latest(kept: Vec<usize>) -> AggregateUDF {
    AggregateUDF::new_from_impl(Latest { signature: Signature::variadic_any(Volatility::Immutable), kept })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Latest {
    signature: Signature,
    kept: Vec<usize>,
}

fn fields(types: &[DataType], kept: &[usize]) -> Fields {
    kept.iter().filter_map(|&n| Some(Field::new(format!("c{n}"), types.get(n)?.clone(), true))).collect()
}

impl AggregateUDFImpl for Latest {
    fn name(&self) -> &str {
        "latest"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Struct(fields(types, &self.kept)))
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let types = args.input_fields.iter().enumerate();
        Ok(types
            .map(|(n, field)| Arc::new(Field::new(format!("{}[c{n}]", args.name), held_type(field.data_type()), true)))
            .collect())
    }

    fn accumulator(&self, _: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        Err(DataFusionError::NotImplemented("latest without GROUP BY".to_owned()))
    }

    fn groups_accumulator_supported(&self, _: AccumulatorArgs) -> bool {
        true
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        let types: Vec<DataType> = args.expr_fields.iter().map(|field| field.data_type().clone()).collect();
        Ok(Box::new(Groups::new(types, self.kept.clone())))
    }
}

/// The place of a group's latest row, and its order prefix, so that most comparisons read nothing else.
#[derive(Debug, Clone, Copy)]
struct Slot {
    head: OrderPrefix,
    chunk: u32,
    row: u32,
}

/// The chunk of a group that has no row yet. It is no index.
const NONE: u32 = u32::MAX;
const EMPTY: Slot =
    Slot { head: OrderPrefix { sync_count: i64::MIN, modified: i64::MIN, arrived: i64::MIN }, chunk: NONE, row: 0 };
/// Rows per chunk after compaction.
const CHUNK_ROWS: usize = 8_192;

/// Converts the index of a chunk, or of a row in its chunk or batch.
fn index(number: usize) -> Result<u32> {
    let index = u32::try_from(number).ok().filter(|index| *index != NONE);
    index.ok_or_else(|| {
        DataFusionError::Execution(format!("latest holds at most {NONE} chunks, and {NONE} rows in each"))
    })
}

/// Positions of the tie-breaker columns among the arguments.
const REST: std::ops::Range<usize> = PREFIX_COLUMNS..ORDER.len();

/// Returns the type in which a column is held, and passed between the stages. Views would keep their buffers alive, and
/// each batch cut from them would count these buffers again.
fn held_type(of: &DataType) -> DataType {
    match of {
        DataType::Utf8 | DataType::Utf8View => DataType::LargeUtf8,
        other => other.clone(),
    }
}

fn held(column: &ArrayRef) -> Result<ArrayRef> {
    Ok(cast(column, &held_type(column.data_type()))?)
}

fn column(columns: &[ArrayRef], n: usize) -> Result<&ArrayRef> {
    let missing = || DataFusionError::Internal(format!("latest takes at least {} arguments", ORDER.len()));
    columns.get(n).ok_or_else(missing)
}

struct Groups {
    types: Vec<DataType>,
    kept: Vec<usize>,
    slots: Vec<Slot>,
    /// Rows that were the latest of their group when they arrived, with all arguments.
    chunks: Vec<Vec<ArrayRef>>,
    /// Rows in the chunks, including superseded ones.
    rows: usize,
    bytes: usize,
}

impl Groups {
    fn new(types: Vec<DataType>, kept: Vec<usize>) -> Self {
        Self { types, kept, slots: Vec::new(), chunks: Vec::new(), rows: 0, bytes: 0 }
    }

    fn accept(&mut self, values: &[ArrayRef], groups: &[usize], filter: Option<&BooleanArray>) -> Result<()> {
        let heads = OrderPrefixes::of([column(values, 0)?, column(values, 1)?, column(values, 2)?])?;
        let rest = TieBreakers(&values[REST]);
        // Rows of this batch that go into the next chunk.
        let chunk = index(self.chunks.len())?;
        let mut chosen: Vec<u32> = Vec::with_capacity(groups.len());
        for (row, &group) in groups.iter().enumerate() {
            if filter.is_some_and(|f| f.is_null(row) || !f.value(row)) {
                continue;
            }
            let head = heads.get(row);
            let slot = self.slots[group];
            let order = match head.cmp(&slot.head) {
                Ordering::Equal if slot.chunk != NONE => {
                    let at = slot.row as usize;
                    match self.chunks.get(slot.chunk as usize) {
                        Some(chunk) => rest.compare(row, &TieBreakers(&chunk[REST]), at),
                        None => rest.compare(row, &rest, chosen[at] as usize),
                    }
                }
                Ordering::Equal => Ordering::Greater,
                order => order,
            };
            if order == Ordering::Less || order == Ordering::Equal {
                continue;
            }
            let row = index(row)?;
            let place = if slot.chunk == chunk {
                chosen[slot.row as usize] = row;
                slot.row
            } else {
                chosen.push(row);
                index(chosen.len() - 1)?
            };
            self.slots[group] = Slot { head, chunk, row: place };
        }
        if !chosen.is_empty() {
            let rows = UInt32Array::from(chosen);
            let columns = values.iter().map(|v| held(&take(v, &rows, None)?)).collect::<Result<Vec<_>>>()?;
            self.push(columns);
        }
        if self.rows > 2 * self.slots.len() + 8 * CHUNK_ROWS {
            self.compact()?;
        }
        Ok(())
    }

    fn push(&mut self, columns: Vec<ArrayRef>) {
        self.rows += columns.first().map_or(0, |c| c.len());
        self.bytes += columns.iter().map(|c| c.get_array_memory_size()).sum::<usize>();
        self.chunks.push(columns);
    }

    /// Returns columns of the latest rows of groups, in the order of the groups.
    fn gather(&self, slots: &[Slot], columns: impl Iterator<Item = usize>) -> Result<Vec<ArrayRef>> {
        if slots.iter().any(|slot| slot.chunk == NONE) {
            return Err(DataFusionError::NotImplemented("latest with a FILTER".to_owned()));
        }
        let places: Vec<(usize, usize)> = slots.iter().map(|s| (s.chunk as usize, s.row as usize)).collect();
        columns
            .map(|n| {
                let arrays: Vec<&dyn Array> = self.chunks.iter().map(|chunk| chunk[n].as_ref()).collect();
                Ok(interleave(&arrays, &places)?)
            })
            .collect()
    }

    /// Drops the superseded rows.
    fn compact(&mut self) -> Result<()> {
        let mut made = Self::new(self.types.clone(), self.kept.clone());
        let mut slots = std::mem::take(&mut self.slots);
        for slots in slots.chunks_mut(CHUNK_ROWS) {
            let columns = self.gather(slots, 0..self.types.len())?;
            let chunk = index(made.chunks.len())?;
            made.push(columns);
            for (row, slot) in (0..).zip(slots) {
                (slot.chunk, slot.row) = (chunk, row);
            }
        }
        *self = Self { slots, ..made };
        Ok(())
    }

    fn emit(&mut self, emit_to: EmitTo, columns: &[usize]) -> Result<Vec<ArrayRef>> {
        let slots = emit_to.take_needed(&mut self.slots);
        let columns = if slots.is_empty() {
            let empty = |n: &usize| arrow::array::new_empty_array(&held_type(&self.types[*n]));
            columns.iter().map(empty).collect()
        } else {
            self.gather(&slots, columns.iter().copied())?
        };
        if self.slots.is_empty() {
            self.chunks.clear();
            (self.rows, self.bytes) = (0, 0);
        }
        Ok(columns)
    }
}

impl GroupsAccumulator for Groups {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        opt_filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.slots.resize(total_num_groups, EMPTY);
        self.accept(values, group_indices, opt_filter)
    }

    fn merge_batch(&mut self, values: &[ArrayRef], group_indices: &[usize], total_num_groups: usize) -> Result<()> {
        self.update_batch(values, group_indices, None, total_num_groups)
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let kept = self.kept.clone();
        let columns = self.emit(emit_to, &kept)?;
        let typed = |(column, n): (&ArrayRef, &usize)| Ok(cast(column, &self.types[*n])?);
        let columns = columns.iter().zip(&kept).map(typed).collect::<Result<_>>()?;
        Ok(Arc::new(StructArray::try_new(fields(&self.types, &kept), columns, None)?))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let all: Vec<usize> = (0..self.types.len()).collect();
        self.emit(emit_to, &all)
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        match filter {
            None => values.iter().map(held).collect(),
            Some(_) => Err(DataFusionError::NotImplemented("latest with a FILTER".to_owned())),
        }
    }

    fn size(&self) -> usize {
        self.slots.capacity() * size_of::<Slot>() + self.bytes
    }
}
