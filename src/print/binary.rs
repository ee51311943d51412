//! Results in binary form: Parquet, and Arrow IPC. Encoded bytes pass on with each batch.

use std::io::{self, Write};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;
use arrow::util::display::FormatOptions;
use arrow_ipc::writer::{FileWriter, StreamWriter};
use parquet::arrow::ArrowWriter;

use super::{other, spelled};

/// Encoded bytes of a row group in memory, at which it ends, however few rows it has.
const ROW_GROUP_BYTES: usize = 128 << 20;

/// Capacity of the buffer that stays between two batches.
const KEPT_BYTES: usize = 1 << 20;
/// A value that cannot be stored is an error, and no NULL.
const EXACT: CastOptions<'static> = CastOptions { safe: false, format_options: FormatOptions::new() };

/// A writer of one result.
pub(super) struct Binary {
    /// The columns as they are stored.
    schema: SchemaRef,
    writer: Writer,
}

enum Writer {
    Parquet(Box<ArrowWriter<Vec<u8>>>),
    File(Box<FileWriter<Vec<u8>>>),
    Stream(Box<StreamWriter<Vec<u8>>>),
}

impl Binary {
    /// Parquet has no intervals, so they become text, and no times in whole seconds. The file also names the types of
    /// Arrow, which readers use.
    pub(super) fn parquet(schema: &Schema) -> io::Result<Self> {
        let schema = stored(schema, |of| match of {
            of if is_interval(of) => DataType::Utf8,
            DataType::Timestamp(TimeUnit::Second, zone) => DataType::Timestamp(TimeUnit::Millisecond, zone.clone()),
            DataType::Time32(TimeUnit::Second) => DataType::Time32(TimeUnit::Millisecond),
            DataType::Date64 => DataType::Date32,
            of => plain(of),
        });
        let writer = ArrowWriter::try_new(Vec::new(), schema.clone(), None).map_err(other)?;
        Ok(Self { schema, writer: Writer::Parquet(Box::new(writer)) })
    }

    /// The file format, whose reader seeks to the index at its end.
    pub(super) fn arrow_file(schema: &Schema) -> io::Result<Self> {
        let schema = stored(schema, plain);
        let writer = FileWriter::try_new(Vec::new(), &schema).map_err(other)?;
        Ok(Self { schema, writer: Writer::File(Box::new(writer)) })
    }

    /// The stream format, whose reader needs no end.
    pub(super) fn arrow_stream(schema: &Schema) -> io::Result<Self> {
        let schema = stored(schema, plain);
        let writer = StreamWriter::try_new(Vec::new(), &schema).map_err(other)?;
        Ok(Self { schema, writer: Writer::Stream(Box::new(writer)) })
    }

    /// Writes a batch.
    pub(super) fn write(&mut self, batch: &RecordBatch, out: &mut impl Write) -> io::Result<()> {
        let batch = self.stored(batch).map_err(other)?;
        match &mut self.writer {
            Writer::Parquet(writer) => {
                writer.write(&batch).map_err(other)?;
                if writer.memory_size() >= ROW_GROUP_BYTES {
                    writer.flush().map_err(other)?;
                }
            }
            Writer::File(writer) => writer.write(&batch).map_err(other)?,
            Writer::Stream(writer) => writer.write(&batch).map_err(other)?,
        }
        self.pass_on(out)
    }

    /// Ends the result.
    pub(super) fn finish(&mut self, out: &mut impl Write) -> io::Result<()> {
        match &mut self.writer {
            Writer::Parquet(writer) => writer.finish().map(drop).map_err(other)?,
            Writer::File(writer) => writer.finish().map_err(other)?,
            Writer::Stream(writer) => writer.finish().map_err(other)?,
        }
        self.pass_on(out)
    }

    fn pass_on(&mut self, out: &mut impl Write) -> io::Result<()> {
        let encoded = match &mut self.writer {
            Writer::Parquet(writer) => writer.inner_mut(),
            Writer::File(writer) => writer.get_mut(),
            Writer::Stream(writer) => writer.get_mut(),
        };
        out.write_all(encoded)?;
        // A row group may have been large.
        encoded.clear();
        encoded.shrink_to(KEPT_BYTES);
        Ok(())
    }

    fn stored(&self, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
        let spelled = match &self.writer {
            Writer::Parquet(_) if batch.columns().iter().any(|c| is_interval(c.data_type())) => {
                Some(spelled::batch(batch)?)
            }
            _ => None,
        };
        let column = |(at, field): (usize, &FieldRef)| -> Result<ArrayRef, ArrowError> {
            let column = batch.column(at);
            match &spelled {
                Some(spelled) if is_interval(column.data_type()) => Ok(spelled.column(at).clone()),
                _ if column.data_type() == field.data_type() => Ok(column.clone()),
                _ => cast_with_options(column, field.data_type(), &EXACT),
            }
        };
        let columns = self.schema.fields().iter().enumerate().map(column).collect::<Result<Vec<_>, _>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)
    }
}

fn is_interval(of: &DataType) -> bool {
    matches!(of, DataType::Interval(_) | DataType::Duration(_))
}

fn stored(schema: &Schema, of: impl Fn(&DataType) -> DataType) -> SchemaRef {
    let field = |field: &FieldRef| field.as_ref().clone().with_data_type(of(field.data_type()));
    Arc::new(Schema::new(schema.fields().iter().map(field).collect::<Vec<_>>()))
}

/// Returns the type that readers of Arrow know: older ones know no views, and a file of the IPC format can hold only one
/// dictionary a column. Offsets of 64 bits hold any batch.
fn plain(of: &DataType) -> DataType {
    let inner =
        |field: &FieldRef| -> FieldRef { Arc::new(field.as_ref().clone().with_data_type(plain(field.data_type()))) };
    match of {
        DataType::Utf8View => DataType::LargeUtf8,
        DataType::BinaryView => DataType::LargeBinary,
        DataType::Dictionary(_, values) => plain(values),
        DataType::List(field) => DataType::List(inner(field)),
        DataType::LargeList(field) => DataType::LargeList(inner(field)),
        DataType::ListView(field) => DataType::List(inner(field)),
        DataType::LargeListView(field) => DataType::LargeList(inner(field)),
        DataType::FixedSizeList(field, length) => DataType::FixedSizeList(inner(field), *length),
        DataType::Map(field, is_sorted) => DataType::Map(inner(field), *is_sorted),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(inner).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Array, DictionaryArray, StringArray, StringViewArray};
    use arrow::datatypes::Int8Type;
    use arrow_ipc::reader::{FileReader, StreamReader};

    fn batches() -> Vec<RecordBatch> {
        let batch = |pool: &str| {
            let pools: DictionaryArray<Int8Type> = [pool, pool].into_iter().collect();
            let values = StringViewArray::from(vec![Some("a value that is too long to be inlined"), None]);
            RecordBatch::try_from_iter_with_nullable([
                ("pool", Arc::new(pools) as ArrayRef, true),
                ("value", Arc::new(values) as ArrayRef, true),
            ])
            .unwrap()
        };
        // Two batches with different dictionaries.
        vec![batch("a"), batch("b")]
    }

    fn encoded(mut binary: Binary, batches: &[RecordBatch]) -> Vec<u8> {
        let mut out = Vec::new();
        for batch in batches {
            let before = out.len();
            binary.write(batch, &mut out).unwrap();
            assert!(out.len() > before || matches!(binary.writer, Writer::Parquet(_)));
        }
        binary.finish(&mut out).unwrap();
        out
    }

    #[test]
    fn arrow_holds_what_readers_know() {
        let batches = batches();
        let file = encoded(Binary::arrow_file(&batches[0].schema()).unwrap(), &batches);
        let stream = encoded(Binary::arrow_stream(&batches[0].schema()).unwrap(), &batches);
        let read: Vec<_> = FileReader::try_new(io::Cursor::new(file), None).unwrap().map(Result::unwrap).collect();
        let streamed: Vec<_> = StreamReader::try_new(&stream[..], None).unwrap().map(Result::unwrap).collect();
        assert_eq!(read, streamed);
        assert_eq!(read[0].schema().field(0).data_type(), &DataType::Utf8);
        assert_eq!(read[1].schema().field(1).data_type(), &DataType::LargeUtf8);
        let pools = read[1].column(0).as_any().downcast_ref::<StringArray>().unwrap();
        assert_eq!((pools.value(0), pools.value(1)), ("b", "b"));
        assert!(read[0].column(1).is_null(1));
    }

    #[test]
    fn parquet_is_whole_when_its_bytes_pass_on() {
        let batches = batches();
        let bytes = encoded(Binary::parquet(&batches[0].schema()).unwrap(), &batches);
        let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(bytes));
        assert_eq!(reader.unwrap().metadata().file_metadata().num_rows(), 4);
    }
}
