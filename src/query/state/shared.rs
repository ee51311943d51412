//! The tail, shared by the scans of a query: a view may stand several times in one statement.
//!
//! **A tail is read once for all scans with the same filter.** The scans of a query are planned before the first of them
//! runs. Each adds its columns, and the read takes all of them.
//!
//! **The table holds no tail.** It only knows the tails of the plans that exist, so the memory of a tail is free once
//! the last plan over it is dropped.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::Expr;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};

use super::tail::Tail;

/// The tails of the plans over a table.
#[derive(Debug, Default)]
pub(super) struct Tails(Mutex<Vec<Weak<SharedTail>>>);

/// A read of the tail: `None` if it does not fit into memory. Every scan that waits for it drives it, so a scan that is
/// not polled keeps no other from it.
type Read = Shared<BoxFuture<'static, Result<Option<Arc<Tail>>, Arc<DataFusionError>>>>;

/// The tail under one filter.
#[derive(Debug)]
pub(super) struct SharedTail {
    filter: Option<Expr>,
    content: Mutex<Content>,
}

#[derive(Debug)]
struct Content {
    /// The columns of all scans. None is added once the read has begun.
    columns: Vec<String>,
    read: Option<Read>,
}

impl Tails {
    /// Returns the tail under a filter, with at least these columns.
    pub(super) fn share(&self, filter: Option<&Expr>, columns: &[&str]) -> Arc<SharedTail> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|shared| shared.strong_count() > 0);
        let usable = |shared: &Arc<SharedTail>| shared.filter.as_ref() == filter && shared.admits(columns);
        known.iter().filter_map(Weak::upgrade).find(usable).unwrap_or_else(|| {
            let columns = columns.iter().map(|name| (*name).to_owned()).collect();
            let content = Mutex::new(Content { columns, read: None });
            let shared = Arc::new(SharedTail { filter: filter.cloned(), content });
            known.push(Arc::downgrade(&shared));
            shared
        })
    }
}

impl SharedTail {
    /// Adds columns. Returns `false` if the read has begun without one of them.
    fn admits(&self, columns: &[&str]) -> bool {
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        let is_missing = |name: &&&str| !content.columns.iter().any(|known| known == **name);
        let missing: Vec<String> = columns.iter().filter(is_missing).map(|name| (*name).to_owned()).collect();
        if content.read.is_some() {
            return missing.is_empty();
        }
        content.columns.extend(missing);
        true
    }

    /// Waits for the tail. The first caller's `begin` gets the columns to read; its future must not own this tail.
    ///
    /// # Errors
    /// The tail cannot be read.
    pub(super) async fn read<F>(&self, begin: impl FnOnce(Vec<String>) -> F) -> Result<Option<Arc<Tail>>>
    where
        F: Future<Output = Result<Option<Tail>>> + Send + 'static,
    {
        let read = {
            let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
            let Content { columns, read } = &mut *content;
            let begin = || {
                let read = begin(columns.clone());
                async { Ok(read.await?.map(Arc::new)) }.map(|read| read.map_err(Arc::new)).boxed().shared()
            };
            read.get_or_insert_with(begin).clone()
        };
        read.await.map_err(DataFusionError::Shared)
    }
}
