//! Doubles that break one promise each: they prove that every check can fail.
//!
//! [`FaultyFixture`] is the memory storage with exactly one [`StorageFault`]. [`STORAGE_FAULTS`] says on which faults each
//! check must fail, and [`fault_table`] tries it.

mod bounds;
mod chore;
mod claim;
mod double;
mod fault;
mod fixture;
mod insert;
mod lease;
mod storage;
mod suspect;
mod upkeep;

pub use fault::StorageFault;
pub use fixture::FaultyFixture;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::report::Outcome;
use crate::runner::run_one;
use crate::storage::fixture::StorageFixture;
use crate::storage::suite::{STORAGE_FAULTS, StorageCheck};

/// How long a check may take on a double. One that hangs has noticed the fault, if late.
const TIME_LIMIT: Duration = Duration::from_secs(20);

/// What a check made of a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kill {
    /// The check's number.
    pub id: &'static str,
    /// The check's name.
    pub name: &'static str,
    /// The fault.
    pub fault: StorageFault,
    /// What the check said of it; none when it did not notice.
    pub noticed: Option<String>,
}

impl fmt::Display for Kill {
    /// One line of the table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = self.noticed.as_deref().map_or("NOT NOTICED".into(), |text| format!("killed: {text:.120}"));
        write!(f, "{} {} | {:?}: {} | {verdict}", self.id, self.name, self.fault, self.fault)
    }
}

/// Runs a check on a double.
pub async fn try_fault(check: &'static StorageCheck, fault: StorageFault) -> Kill {
    let make = async move { Arc::new(FaultyFixture::new(fault)) as Arc<dyn StorageFixture> };
    let noticed = match run_one(check, make, TIME_LIMIT).await.outcome {
        Outcome::Failed(text) => Some(text),
        Outcome::Passed | Outcome::Unsupported { .. } => None,
    };
    Kill { id: check.id, name: check.name, fault, noticed }
}

/// Runs every check on each of its faults, several at once, and answers in the order of the table. Call it on a runtime
/// of several threads.
pub async fn fault_table() -> Vec<Kill> {
    const AT_ONCE: usize = 8;
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let pairs = STORAGE_FAULTS.iter().flat_map(|(id, faults)| faults.iter().map(move |fault| (*id, *fault)));
    let mut tries = Vec::new();
    for (id, fault) in pairs {
        let Some(check) = super::check(id) else { continue };
        let places = Arc::clone(&places);
        tries.push(tokio::spawn(async move {
            let _place = places.acquire_owned().await;
            try_fault(check, fault).await
        }));
    }
    let mut kills = Vec::new();
    for kill in tries {
        // A check that panics is caught within: the task itself does not.
        kills.extend(kill.await);
    }
    kills
}
