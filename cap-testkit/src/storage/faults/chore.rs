//! The faults of chores.

use std::time::Duration;

use cap_core::storage::{Chore, Storage};
use cap_core::{NodeId, Result};

use super::double::{Double, LONG, VERY_LONG, whole_seconds_up};
use super::fault::StorageFault as Fault;

impl Double {
    pub(super) async fn take_chore(&self, chore: Chore, node: NodeId, term: Duration) -> Result<bool> {
        let inner = self.inner();
        let before = self.memo().chore;
        let term = match (self.fault, before) {
            (Some(Fault::ChoreNeverEnds), _) => LONG,
            (Some(Fault::LongTermOverflows), _) if term > VERY_LONG => Duration::ZERO,
            (Some(Fault::ChoreTermRoundedDown), _) => Duration::from_secs(term.as_secs()),
            (Some(Fault::ChoreTermRoundedUp), _) => whole_seconds_up(term),
            (Some(Fault::ChoreOnlyExtended), Some((_, old))) => term.max(old),
            _ => term,
        };
        let has_it = before.is_some_and(|(holder, _)| holder == node);
        match self.fault {
            Some(Fault::ChoreNotRenewed) if has_it => return Ok(true),
            Some(Fault::ChoreRefusedToItsNode) if has_it => return Ok(false),
            Some(Fault::ChoreWaitsForTransactions) => self.until_no_transaction_is_open().await,
            Some(Fault::ChoreLookedAtFirst) => {
                let is_free = before.is_none();
                for _ in 0..200 {
                    tokio::task::yield_now().await;
                }
                if is_free {
                    self.memo().chore = Some((node, term));
                }
                return Ok(is_free || has_it);
            }
            _ => {}
        }
        let mut answer = inner.take_chore(chore, node, term).await;
        match (self.fault, &answer, before) {
            (Some(Fault::ChoreWithoutLease), Err(_), _) => {
                inner.join(node, LONG).await?;
                answer = inner.take_chore(chore, node, term).await;
            }
            (Some(Fault::ChoreTakenByTheRefused), Err(_), _) => self.give_chore_to_ghost(chore).await?,
            (Some(Fault::ChoreIsEverybodys), Ok(_), _) => answer = Ok(true),
            (Some(Fault::ChoreRenewedByOthers), Ok(false), Some((holder, _))) => {
                inner.take_chore(chore, holder, LONG).await?;
            }
            _ => {}
        }
        if matches!(answer, Ok(true)) {
            self.memo().chore = Some((node, term));
        }
        answer
    }

    /// A node that does not end has the chore from now on.
    async fn give_chore_to_ghost(&self, chore: Chore) -> Result<()> {
        self.join_ghost().await?;
        self.inner().take_chore(chore, self.ghost, LONG).await.map(drop)
    }

    /// Nodes were forgotten, and their chores with them: spoils that.
    pub(super) async fn spoil_freed_chores(&self, forgotten: &[NodeId]) -> Result<()> {
        let Some((holder, _)) = self.memo().chore else { return Ok(()) };
        match self.fault {
            Some(Fault::LeaveKeepsChore | Fault::TakeOverKeepsChore) if forgotten.contains(&holder) => {
                self.give_chore_to_ghost(Chore::Collect).await
            }
            Some(Fault::LeaveFreesEveryChore | Fault::TakeOverFreesEveryChore) if !forgotten.contains(&holder) => {
                self.inner().take_chore(Chore::Collect, holder, Duration::ZERO).await.map(drop)
            }
            _ => Ok(()),
        }
    }
}
