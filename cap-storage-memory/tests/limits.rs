//! What is particular to memory: its limits, and transactions that meet.

use std::time::Duration;

use cap_core::lifecycle::scheduled;
use cap_core::storage::{Enlist, Inserted, NewRecord, Query, Storage, Table};
use cap_core::{Due, ErrorKind, MessageId, Topic, Version};
use cap_storage_memory::{MemoryStorage, MemoryStorageOptions};

fn message() -> NewRecord {
    NewRecord {
        message_id: MessageId::generate(),
        version: Version::default(),
        topic: Topic::from_stored("order.placed"),
        group: None,
        content: "{}".into(),
        state: scheduled(Due::Now),
    }
}

async fn stored(storage: &MemoryStorage) -> usize {
    let listed = storage.list(Table::Outbox, Query { limit: 100, ..Query::default() }).await;
    listed.expect("memory can be read").len()
}

#[tokio::test]
async fn a_full_storage_says_so_and_takes_more_once_there_is_room() {
    let storage =
        MemoryStorage::with_options(MemoryStorageOptions { max_records: 2, ..MemoryStorageOptions::default() });
    let mut tx = storage.begin();
    storage.enlist(&mut tx, vec![message()]).unwrap();
    let inserted = storage.insert(Table::Outbox, vec![message()], None).await.unwrap();

    let error = storage.insert(Table::Outbox, vec![message()], None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("max_records"), "{error}");
    assert_eq!(storage.enlist(&mut tx, vec![message()]).unwrap_err().kind(), ErrorKind::Unavailable);
    tx.commit();
    assert_eq!(stored(&storage).await, 2);

    let [Inserted::Stored(id)] = inserted[..] else { panic!("{inserted:?}") };
    storage.delete(Table::Outbox, vec![id]).await.unwrap();
    storage.insert(Table::Outbox, vec![message()], None).await.unwrap();
}

#[tokio::test]
async fn a_rolled_back_transaction_leaves_room() {
    let storage =
        MemoryStorage::with_options(MemoryStorageOptions { max_records: 1, ..MemoryStorageOptions::default() });
    let mut tx = storage.begin();
    storage.enlist(&mut tx, vec![message()]).unwrap();
    tx.rollback();
    storage.insert(Table::Outbox, vec![message()], None).await.unwrap();
}

#[tokio::test]
async fn of_two_open_transactions_with_one_id_the_second_is_refused_until_the_first_ends() {
    let storage = MemoryStorage::new();
    let record = message();
    let (mut first, mut second) = (storage.begin(), storage.begin());
    let savepoint = first.savepoint();
    storage.enlist(&mut first, vec![record.clone()]).unwrap();
    let error = storage.enlist(&mut second, vec![message(), record.clone()]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    first.rollback_to(savepoint);
    storage.enlist(&mut second, vec![record]).unwrap();
    second.commit();
    first.commit();
    assert_eq!(stored(&storage).await, 1);
}

#[tokio::test]
async fn an_insert_waits_for_a_transaction_no_longer_than_it_may() {
    let options = MemoryStorageOptions { lock_wait: Duration::from_millis(20), ..MemoryStorageOptions::default() };
    let storage = MemoryStorage::with_options(options);
    let record = message();
    let mut tx = storage.begin();
    storage.enlist(&mut tx, vec![record.clone()]).unwrap();
    let error = storage.insert(Table::Outbox, vec![message(), record.clone()], None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(stored(&storage).await, 0);
    drop(tx);
    storage.insert(Table::Outbox, vec![record], None).await.unwrap();
}

#[tokio::test]
async fn a_transaction_of_another_database_is_refused() {
    let (storage, other) = (MemoryStorage::new(), MemoryStorage::new());
    let error = storage.enlist(&mut other.begin(), vec![message()]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[test]
fn a_transaction_sees_its_own_writes_and_what_others_have_committed() {
    let storage = MemoryStorage::new();
    let (mut tx, mut other) = (storage.begin(), storage.begin());
    tx.put("a", "mine");
    other.put("b", "theirs");
    assert_eq!((tx.get("a").as_deref(), tx.get("b")), (Some("mine"), None));
    other.commit();
    assert_eq!(tx.get("b").as_deref(), Some("theirs"));
    tx.remove("b");
    assert_eq!(tx.get("b"), None);
    tx.commit();
    assert_eq!(storage.entries(), [("a".to_owned(), "mine".to_owned())]);
}
