//! Telling of commits made elsewhere.

use std::fmt;
use std::sync::Arc;

use super::Table;

/// How a storage tells of commits made elsewhere. Cheap to clone; harmless to use too often.
#[derive(Clone)]
pub struct Wake {
    wake: Arc<dyn Fn(Table) + Send + Sync>,
    listens: Arc<dyn Fn() + Send + Sync>,
}

impl Wake {
    /// Calls `wake` for each table in which something may be due.
    pub fn new(wake: impl Fn(Table) + Send + Sync + 'static) -> Self {
        Self { wake: Arc::new(wake), listens: Arc::new(|| {}) }
    }

    /// Calls `listens` each time the storage says that it listens.
    #[must_use]
    pub fn on_listening(self, listens: impl Fn() + Send + Sync + 'static) -> Self {
        Self { listens: Arc::new(listens), ..self }
    }

    /// Something may be due in `table`.
    pub fn wake(&self, table: Table) {
        (self.wake)(table);
    }

    /// From here on commits are told of: the watch works, or works again.
    pub fn listens(&self) {
        (self.listens)();
    }
}

impl fmt::Debug for Wake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wake")
    }
}
