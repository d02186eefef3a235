//! What is told when there is no connection, or one to a server that will not do.

use std::time::{Duration, Instant};

use cap_core::storage::{Storage, Table};
use cap_core::{Error, ErrorKind};
use cap_storage_mongo::mongodb::bson::{DateTime, Document, RawDocumentBuf, doc};
use cap_storage_mongo::{MongoOptions, MongoStorage};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Database, PASSWORD, server};
use cap_testkit::storage::scene::{ids, message};

const LIMIT: Duration = Duration::from_secs(5);

async fn refused(url: &str) -> Error {
    let options = MongoOptions::new(url).connect_timeout(LIMIT);
    let begun = Instant::now();
    let error = MongoStorage::connect_with(options).await.unwrap_err();
    assert!(begun.elapsed() < LIMIT + Duration::from_secs(3), "it took {:?}: {error}", begun.elapsed());
    for shown in [error.to_string(), format!("{error:?}")] {
        assert!(!shown.contains(PASSWORD), "the password is shown: {shown}");
    }
    error
}

#[tokio::test]
async fn why_there_is_no_connection_is_told_without_the_password() {
    let database = Database::create().await;
    let (host, name) = (server().await.hosts[0].to_string(), database.name.clone());

    let error = refused(&format!("mongodb://{name}:wrong@{host}/?authSource={name}")).await;
    assert_eq!(error.kind(), ErrorKind::Rejected, "{error}");
    assert!(error.to_string().contains("user or password are wrong"), "{error}");

    let error = refused(&format!("mongodb://{name}:{PASSWORD}@{host}/?authSource=elsewhere")).await;
    assert_eq!(error.kind(), ErrorKind::Rejected, "{error}");
    assert!(error.to_string().contains("authSource"), "{error}");

    let error = refused(&format!("mongodb://{name}:{PASSWORD}@127.0.0.1:1/")).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("127.0.0.1:1/") && error.to_string().contains("nothing listens"), "{error}");

    let error = refused(&format!("mongodb://{name}:{PASSWORD}@no.such.host.invalid/")).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("host's name is unknown"), "{error}");

    let error = refused(&format!("mongodb://{name}:{PASSWORD}@{host}/?replicaSet=another&authSource={name}")).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");

    let error = refused(&format!("postgres://{name}:{PASSWORD}@{host}/{name}")).await;
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    database.drop().await;
}

#[tokio::test]
async fn a_host_that_does_not_answer_is_given_up_in_time() {
    // It accepts connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let options = MongoOptions::new(format!("mongodb://u:{PASSWORD}@127.0.0.1:{port}/"))
        .connect_timeout(Duration::from_millis(300));
    let begun = Instant::now();
    let error = MongoStorage::connect_with(options.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let error = MongoStorage::connect_lazy(options).await.unwrap().prepare().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(begun.elapsed() < LIMIT, "it took {:?}", begun.elapsed());
}

/// Answers whatever it is asked with one document, as a server does that has no more to it.
async fn serve(listener: TcpListener, answer: Document) {
    while let Ok((connection, _)) = listener.accept().await {
        let answer = answer.clone();
        tokio::spawn(async move { converse(connection, answer).await });
    }
}

/// MongoDB's wire protocol: `OP_MSG` (2013), and the older `OP_QUERY` (2004), with which a driver says hello.
async fn converse(mut connection: TcpStream, answer: Document) -> std::io::Result<()> {
    let body = RawDocumentBuf::try_from(&answer).unwrap().into_bytes();
    loop {
        let mut header = [0; 16];
        connection.read_exact(&mut header).await?;
        let number = |at: usize| i32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let (length, request, operation) = (number(0), number(4), number(12));
        let mut rest = vec![0; usize::try_from(length).unwrap() - 16];
        connection.read_exact(&mut rest).await?;
        let (operation, head) = match operation {
            2004 => (1, [[0; 4], [0; 4], [0; 4], [0; 4], 1_i32.to_le_bytes()].concat()),
            _ => (2013, vec![0; 5]),
        };
        let length = i32::try_from(16 + head.len() + body.len()).unwrap();
        let header = [length, request, request, operation].map(i32::to_le_bytes).concat();
        connection.write_all(&[header, head, body.clone()].concat()).await?;
    }
}

async fn refused_by(answer: Document) -> Error {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(serve(listener, answer));
    let error = refused(&format!("mongodb://127.0.0.1:{port}/")).await;
    server.abort();
    error
}

fn hello(version: i32) -> Document {
    doc! {
        "ok": 1, "isWritablePrimary": true, "ismaster": true, "helloOk": true, "minWireVersion": 0,
        "maxWireVersion": version, "maxBsonObjectSize": 16_777_216, "maxMessageSizeBytes": 48_000_000,
        "maxWriteBatchSize": 100_000, "logicalSessionTimeoutMinutes": 30, "localTime": DateTime::now(),
    }
}

#[tokio::test]
async fn a_server_that_runs_alone_and_one_that_is_too_old_are_told_apart() {
    let error = refused_by(hello(21)).await;
    assert_eq!(error.kind(), ErrorKind::Rejected, "{error}");
    assert!(error.to_string().contains("replica set") && error.to_string().contains("--replSet"), "{error}");

    let mut router = hello(9);
    router.insert("msg", "isdbgrid");
    let error = refused_by(router).await;
    assert_eq!(error.kind(), ErrorKind::Rejected, "{error}");
    assert!(error.to_string().contains("too old"), "{error}");
}

#[tokio::test]
async fn a_storage_that_connects_itself_works_and_shows_no_secret() {
    let database = Database::create().await;
    let options = MongoOptions::new(database.url().await).database(&database.name);
    let storage = MongoStorage::connect_with(options).await.unwrap();
    storage.prepare().await.unwrap();
    storage.insert(Table::Outbox, vec![message("a")], None).await.unwrap();
    let shown = format!("{storage:?} {}", storage.describe());
    assert!(shown.contains(&database.name) && !shown.contains(PASSWORD), "{shown}");
    let host = server().await.hosts[0].to_string();
    assert!(storage.describe().contains(&host), "{shown}");
    database.drop().await;
}

#[tokio::test]
async fn a_call_that_waits_too_long_is_given_up() {
    let database = Database::create().await;
    database.storage().await.prepare().await.unwrap();
    let limit = Duration::from_millis(300);
    let options = MongoOptions::new(database.url().await).database(&database.name).statement_timeout(limit);
    let storage = MongoStorage::connect_with(options).await.unwrap();

    let mut session = database.client().await.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    cap_core::storage::Enlist::enlist(&database.storage().await, &mut session, vec![message("a")]).await.unwrap();
    for records in [vec![message("a")], vec![message("a"), message("b")]] {
        let error = storage.insert(Table::Outbox, records, None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    }
    session.abort_transaction().await.unwrap();
    // What was given up may be carried out all the same, once the other transaction has ended; but not half of it.
    let stored = ids(&storage, Table::Outbox).await;
    let has = |message: &str| stored.iter().any(|stored| stored == message);
    assert!(!has("b") || has("a"), "half of a batch is there");
    database.drop().await;
}
