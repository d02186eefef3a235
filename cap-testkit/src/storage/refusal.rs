//! What the database refuses: because of the record, or because of something that somebody else can put right.

use std::collections::BTreeSet;

use cap_core::error::ErrorKind;
use cap_core::lifecycle::{Status, received};
use cap_core::storage::{Claim, Lane, NewRecord, Settled, Table};

use super::fixture::StorageFixture;
use super::support::*;
use crate::check::CheckResult;
use crate::{ensure, ensure_eq};

/// That a call was refused for what a person can put right without touching the messages.
fn is_environment<T: std::fmt::Debug>(what: &str, answer: cap_core::Result<T>) -> CheckResult {
    let kind = answer.err().map(|error| error.kind());
    let is_right = matches!(kind, Some(ErrorKind::Environment | ErrorKind::Unavailable));
    ensure!(is_right, "{what} while the database refuses writes: found {kind:?}, expected Environment");
    Ok(())
}

pub(super) async fn what_the_environment_refuses_works_once_that_is_put_right(
    fixture: &dyn StorageFixture,
) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    let (outgoing, incoming) = (messages(2), vec![delivery("billing"), delivery("billing")]);
    let held: Vec<_> = incoming.iter().map(|record| NewRecord { state: received(true), ..record.clone() }).collect();
    let claim = Claim::by(worker.node);
    insert(&storage, Table::Outbox, messages(2)).await?;
    let taken = worker.claim_message().await?;
    for round in 0..2 {
        fixture.set_writable(false).await?;
        // Several times: a driver may learn only from the first refusal.
        for _ in 0..2 {
            is_environment("an insert", storage.insert(Table::Outbox, outgoing.clone(), None).await)?;
            is_environment("an insert of one", storage.insert(Table::Outbox, outgoing[..1].to_vec(), None).await)?;
            is_environment("a delivery", storage.insert(Table::Inbox, held.clone(), Some(claim)).await)?;
            is_environment("a settlement", storage.settle(Table::Outbox, taken.settlements(succeeded)).await)?;
            is_environment("a claim", storage.claim(worker.request(Lane::Outbox, v1(), 1)).await)?;
        }
        fixture.set_writable(true).await?;
        if round == 0 {
            // By the handle that was refused, and not by a duplicate of something that was stored after all.
            insert(&storage, Table::Outbox, outgoing.clone()).await?;
            let inserted = storage.insert(Table::Inbox, held.clone(), Some(claim)).await?;
            stored(&inserted)?;
            let addresses = all(&storage, Table::Outbox).await?.into_iter();
            let addresses = addresses.filter(|record| new_ids(&outgoing).contains(&record.message_id));
            storage.delete(Table::Outbox, addresses.map(|record| record.id).collect()).await?;
            ensure_eq!(storage.release(Table::Inbox, claim).await?, 2, "released deliveries");
            let addresses = all(&storage, Table::Inbox).await?.iter().map(|record| record.id).collect();
            storage.delete(Table::Inbox, addresses).await?;
        }
    }
    let settled = storage.settle(Table::Outbox, taken.settlements(succeeded)).await?;
    ensure_eq!(settled, vec![Settled::Written], "the settlement once writes are allowed again");
    let held = all(&storage, Table::Outbox).await?.iter().filter(|record| record.status == Status::Queued).count();
    ensure_eq!(held, 0, "records that a refused claim has taken");
    worker.claim_message().await?;
    Ok(())
}

pub(super) async fn an_address_that_is_taken_fails_nobody(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    let deliveries = |number: usize| -> Vec<NewRecord> {
        (0..number).map(|_| NewRecord { state: received(true), ..delivery("billing") }).collect()
    };
    let claim = Claim::by(worker.node);
    let (mut sent, mut received) = (messages(8), deliveries(8));
    stored(&storage.insert(Table::Outbox, sent.clone(), None).await?)?;
    stored(&storage.insert(Table::Inbox, received.clone(), Some(claim)).await?)?;
    for number in [1, 3] {
        fixture.set_addresses_back().await?;
        let (outgoing, incoming) = (messages(number), deliveries(number));
        stored(&storage.insert(Table::Outbox, outgoing.clone(), None).await?)?;
        stored(&storage.insert(Table::Inbox, incoming.clone(), Some(claim)).await?)?;
        sent.extend(outgoing);
        received.extend(incoming);
    }
    if fixture.capabilities().enlists {
        fixture.set_addresses_back().await?;
        let published = messages(2);
        let mut tx = fixture.begin().await?;
        stored(&tx.publish(published.clone()).await?)?;
        tx.commit().await?;
        sent.extend(published);
    }
    for (table, records) in [(Table::Outbox, sent), (Table::Inbox, received)] {
        let found = all(&storage, table).await?;
        ensure_eq!(ids(&found), new_ids(&records), "records in the {table}");
        let addresses: BTreeSet<_> = found.iter().map(|record| record.id).collect();
        ensure_eq!(addresses.len(), records.len(), "addresses in the {table}");
    }
    Ok(())
}

pub(super) async fn what_is_refused_for_its_content_is_rejected(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    let refused = fixture.refused_record().unwrap_or_else(|| too_long(fixture));
    for table in [Table::Outbox, Table::Inbox] {
        let of_table = |record: NewRecord| match table {
            Table::Outbox => record,
            Table::Inbox => NewRecord { group: Some(group("billing")), state: received(true), ..record },
        };
        let claim = (table == Table::Inbox).then(|| Claim::by(worker.node));
        let neighbours = [of_table(message()), of_table(message())];
        let refused = of_table(refused.clone());
        let batch = [&neighbours[0], &refused, &neighbours[1]].map(Clone::clone);
        for batch in [batch.to_vec(), vec![refused.clone()]] {
            let number = batch.len();
            let kind = storage.insert(table, batch, claim).await.err().map(|error| error.kind());
            let is_right = matches!(kind, Some(ErrorKind::Rejected | ErrorKind::Invalid));
            ensure!(is_right, "{table}, a refused record among {number}: found {kind:?}, expected Rejected or Invalid");
            ensure_eq!(all(&storage, table).await?.len(), 0, "records stored of the refused batch of {number}");
        }
        stored(&storage.insert(table, neighbours.to_vec(), claim).await?)?;
        ensure_eq!(ids(&all(&storage, table).await?), new_ids(&neighbours), "neighbours stored without it");
    }
    Ok(())
}
