//! A handler's open transaction, with its record locked meanwhile and without.

use cap_core::storage::{Lane, Settled, Settlement, Storage, Table, TransactAsync};
use cap_core::{ErrorKind, NodeId, Status};
use cap_storage_memory::{MemoryStorage, MemoryStorageOptions};
use cap_testkit::storage::scene;

/// A storage whose only node holds a record, on which a handler is at work.
async fn at_work(lock_records: bool) -> (MemoryStorage, NodeId, Settlement) {
    let storage = MemoryStorage::with_options(MemoryStorageOptions { lock_records, ..MemoryStorageOptions::default() });
    let node = scene::node(&storage).await;
    let settlement = scene::in_flight(&storage, node, "42").await;
    (storage, node, settlement)
}

#[tokio::test]
async fn a_commit_after_the_record_was_lost_is_refused() {
    let (storage, node, settlement) = at_work(false).await;
    let mut tx = TransactAsync::begin(&storage, settlement).await.unwrap().unwrap();
    tx.put("invoice", "1");
    assert_eq!(cap_testkit::take_over_from(&storage, &[node]).await.unwrap().inbox, 1);
    let error = TransactAsync::commit(&storage, tx, Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LeaseLost);
    assert!(storage.entries().is_empty());
}

#[tokio::test]
async fn a_locked_record_is_nobodys_until_the_transaction_ends_however_that_is() {
    let (storage, node, settlement) = at_work(true).await;
    let settle = || storage.settle(Table::Inbox, vec![settlement.clone()]);
    let tx = TransactAsync::begin(&storage, settlement.clone()).await.unwrap().unwrap();
    assert_eq!(settle().await.unwrap(), [Settled::Locked]);
    let second = TransactAsync::begin(&storage, settlement.clone()).await.unwrap_err();
    assert_eq!(second.kind(), ErrorKind::Unavailable);
    drop(tx);
    let tx = TransactAsync::begin(&storage, settlement.clone()).await.unwrap().unwrap();
    storage.leave(node).await.unwrap();
    TransactAsync::commit(&storage, tx, Vec::new()).await.unwrap();
    assert_eq!(scene::inbox_status(&storage).await, [Status::Succeeded]);
    assert_eq!(settle().await.unwrap(), [Settled::Lost]);
    let heir = scene::node(&storage).await;
    let claimed = storage.claim(scene::request(heir, Lane::Suspects(scene::group()), 1)).await.unwrap();
    assert!(claimed.records.is_empty());
}
