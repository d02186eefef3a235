//! Making ready: the tables, whatever is there already, and what a storage says of itself.

use cap_core::error::ErrorKind;
use cap_core::storage::{Lane, StorageCapabilities, Table};
use tokio::task::JoinSet;

use super::fixture::StorageFixture;
use super::support::*;
use crate::check::{CheckResult, Failure};
use crate::{ensure, ensure_eq};

pub(super) async fn preparing_again_keeps_every_row(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    let worker = Worker::join(&storage).await?;
    insert(&storage, Table::Outbox, vec![message()]).await?;
    let held = worker.claim_message().await?;
    insert(&storage, Table::Outbox, messages(2)).await?;
    insert(&storage, Table::Inbox, vec![delivery("billing")]).await?;
    let before = [all(&storage, Table::Outbox).await?, all(&storage, Table::Inbox).await?];
    storage.prepare().await?;
    let newcomer = opened(fixture).await?;
    let after = [all(&newcomer, Table::Outbox).await?, all(&newcomer, Table::Inbox).await?];
    ensure_eq!(after, before, "records after preparing again");
    worker.settle(Table::Outbox, &held, succeeded).await
}

pub(super) async fn eight_nodes_may_prepare_an_empty_database_at_once(fixture: &dyn StorageFixture) -> CheckResult {
    let mut calls = JoinSet::new();
    for _ in 0..8 {
        let storage = fixture.open().await?;
        calls.spawn(async move {
            storage.prepare().await?;
            insert(&storage, Table::Outbox, vec![message()]).await
        });
    }
    while let Some(prepared) = calls.join_next().await {
        prepared.map_err(|error| Failure::new(error.to_string()))??;
    }
    let storage = opened(fixture).await?;
    let taken = Worker::join(&storage).await?.claim(Lane::Outbox, 100).await?;
    ensure_eq!(taken.ids().len(), 8, "records of the nodes that prepared at once");
    Ok(())
}

pub(super) async fn an_unknown_schema_version_is_refused(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = opened(fixture).await?;
    insert(&storage, Table::Outbox, vec![message()]).await?;
    fixture.set_unknown_schema_version().await?;
    let newcomer = fixture.open().await?;
    for _ in 0..2 {
        let Err(error) = newcomer.prepare().await else {
            return Err("tables of an unknown schema version were taken for ready".into());
        };
        ensure_eq!(error.kind(), ErrorKind::Schema, "kind of the error");
        let numbers = numbers_in(&error.to_string());
        ensure!(numbers >= 2, "the error must name both versions, that found and that known: {error}");
    }
    ensure_eq!(all(&storage, Table::Outbox).await?.len(), 1, "records after the refusal");
    Ok(())
}

/// How many different numbers a text holds.
fn numbers_in(text: &str) -> usize {
    let numbers = text.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty());
    numbers.collect::<std::collections::BTreeSet<_>>().len()
}

pub(super) async fn a_database_that_cannot_be_opened_is_named(fixture: &dyn StorageFixture) -> CheckResult {
    let (storage, place) = fixture.unusable().ok_or("the fixture has no unusable database")?;
    let Err(error) = storage.prepare().await else {
        return Err("an unusable database was taken for ready".into());
    };
    let text = error.to_string();
    ensure!(text.contains(&place), "the error must name {place:?}: {text}");
    ensure!(
        fixture.secret().is_none_or(|secret| !format!("{text} {error:?}").contains(&secret)),
        "the error shows the password"
    );
    Ok(())
}

pub(super) async fn records_outlive_their_handles(fixture: &dyn StorageFixture) -> CheckResult {
    let record = message();
    let storage = opened(fixture).await?;
    insert(&storage, Table::Outbox, vec![record.clone()]).await?;
    drop(storage);
    let storage = opened(fixture).await?;
    the_record(&storage, Table::Outbox, &record.message_id).await?;
    Ok(())
}

pub(super) async fn a_storage_shows_its_place_and_no_secret(fixture: &dyn StorageFixture) -> CheckResult {
    let storage = fixture.open().await?;
    let shown = format!("{} {storage:?}", storage.describe());
    ensure!(!storage.describe().trim().is_empty(), "`describe` says nothing");
    ensure!(
        fixture.secret().is_none_or(|secret| !shown.contains(&secret)),
        "`describe` or the debug output shows the password"
    );
    Ok(())
}

pub(super) async fn capabilities_are_constant_and_as_expected(fixture: &dyn StorageFixture) -> CheckResult {
    let expected = fixture.capabilities();
    let storage = fixture.open().await?;
    // What the server has to be asked for is known once it has been.
    let unasked = |of| StorageCapabilities { max_content: None, ascii_only: false, ..of };
    ensure_eq!(unasked(storage.capabilities()), unasked(expected), "capabilities before preparing");
    storage.prepare().await?;
    for handle in [storage, opened(fixture).await?] {
        ensure_eq!(handle.capabilities(), expected, "capabilities of a prepared handle");
        ensure_eq!(handle.capabilities(), expected, "capabilities, asked again");
    }
    ensure!(!expected.transactional_handlers || expected.enlists, "transactional handlers need enlisting");
    ensure!(!expected.savepoints || expected.enlists, "savepoints need enlisting");
    Ok(())
}
