//! What a storage must bring along to be checked.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use cap_core::storage::{BoxFuture, Inserted, NewRecord, Settlement, Storage, StorageCapabilities, Transacted};
use cap_core::{Error, HandlerError, Result};

use crate::check::Fixture;

/// One fresh, empty database, and what the checks do to it beside the [`Storage`] trait: the user's side.
///
/// One instance serves one check. Its business data is a table of texts, the *effects*, which the fixture makes itself.
/// The methods that belong to a capability answer `Unsupported` unless they are implemented, as they must where the
/// capability is not declared.
pub trait StorageFixture: Send + Sync + 'static {
    /// What the storage is expected to declare. A check holds this against what the storage says.
    fn capabilities(&self) -> StorageCapabilities;

    /// An independent handle on the database, as another process would open it: no cache, pool or lock in common with
    /// the others, as far as possible. It is not prepared.
    fn open(&self) -> BoxFuture<'_, Result<Arc<dyn Storage>>>;

    /// The committed effects, sorted.
    fn effects(&self) -> BoxFuture<'_, Result<Vec<String>>>;

    /// Begins a transaction on a connection of the user's own (capability `enlists`). The tables are prepared.
    fn begin(&self) -> BoxFuture<'_, Result<Box<dyn UserTransaction>>> {
        Box::pin(async { Err(unsupported("begin a transaction")) })
    }

    /// Runs the script as the work of [`Transact::transact`](cap_core::storage::Transact::transact) (capability
    /// `transactional_handlers`), on a handle of its own: `Box::new(move |tx| script.play(|effect| …))`.
    fn transact(&self, settlement: Settlement, script: Script) -> BoxFuture<'_, Result<Transacted>> {
        let _ = (settlement, script);
        Box::pin(async { Err(unsupported("run a transactional handler")) })
    }

    /// Begins the transaction of a handler that is at work on a record, as the engine does by
    /// [`TransactAsync::begin`](cap_core::storage::TransactAsync::begin), on a handle of its own, and leaves it open
    /// (capability `transactional_handlers`, where the storage [locks records](StorageFixture::locks_records)). None if
    /// the record is not held under the settlement's token.
    fn begin_handler(&self, settlement: Settlement) -> BoxFuture<'_, Result<Option<Box<dyn HandlerTransaction>>>> {
        let _ = settlement;
        Box::pin(async { Err(unsupported("begin a handler's transaction")) })
    }

    /// Whether a handler's open transaction keeps its record locked, so that settlements, inserts and takeovers beside it
    /// could wait for it. `false` where nothing is locked before the commit. With a [single
    /// writer](StorageFixture::single_writer), which may keep others waiting, it is not asked.
    fn locks_records(&self) -> bool {
        true
    }

    /// Lets at least so much time pass by the database's clock. A fixture that can move that clock may do so instead
    /// of waiting.
    fn pass(&self, time: Duration) -> BoxFuture<'_, ()> {
        Box::pin(tokio::time::sleep(time))
    }

    /// Whether a writer keeps all other writers waiting (SQLite): then claims may wait for open transactions.
    fn single_writer(&self) -> bool {
        false
    }

    /// Whether the server under test answers a query that an index sorts and a limit ends without reading all that
    /// matches. `false` only for a stand-in of the real server: what cannot hold on it is then not checked, and the report
    /// says so.
    fn reads_in_order(&self) -> bool {
        true
    }

    /// Whether the fixture can make the database [refuse writes](StorageFixture::set_writable).
    fn can_refuse_writes(&self) -> bool {
        false
    }

    /// Makes the database refuse every insert and update of the storage's records, whatever they are, or allows them again:
    /// rights revoked and granted, a server made read-only, a disk without room. Connections that are open stay so.
    fn set_writable(&self, writable: bool) -> BoxFuture<'_, Result<()>> {
        let _ = writable;
        Box::pin(async { Err(unsupported("make the database refuse writes")) })
    }

    /// Whether the fixture can [set the addresses back](StorageFixture::set_addresses_back).
    fn can_set_addresses_back(&self) -> bool {
        false
    }

    /// Lets what gives records their addresses stand behind both tables, so that the next ones are taken: a sequence, after a
    /// restore of rows alone or logical replication. Handles that are open stay so.
    fn set_addresses_back(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Err(unsupported("set the addresses back")) })
    }

    /// A record for the outbox that the database refuses because of what is in it: a text that its encoding does not have,
    /// a content that is too large for it. None where it takes everything. By default one that is longer than the
    /// storage declares to take.
    fn refused_record(&self) -> Option<NewRecord> {
        None
    }

    /// Marks the tables as those of a schema version that the storage cannot know (capability `persistent`).
    fn set_unknown_schema_version(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Err(unsupported("change the schema version")) })
    }

    /// A handle on a database that cannot be opened, and the text by which its error must name it: a wrong file, a
    /// server that is not there. None where everything can be opened.
    fn unusable(&self) -> Option<(Arc<dyn Storage>, String)> {
        None
    }

    /// The password with which [`StorageFixture::open`] and [`StorageFixture::unusable`] connect, if there is one: it
    /// must show nowhere.
    fn secret(&self) -> Option<String> {
        None
    }

    /// Removes the database. Called after each check.
    fn clean_up(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

fn unsupported(operation: &'static str) -> Error {
    Error::unsupported(operation, "the fixture's storage")
}

/// The user's own transaction. Dropping it rolls it back.
pub trait UserTransaction: Send {
    /// Writes an effect.
    fn write(&mut self, effect: String) -> BoxFuture<'_, Result<()>>;

    /// Publishes by [`Enlist::enlist`](cap_core::storage::Enlist::enlist).
    fn publish(&mut self, records: Vec<NewRecord>) -> BoxFuture<'_, Result<Vec<Inserted>>>;

    /// Sets a savepoint (capability `savepoints`).
    fn savepoint(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Err(unsupported("set a savepoint")) })
    }

    /// Undoes everything since the savepoint (capability `savepoints`).
    fn rollback_to_savepoint(&mut self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Err(unsupported("roll back to a savepoint")) })
    }

    /// Commits it.
    fn commit(self: Box<Self>) -> BoxFuture<'static, Result<()>>;

    /// Rolls it back.
    fn rollback(self: Box<Self>) -> BoxFuture<'static, Result<()>>;
}

/// The open transaction of a handler at work. Dropping it rolls it back.
pub trait HandlerTransaction: Send {
    /// Commits it, and with it the settlement that it was begun with; no message is published.
    fn commit(self: Box<Self>) -> BoxFuture<'static, Result<()>>;

    /// Rolls it back.
    fn rollback(self: Box<Self>) -> BoxFuture<'static, Result<()>>;
}

/// The work of a transactional handler, as a check wants it done.
#[derive(Debug, Clone)]
pub struct Script {
    /// Effects to write.
    pub effects: Vec<String>,
    /// What to publish, if the handler gets that far.
    pub publish: Vec<NewRecord>,
    /// How the handler ends.
    pub end: ScriptEnd,
}

/// How a [`Script`] ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScriptEnd {
    /// Well: what it published is answered.
    Succeed,
    /// With this error.
    Fail(HandlerError),
    /// With a panic.
    Panic,
}

impl Script {
    /// Does the work: `write` writes one effect through the transaction.
    ///
    /// # Errors
    /// Those of `write`, and the one that the script ends with.
    ///
    /// # Panics
    /// When the script says so.
    pub fn play(
        self,
        mut write: impl FnMut(String) -> Result<(), HandlerError>,
    ) -> Result<Vec<NewRecord>, HandlerError> {
        for effect in self.effects {
            write(effect)?;
        }
        match self.end {
            ScriptEnd::Succeed => Ok(self.publish),
            ScriptEnd::Fail(error) => Err(error),
            // Without the panic hook, which would print what is no news here.
            ScriptEnd::Panic => std::panic::resume_unwind(Box::new("the script says so")),
        }
    }
}

/// What a storage declares and its fixture can do: what a check's need is read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StorageAbilities {
    /// The storage's capabilities.
    pub capabilities: StorageCapabilities,
    /// Whether the fixture has an [unusable](StorageFixture::unusable) database.
    pub unusable: bool,
    /// Whether the fixture can make the database [refuse writes](StorageFixture::can_refuse_writes).
    pub refuses_writes: bool,
    /// Whether the fixture can [set the addresses back](StorageFixture::can_set_addresses_back).
    pub sets_addresses_back: bool,
    /// Whether there is a [record that the database refuses](StorageFixture::refused_record).
    pub refuses_records: bool,
    /// Whether the fixture connects with a [secret](StorageFixture::secret).
    pub secret: bool,
    /// Whether an open handler [locks its record](StorageFixture::locks_records), and other writers go on beside it.
    pub locks_records: bool,
    /// Whether its server [reads in order](StorageFixture::reads_in_order).
    pub reads_in_order: bool,
}

impl Fixture for dyn StorageFixture {
    type Abilities = StorageAbilities;

    fn abilities(&self) -> StorageAbilities {
        StorageAbilities {
            capabilities: self.capabilities(),
            unusable: self.unusable().is_some(),
            refuses_writes: self.can_refuse_writes(),
            sets_addresses_back: self.can_set_addresses_back(),
            refuses_records: self.refused_record().is_some(),
            secret: self.secret().is_some(),
            locks_records: self.locks_records() && !self.single_writer(),
            reads_in_order: self.reads_in_order(),
        }
    }

    fn clean_up(&self) -> BoxFuture<'_, Result<()>> {
        StorageFixture::clean_up(self)
    }
}

impl fmt::Debug for dyn StorageFixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StorageFixture").field("capabilities", &self.capabilities()).finish_non_exhaustive()
    }
}
