//! What somebody can put right is held against no message.

use super::*;

/// Sets a pragma on the connection that the storage writes with.
async fn set(storage: &SqliteStorage, pragma: &'static str) {
    let settlement = in_flight(storage, node(storage).await, &format!("d{}", NodeId::generate())).await;
    let sets = work(move |tx| {
        tx.query_row(pragma, [], |_| Ok(())).or_else(|error| match error {
            rusqlite::Error::QueryReturnedNoRows => Ok(()),
            error => Err(error),
        })?;
        Ok(Vec::new())
    });
    assert!(matches!(storage.transact(settlement, sets).await.unwrap(), Transacted::Committed));
}

fn large(id: &str) -> NewRecord {
    NewRecord { content: "x".repeat(100_000).into(), ..message(id) }
}

#[tokio::test]
async fn a_full_disk_is_no_fault_of_the_data_and_all_works_when_there_is_room_again() {
    let file = File::new();
    let storage = file.storage().await;
    file.business();
    let settlement = in_flight(&storage, node(&storage).await, "d1").await;
    // A limit of one page is one of as many as there are.
    set(&storage, "PRAGMA max_page_count = 1").await;

    let error = storage.insert(Table::Outbox, vec![large("a")], None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment, "{error}");
    assert!(error.to_string().contains("make room on the disk"), "{error}");
    let handler = work(|_| Ok(vec![large("b")]));
    let error = storage.transact(settlement.clone(), handler).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment, "{error}");
    let handler = work(|tx| {
        tx.execute("INSERT INTO orders VALUES (zeroblob(100000))", [])?;
        Ok(Vec::new())
    });
    let error = storage.transact(settlement.clone(), handler).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment, "{error}");

    set(&storage, "PRAGMA max_page_count = 1000000").await;
    let handler = work(|_| Ok(vec![large("b")]));
    assert!(matches!(storage.transact(settlement, handler).await.unwrap(), Transacted::Committed));
    storage.insert(Table::Outbox, vec![large("a")], None).await.unwrap();
    assert_eq!(ids(&storage, Table::Outbox).await, ["b", "a"]);
}

#[tokio::test]
async fn with_a_full_disk_those_that_need_no_room_go_on_beside_those_that_do() {
    let file = File::new();
    let storage = file.storage().await;
    let settlement = in_flight(&storage, node(&storage).await, "d1").await;
    set(&storage, "PRAGMA max_page_count = 1").await;
    let refused = storage.insert(Table::Outbox, vec![large("a")], None);
    let settled = async {
        loop {
            match storage.settle(Table::Inbox, vec![settlement.clone()]).await {
                Ok(settled) => return settled,
                // It shared the transaction that was lost with the other.
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
            }
        }
    };
    let (refused, settled) = tokio::join!(refused, settled);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Environment);
    assert_eq!(settled, [Settled::Written]);
}

#[tokio::test]
async fn a_file_that_may_not_be_written_and_a_missing_table_are_no_fault_of_the_data() {
    let file = File::new();
    let storage = file.storage().await;
    let node = node(&storage).await;
    let settlement = in_flight(&storage, node, "d1").await;

    set(&storage, "PRAGMA query_only = ON").await;
    let error = storage.settle(Table::Inbox, vec![settlement.clone()]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment, "{error}");
    assert!(error.to_string().contains("read-only"), "{error}");

    let storage = file.storage().await;
    let business = file.business();
    business.execute_batch("ALTER TABLE \"cap.received\" RENAME TO away").unwrap();
    let kinds = [
        storage.settle(Table::Inbox, vec![settlement.clone()]).await.map(drop),
        storage.insert(Table::Inbox, vec![waiting("d2")], None).await.map(drop),
        storage.claim(request(node, Lane::Inbox(group()), 10)).await.map(drop),
        storage.take_over(Vec::new()).await.map(drop),
    ]
    .map(|answer| answer.unwrap_err().kind());
    assert_eq!(kinds, [ErrorKind::Environment; 4]);
    business.execute_batch("ALTER TABLE away RENAME TO \"cap.received\"").unwrap();
    assert_eq!(storage.settle(Table::Inbox, vec![settlement]).await.unwrap(), [Settled::Written]);
}

#[tokio::test]
async fn what_a_constraint_refuses_is_rejected() {
    let file = File::new();
    let storage = file.storage().await;
    file.business()
        .execute_batch(
            "CREATE TRIGGER no BEFORE INSERT ON \"cap.published\" WHEN NEW.MessageId = 'bad'
             BEGIN SELECT RAISE(ABORT, 'not this one'); END",
        )
        .unwrap();
    let error = storage.insert(Table::Outbox, vec![message("bad")], None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected, "{error}");
    storage.insert(Table::Outbox, vec![message("good")], None).await.unwrap();
}

/// As an operator moves files about: with the log.
fn rename(from: &Path, to: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let with = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
        if with(from).exists() {
            std::fs::rename(with(from), with(to)).unwrap();
        }
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_file_that_was_taken_away_is_not_written_to_and_not_made_anew_and_used_when_it_is_back() {
    let file = File::new();
    let storage = file.storage().await;
    storage.insert(Table::Outbox, vec![message("a")], None).await.unwrap();
    let away = file.directory.path().join("away.db");
    rename(&file.path(), &away);

    let error = storage.insert(Table::Outbox, vec![message("lost")], None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment, "{error}");
    let error = storage.counts(Table::Outbox, Version::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment, "{error}");
    assert!(!file.path().exists(), "an empty file was made in its place");

    rename(&away, &file.path());
    storage.insert(Table::Outbox, vec![message("b")], None).await.unwrap();
    assert_eq!(ids(&storage, Table::Outbox).await, ["a", "b"]);
}

#[cfg(unix)]
#[tokio::test]
async fn a_handler_whose_file_is_replaced_while_it_works_is_not_committed_to_nowhere() {
    let file = File::new();
    let storage = file.storage().await;
    let settlement = in_flight(&storage, node(&storage).await, "d1").await;
    let (path, away) = (file.path(), file.directory.path().join("away.db"));
    let replaces = work(move |_| {
        rename(&path, &away);
        Connection::open(&path)?.execute_batch("CREATE TABLE another (a)")?;
        Ok(Vec::new())
    });
    let error = storage.transact(settlement, replaces).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment, "{error}");
    assert!(error.to_string().contains("deleted or replaced"), "{error}");
    // From now on it works with the other one.
    storage.prepare().await.unwrap();
    storage.insert(Table::Outbox, vec![message("a")], None).await.unwrap();
    assert_eq!(ids(&file.storage().await, Table::Outbox).await, ["a"]);
}

#[cfg(unix)]
#[tokio::test]
async fn a_watch_notices_that_its_file_was_replaced() {
    let file = File::new();
    let storage = file.storage().await;
    let (listens, mut heard) = mpsc::unbounded_channel();
    let wake = Wake::new(|_| {}).on_listening(move || listens.send(()).unwrap_or(()));
    let watch = tokio::spawn({
        let storage = storage.clone();
        async move { storage.watch(wake).await }
    });
    heard.recv().await.unwrap();
    rename(&file.path(), &file.directory.path().join("away.db"));
    assert_eq!(watch.await.unwrap().unwrap_err().kind(), ErrorKind::Environment);
}
