//! JSON functions that datafusion-functions-json lacks: the entries of an object or array as a list, whether a key is
//! there, and whether a text is JSON.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, ListArray, StringArray, StructArray};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, FieldRef, Fields};
use datafusion::error::Result;
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{cast, is_json, no_arguments, taken, texts};
use crate::query::UserError;
use crate::query::functions::{columnar, rows_of, types_of};

/// Bytes that an entry needs in addition to its text: a place of seven digits, two offsets.
const ENTRY_BYTES: u64 = 16;

/// Returns `json_entries(json)`: a list of key and value. The keys of an array are its places, from 0.
pub(super) fn entries() -> ScalarUDF {
    of(Kind::Entries)
}

/// Returns `json_has_key(json, key)`, which is the operator `?`.
pub(super) fn has_key() -> ScalarUDF {
    of(Kind::HasKey)
}

/// Returns `json_valid(text)`.
pub(super) fn valid() -> ScalarUDF {
    of(Kind::Valid)
}

fn of(kind: Kind) -> ScalarUDF {
    ScalarUDF::new_from_impl(Read { kind, signature: Signature::variadic_any(Volatility::Immutable) })
}

/// Returns an upper bound of the bytes that `json_entries` returns.
pub(in crate::query::functions) fn entry_bytes(args: &[ColumnarValue], rows: usize) -> u64 {
    let Some(json) = args.first().and_then(|json| json.to_array(rows).ok()) else { return 0 };
    texts(&json).flatten().fold(0, |sum, text| {
        let entries = memchr::memchr_iter(b',', text.as_bytes()).count() as u64 + 1;
        sum.saturating_add(text.len() as u64).saturating_add(entries.saturating_mul(ENTRY_BYTES))
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Entries,
    HasKey,
    Valid,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Read {
    kind: Kind,
    signature: Signature,
}

fn fields() -> Fields {
    Fields::from(vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Utf8, false)])
}

impl ScalarUDFImpl for Read {
    fn name(&self) -> &str {
        match self.kind {
            Kind::Entries => "json_entries",
            Kind::HasKey => "json_has_key",
            Kind::Valid => "json_valid",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(match self.kind {
            Kind::Entries => DataType::List(Arc::new(Field::new_list_field(DataType::Struct(fields()), true))),
            Kind::HasKey | Kind::Valid => DataType::Boolean,
        })
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let expected = if self.kind == Kind::HasKey { 2 } else { 1 };
        let types = taken(self.name(), &types_of(args.arg_fields))?;
        if types.len() != expected {
            let what = if expected == 2 { "a JSON text and a key" } else { "one text" };
            return Err(UserError(format!("{} takes {what}", self.name())).into());
        }
        if types.get(1).is_some_and(|of| !of.is_string()) {
            let text = "? asks for a key, which is text; write v -> 0 is not null for a place";
            return Err(UserError(text.to_owned()).into());
        }
        Ok(Arc::new(Field::new(self.name(), self.return_type(&types)?, true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let (rows, is_scalar) = rows_of(&args);
        let args = cast(&args, &taken(self.name(), &types_of(&args.arg_fields))?)?;
        let json = args.first().ok_or_else(|| no_arguments(self.name()))?.to_array(rows)?;
        let found: ArrayRef = match (self.kind, args.get(1)) {
            (Kind::Entries, _) => Arc::new(unfolded(texts(&json))?),
            (Kind::HasKey, Some(key)) => {
                let keys = key.to_array(rows)?;
                let both = texts(&json).zip(texts(&keys));
                Arc::new(both.map(|(json, key)| read(json?, Searched(key?))).collect::<BooleanArray>())
            }
            _ => Arc::new(texts(&json).map(|text| text.map(is_json)).collect::<BooleanArray>()),
        };
        columnar(&found, is_scalar)
    }
}

/// Returns the entries of each object and array, and NULL for other texts.
fn unfolded<'a>(json: impl Iterator<Item = Option<&'a str>>) -> Result<ListArray> {
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    let (mut lengths, mut is_valid) = (Vec::new(), Vec::new());
    for text in json {
        let entries = text.and_then(|text| read(text, Entries));
        is_valid.push(entries.is_some());
        let entries = entries.unwrap_or_default();
        lengths.push(entries.len());
        for (key, value) in entries {
            keys.push(key);
            values.push(value.get());
        }
    }
    let columns: Vec<ArrayRef> =
        vec![Arc::new(StringArray::from_iter_values(&keys)), Arc::new(StringArray::from_iter_values(values))];
    let entries = StructArray::try_new(fields(), columns, None)?;
    let item = Arc::new(Field::new_list_field(DataType::Struct(fields()), true));
    let nulls = NullBuffer::from(is_valid);
    Ok(ListArray::try_new(item, OffsetBuffer::from_lengths(lengths), Arc::new(entries), Some(nulls))?)
}

/// Reads a whole text, or returns `None` if it is no JSON, or JSON that the visitor does not take.
fn read<'a, V: Visitor<'a>>(text: &'a str, visitor: V) -> Option<V::Value> {
    let mut parser = serde_json::Deserializer::from_str(text);
    let value = parser.deserialize_any(visitor).ok()?;
    parser.end().ok()?;
    Some(value)
}

struct Entries;

impl<'a> Visitor<'a> for Entries {
    type Value = Vec<(Cow<'a, str>, &'a RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or an array")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = Vec::new();
        while let Some((key, value)) = map.next_entry::<Key<'a>, &RawValue>()? {
            found.push((key.0, value));
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut found = Vec::new();
        while let Some(value) = list.next_element::<&RawValue>()? {
            found.push((Cow::Owned(found.len().to_string()), value));
        }
        Ok(found)
    }
}

/// A key, borrowed where it has no escapes.
#[derive(serde::Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

/// Looks for a key of an object, or for a text in an array, or compares a text. Other JSON has no keys.
struct Searched<'k>(&'k str);

impl<'a> Visitor<'a> for Searched<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<bool, A::Error> {
        let mut found = false;
        while let Some((key, _)) = map.next_entry::<Key<'a>, IgnoredAny>()? {
            found |= key.0 == self.0;
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut list: A) -> Result<bool, A::Error> {
        let mut found = false;
        while let Some(value) = list.next_element::<&RawValue>()? {
            let text = value.get();
            found |= text.starts_with('"') && serde_json::from_str::<Cow<'_, str>>(text).is_ok_and(|t| t == self.0);
        }
        Ok(found)
    }

    fn visit_str<E>(self, text: &str) -> Result<bool, E> {
        Ok(text == self.0)
    }

    fn visit_bool<E>(self, _: bool) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_i64<E>(self, _: i64) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_u64<E>(self, _: u64) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_f64<E>(self, _: f64) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_unit<E>(self) -> Result<bool, E> {
        Ok(false)
    }
}
