//! Which objects of a table are data files, by their names alone. Everything else is never touched.

use deltalake::kernel::{DeletionVectorDescriptor, StorageType};

use crate::lake::paths::PartName;
use crate::lake::sweep::published_name;
use crate::schema::Table;

/// Characters of the encoded identifier of a deletion vector, after its optional folder.
const VECTOR_ID_CHARS: usize = 20;

/// A data file as its name describes it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum DataName {
    /// A file of ingest, for one commit of a shard.
    Part(PartName),
    /// A file of a refresh, for that version of `state`.
    State(u64),
    /// A file of another command or another writer, or a deletion vector: the name does not tell its commit.
    Other,
}

/// Returns the meaning of a path of a table, or `None` if it is no data file.
///
/// Folders whose names begin with `_` or `.` belong to the log and to other programs. In a local folder, a writer that
/// was killed leaves a staged file `.<name>.<token>.tmp`.
pub(super) fn data_name(table: Table, path: &str) -> Option<DataName> {
    let (folders, name) = path.rsplit_once('/').unwrap_or(("", path));
    if folders.split('/').any(is_hidden) {
        return None;
    }
    let name = published_name(name);
    if is_hidden(name) {
        return None;
    }
    if name.starts_with("deletion_vector_") && name.ends_with(".bin") {
        return Some(DataName::Other);
    }
    let stem = name.strip_suffix(".parquet")?;
    let version = || stem.strip_prefix("state-")?.split('-').next()?.parse().ok();
    Some(match (PartName::parse(name), table) {
        (Some(part), _) => DataName::Part(part),
        (None, Table::State) => version().map_or(DataName::Other, DataName::State),
        (None, _) => DataName::Other,
    })
}

fn is_hidden(name: &str) -> bool {
    name.starts_with(['_', '.'])
}

/// Returns the path of the file that holds a deletion vector, `None` if the log itself holds it.
///
/// # Errors
/// The log names no file inside the table. Returns the text that it has.
pub(super) fn vector_path(vector: &DeletionVectorDescriptor) -> Result<Option<String>, String> {
    let text = &vector.path_or_inline_dv;
    match vector.storage_type {
        StorageType::Inline => return Ok(None),
        StorageType::AbsolutePath => return Err(text.clone()),
        StorageType::UuidRelativePath => {}
    }
    let at = text.len().checked_sub(VECTOR_ID_CHARS).ok_or_else(|| text.clone())?;
    let (folder, id) = text.split_at_checked(at).ok_or_else(|| text.clone())?;
    let id = z85::decode(id).ok().and_then(|id| <[u8; 16]>::try_from(id).ok()).ok_or_else(|| text.clone())?;
    let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let id = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-");
    let slash = if folder.is_empty() { "" } else { "/" };
    Ok(Some(format!("{folder}{slash}deletion_vector_{id}.bin")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_files_and_others() {
        let name = |path: &str| data_name(Table::SyncRecords, path);
        let part = "part-s.a-0000000000000007-0000000003-00000.parquet";
        let parsed = DataName::Part(PartName::parse(part).unwrap());
        assert_eq!(name(&format!("pool=p/event_date=2026-01-01/{part}")), Some(parsed));
        let staged = format!("pool=p/.{part}.0011223344556677.tmp");
        assert_eq!(name(&staged), Some(DataName::Part(PartName::parse(part).unwrap())));
        for other in ["part-00000-x.c000.snappy.parquet", "a/deletion_vector_x.bin", "state-3-a.parquet"] {
            assert_eq!(name(other), Some(DataName::Other), "{other}");
        }
        assert_eq!(data_name(Table::State, "pool=p/state-0000000003-a.parquet"), Some(DataName::State(3)));
        let never = [
            "_delta_log/00000000000000000010.checkpoint.parquet",
            "_delta_log/_sidecars/a.parquet",
            "_change_data/cdc-0.parquet",
            "pool=p/_temporary/0/part-0.parquet",
            ".hidden/part-0.parquet",
            "pool=p/_part.parquet",
            "pool=p/.part-0.parquet.crc",
            "notes.txt",
            "a.parquet.bak",
            "deletion_vector_x.txt",
        ];
        for path in never {
            assert_eq!(name(path), None, "{path}");
        }
    }

    /// The example of the Delta protocol.
    #[test]
    fn a_deletion_vector_and_its_file() {
        let vector = |storage_type, text: &str| DeletionVectorDescriptor {
            storage_type,
            path_or_inline_dv: text.to_owned(),
            offset: Some(4),
            size_in_bytes: 40,
            cardinality: 6,
        };
        let path = |text| vector_path(&vector(StorageType::UuidRelativePath, text));
        let file = "deletion_vector_d2c639aa-8816-431a-aaf6-d3fe2512ff61.bin";
        assert_eq!(path("ab^-aqEH.-t@S}K{vb[*k^"), Ok(Some(format!("ab/{file}"))));
        assert_eq!(path("^-aqEH.-t@S}K{vb[*k^"), Ok(Some(file.to_owned())));
        assert!(path("short").is_err());
        assert!(vector_path(&vector(StorageType::AbsolutePath, "s3://b/x.bin")).is_err());
        assert_eq!(vector_path(&vector(StorageType::Inline, "x")), Ok(None));
    }
}
