//! The user's own transaction: what is published in it shares its fate.

use std::collections::BTreeSet;
use std::sync::Arc;

use cap_core::error::ErrorKind;
use cap_core::storage::{Inserted, Lane, NewRecord, Record, Settlement, Storage, Table, Transacted};
use cap_core::{HandlerError, Status};

use super::fixture::{Script, ScriptEnd, StorageFixture};
use super::support::*;
use crate::check::{CheckResult, Failure};
use crate::{ensure, ensure_eq};

/// That there is no sign of a record, whichever way one looks.
async fn is_invisible(fixture: &dyn StorageFixture, storage: &Arc<dyn Storage>, worker: &Worker) -> CheckResult {
    ensure_eq!(all(storage, Table::Outbox).await?.len(), 0, "listed records");
    ensure_eq!(storage.counts(Table::Outbox, v1()).await?.total(), 0, "counted records");
    ensure_eq!(storage.next_due(v1(), vec![Lane::Outbox]).await?, vec![None], "next due time");
    if !fixture.single_writer() {
        ensure_eq!(worker.claim(Lane::Outbox, 10).await?.records.len(), 0, "claimed records");
    }
    Ok(())
}

pub(super) async fn a_publish_is_visible_after_the_commit(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    let records = messages(2);
    let mut tx = fixture.begin().await?;
    stored(&tx.publish(records.clone()).await?)?;
    tx.commit().await?;
    ensure_eq!(worker.claim(Lane::Outbox, 10).await?.ids(), new_ids(&records), "claimed after the commit");
    Ok(())
}

pub(super) async fn a_publish_is_invisible_before_the_commit(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    let mut tx = fixture.begin().await?;
    stored(&tx.publish(vec![message()]).await?)?;
    is_invisible(fixture, &storage, &worker).await?;
    tx.write("order 1".into()).await?;
    is_invisible(fixture, &storage, &worker).await?;
    tx.commit().await?;
    worker.claim_message().await?;
    Ok(())
}

pub(super) async fn a_publish_is_gone_after_the_rollback(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    let record = message();
    for drops in [false, true] {
        let mut tx = fixture.begin().await?;
        stored(&tx.publish(vec![record.clone(), message()]).await?)?;
        tx.write("order 1".into()).await?;
        if drops {
            drop(tx);
        } else {
            tx.rollback().await?;
        }
        let witness = message_of_version("witness");
        insert(&storage, Table::Outbox, vec![witness.clone()]).await?;
        worker.claim_version(Lane::Outbox, witness.version, 10).await?.one()?;
        ensure_eq!(worker.claim(Lane::Outbox, 10).await?.records.len(), 0, "claimed after the rollback");
        ensure_eq!(fixture.effects().await?, Vec::<String>::new(), "effects after the rollback");
    }
    insert(&storage, Table::Outbox, vec![record]).await?;
    Ok(())
}

pub(super) async fn a_savepoint_takes_back_what_was_published_after_it(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let [kept, undone, later] = [message(), message(), message()];
    let mut tx = fixture.begin().await?;
    stored(&tx.publish(vec![kept.clone()]).await?)?;
    tx.write("before".into()).await?;
    tx.savepoint().await?;
    stored(&tx.publish(vec![undone.clone()]).await?)?;
    tx.write("undone".into()).await?;
    tx.rollback_to_savepoint().await?;
    stored(&tx.publish(vec![later.clone()]).await?)?;
    tx.commit().await?;
    ensure_eq!(ids(&all(&storage, Table::Outbox).await?), new_ids(&[kept, later]), "messages after the commit");
    ensure_eq!(fixture.effects().await?, ["before"], "effects after the commit");
    insert(&storage, Table::Outbox, vec![undone]).await?;
    Ok(())
}

pub(super) async fn several_publishes_and_the_data_are_one_commit(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let records = messages(40);
    let mut tx = fixture.begin().await?;
    for (number, part) in records.chunks(13).enumerate() {
        tx.write(format!("order {number}")).await?;
        stored(&tx.publish(part.to_vec()).await?)?;
    }
    ensure_eq!(all(&storage, Table::Outbox).await?.len(), 0, "messages before the commit");
    ensure_eq!(fixture.effects().await?.len(), 0, "effects before the commit");
    tx.commit().await?;
    ensure_eq!(ids(&all(&storage, Table::Outbox).await?), new_ids(&records), "messages after the commit");
    ensure_eq!(fixture.effects().await?, ["order 0", "order 1", "order 2", "order 3"], "effects after the commit");
    Ok(())
}

pub(super) async fn a_duplicate_leaves_the_transaction_usable(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let (known, fresh, last) = (message(), message(), message());
    insert(&storage, Table::Outbox, vec![known.clone()]).await?;
    let mut tx = fixture.begin().await?;
    tx.write("before".into()).await?;
    let inserted = tx.publish(vec![known.clone(), fresh.clone(), fresh.clone()]).await?;
    ensure!(
        matches!(inserted[..], [Inserted::Duplicate, Inserted::Stored(_), Inserted::Duplicate]),
        "Duplicate, Stored, Duplicate was expected, it answered {inserted:?}"
    );
    let again = tx.publish(vec![fresh.clone()]).await?;
    ensure_eq!(again, vec![Inserted::Duplicate], "answer for an id published before in this transaction");
    tx.write("after".into()).await?;
    stored(&tx.publish(vec![last.clone()]).await?)?;
    tx.commit().await?;
    ensure_eq!(fixture.effects().await?, ["after", "before"], "effects after the commit");
    let found = all(&storage, Table::Outbox).await?;
    ensure_eq!(ids(&found), new_ids(&[known, fresh, last]), "messages after the commit");
    ensure_eq!(found.len(), 3, "records after the commit");
    Ok(())
}

/// Either the transaction or the insert beside it stores the message, whoever comes first and however it ends.
pub(super) async fn one_id_in_a_transaction_and_beside_it_is_stored_once(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    for commits in [true, false] {
        let record = message();
        let mut tx = fixture.begin().await?;
        stored(&tx.publish(vec![record.clone()]).await?)?;
        let (beside, batch) = (Arc::clone(&storage), vec![record.clone()]);
        let insert = tokio::spawn(async move { beside.insert(Table::Outbox, batch, None).await });
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        if commits {
            tx.commit().await?;
        } else {
            tx.rollback().await?;
        }
        let inserted = insert.await.map_err(|error| Failure::new(error.to_string()))??;
        let is_duplicate = inserted == [Inserted::Duplicate];
        ensure_eq!(is_duplicate, commits, "whether the insert beside it was a duplicate (committed: {commits})");
        the_record(&storage, Table::Outbox, &record.message_id).await?;
    }
    Ok(())
}

pub(super) async fn without_enlisting_there_is_no_transaction(fixture: &dyn StorageFixture) -> CheckResult {
    opened(fixture).await?;
    let kind = fixture.begin().await.err().map(|error| error.kind());
    ensure_eq!(kind, Some(ErrorKind::Unsupported), "kind of the error of a transaction that is not declared");
    Ok(())
}

/// An inbox record held by a node, and its settlement as succeeded.
struct Handling {
    storage: Arc<dyn Storage>,
    worker: Worker,
    record: NewRecord,
    taken: Taken,
}

impl Handling {
    async fn begin(fixture: &dyn StorageFixture) -> CheckResult<Self> {
        let storage = opened(fixture).await?;
        let worker = Worker::join(&storage).await?;
        let record = delivery("billing");
        insert(&storage, Table::Inbox, vec![record.clone()]).await?;
        let taken = worker.claim(lane("billing"), 1).await?;
        taken.one()?;
        Ok(Self { storage, worker, record, taken })
    }

    fn settlement(&self) -> CheckResult<Settlement> {
        self.taken.settlements(succeeded).pop().ok_or_else(|| "nothing was claimed".into())
    }

    async fn record(&self) -> CheckResult<Record> {
        the_record(&self.storage, Table::Inbox, &self.record.message_id).await
    }

    /// Nothing of the work is left.
    async fn left_nothing(&self, fixture: &dyn StorageFixture) -> CheckResult {
        ensure_eq!(fixture.effects().await?, Vec::<String>::new(), "effects of the work");
        ensure_eq!(all(&self.storage, Table::Outbox).await?.len(), 0, "messages that the work published");
        Ok(())
    }

    /// The record is held as before: its owner can still settle it.
    async fn is_held(&self) -> CheckResult {
        let found = self.record().await?;
        ensure_eq!((found.status, found.attempts), (Status::Queued, 1), "status and attempts");
        ensure_eq!(found.owner, Some(self.worker.node), "owner");
        self.worker.settle(Table::Inbox, &self.taken, |attempts| retry_in(attempts, LONG, "no")).await
    }
}

fn script(publish: Vec<NewRecord>, end: ScriptEnd) -> Script {
    Script { effects: vec!["invoice 1".into(), "invoice 2".into()], publish, end }
}

pub(super) async fn a_handler_commits_effects_messages_and_settlement(fixture: &dyn StorageFixture) -> CheckResult {
    let handling = Handling::begin(fixture).await?;
    let records = messages(2);
    let outcome = fixture.transact(handling.settlement()?, script(records.clone(), ScriptEnd::Succeed)).await?;
    ensure!(matches!(outcome, Transacted::Committed), "Committed was expected, it answered {outcome:?}");
    ensure_eq!(fixture.effects().await?, ["invoice 1", "invoice 2"], "effects");
    let claimed = handling.worker.claim(Lane::Outbox, 10).await?;
    ensure_eq!(claimed.ids(), new_ids(&records), "messages that the work published");
    let found = handling.record().await?;
    ensure_eq!((found.status, found.owner), (Status::Succeeded, None), "status and owner of the record");
    ensure!(found.expires.is_some(), "the settlement's expiry was not written");
    Ok(())
}

pub(super) async fn a_handler_that_fails_leaves_nothing(fixture: &dyn StorageFixture) -> CheckResult {
    let handling = Handling::begin(fixture).await?;
    let failure = HandlerError::permanent("no such customer");
    let script = script(vec![message()], ScriptEnd::Fail(failure.clone()));
    let outcome = fixture.transact(handling.settlement()?, script).await?;
    let Transacted::RolledBack(error) = outcome else {
        return Err(format!("RolledBack was expected, it answered {outcome:?}").into());
    };
    ensure_eq!(error, failure, "the handler's error");
    handling.left_nothing(fixture).await?;
    handling.is_held().await
}

pub(super) async fn a_handler_that_panics_leaves_nothing(fixture: &dyn StorageFixture) -> CheckResult {
    let handling = Handling::begin(fixture).await?;
    let outcome = fixture.transact(handling.settlement()?, script(vec![message()], ScriptEnd::Panic)).await;
    ensure!(
        matches!(outcome, Ok(Transacted::RolledBack(_))),
        "RolledBack was expected after a panic of the work, it answered {outcome:?}"
    );
    handling.left_nothing(fixture).await?;
    handling.is_held().await?;
    let other = Handling::begin(fixture).await?;
    let outcome = fixture.transact(other.settlement()?, script(vec![], ScriptEnd::Succeed)).await?;
    ensure!(matches!(outcome, Transacted::Committed), "after a panic the next handler was answered {outcome:?}");
    Ok(())
}

pub(super) async fn a_handler_without_the_record_leaves_nothing(fixture: &dyn StorageFixture) -> CheckResult {
    let handling = Handling::begin(fixture).await?;
    handling.worker.dies().await?;
    for is_claimed_again in [false, true] {
        if is_claimed_again {
            Worker::join(&handling.storage).await?.claim(suspects("billing"), 1).await?.one()?;
        }
        let before = handling.record().await?;
        let outcome = fixture.transact(handling.settlement()?, script(vec![message()], ScriptEnd::Succeed)).await?;
        ensure!(matches!(outcome, Transacted::Lost), "Lost was expected, it answered {outcome:?}");
        handling.left_nothing(fixture).await?;
        ensure_eq!(handling.record().await?, before, "the record");
    }
    Ok(())
}

pub(super) async fn a_handler_may_publish_what_is_there_already(fixture: &dyn StorageFixture) -> CheckResult {
    let handling = Handling::begin(fixture).await?;
    let (known, fresh) = (message(), message());
    insert(&handling.storage, Table::Outbox, vec![known.clone()]).await?;
    let publish = vec![known.clone(), fresh.clone(), fresh.clone()];
    let outcome = fixture.transact(handling.settlement()?, script(publish, ScriptEnd::Succeed)).await?;
    ensure!(matches!(outcome, Transacted::Committed), "Committed was expected, it answered {outcome:?}");
    let expected: BTreeSet<_> = new_ids(&[known, fresh]);
    let found = all(&handling.storage, Table::Outbox).await?;
    ensure_eq!((found.len(), ids(&found)), (2, expected), "messages in the outbox");
    ensure_eq!(fixture.effects().await?.len(), 2, "effects");
    Ok(())
}

pub(super) async fn a_handler_whose_message_is_refused_leaves_nothing(fixture: &dyn StorageFixture) -> CheckResult {
    let handling = Handling::begin(fixture).await?;
    let publish = vec![message(), too_long(fixture)];
    let outcome = fixture.transact(handling.settlement()?, script(publish, ScriptEnd::Succeed)).await;
    let Err(error) = outcome else {
        return Err(format!("an error of the storage was expected, it answered {outcome:?}").into());
    };
    ensure!(error.kind() != ErrorKind::Unavailable, "a content that will never fit was answered as Unavailable");
    handling.left_nothing(fixture).await?;
    handling.is_held().await
}

pub(super) async fn without_transactional_handlers_there_are_none(fixture: &dyn StorageFixture) -> CheckResult {
    let handling = Handling::begin(fixture).await?;
    let result = fixture.transact(handling.settlement()?, script(vec![], ScriptEnd::Succeed)).await;
    let kind = result.err().map(|error| error.kind());
    ensure_eq!(kind, Some(ErrorKind::Unsupported), "kind of the error of a transactional handler");
    handling.left_nothing(fixture).await?;
    handling.is_held().await
}

/// Work that takes its time, beside claims, heartbeats and other work of the same kind.
pub(super) async fn handlers_at_once_commit_each_their_own(fixture: &dyn StorageFixture) -> CheckResult {
    const MANY: usize = 20;
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    insert(&storage, Table::Inbox, (0..MANY).map(|_| delivery("billing")).collect()).await?;
    let taken = worker.claim(lane("billing"), MANY).await?;
    let handlers = taken.settlements(succeeded).into_iter().enumerate().map(|(number, settlement)| {
        let end = if number % 4 == 3 { ScriptEnd::Fail(HandlerError::retry("no")) } else { ScriptEnd::Succeed };
        let effects = vec![format!("invoice {number:02}")];
        fixture.transact(settlement, Script { effects, publish: vec![message()], end })
    });
    let outcomes = join_all(handlers.collect()).await;
    for (number, outcome) in outcomes.into_iter().enumerate() {
        let committed = matches!(outcome?, Transacted::Committed);
        ensure_eq!(committed, number % 4 != 3, "whether handler {number} was committed");
    }
    let kept = MANY - MANY / 4;
    ensure_eq!(fixture.effects().await?.len(), kept, "effects");
    ensure_eq!(all(&storage, Table::Outbox).await?.len(), kept, "published messages");
    let counts = storage.counts(Table::Inbox, v1()).await?;
    ensure_eq!((counts.succeeded, counts.queued), (kept as u64, (MANY - kept) as u64), "succeeded and held records");
    Ok(())
}

/// Drives the futures at once, in the same task.
async fn join_all<T>(mut futures: Vec<cap_core::BoxFuture<'_, T>>) -> Vec<T> {
    let mut done: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, slot) in futures.iter_mut().zip(&mut done) {
            if slot.is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(context)
            {
                *slot = Some(value);
            }
        }
        if done.iter().all(Option::is_some) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    done.into_iter().flatten().collect()
}
