//! `docs/backends.md` is what the backends declare. With `CAP_UPDATE_DOCS=1` it is written anew.

use std::path::Path;

use cap::storage::{Storage, StorageCapabilities};
use cap::transport::{Transport, TransportCapabilities};

const HEAD: &str = "# What each backend guarantees, and lacks

Generated from the capabilities that the backends declare: `CAP_UPDATE_DOCS=1 cargo test -p cap --all-features --test
backends`. What a backend does not declare it answers with `Unsupported`, and the conformance kit checks that, too. What
all of them guarantee is in the numbered promises of [`Storage`](../cap-core/src/storage/mod.rs) and
[`Transport`](../cap-core/src/transport.rs); `scripts/conformance` prints how each one keeps them.
";

const WATCHES: &str = "
What a process publishes itself is never polled for. Of what others publish, SQLite and MongoDB tell whoever committed it.
PostgreSQL tells only of what `publish` and handlers insert by themselves: what another process publishes in a transaction of its
user's (`publish_in`) that process sends; if it dies before it does, the others find it by polling (`Options::poll`, 1 s), as they
find everything on MySQL and MariaDB. A notice in the user's transaction would make all commits of the server wait for each other.
";

/// A column of a table: the backend's name, and what it answers in each row.
type Column = (&'static str, Vec<String>);

fn table(rows: &[&str], columns: &[Column]) -> String {
    let line = |first: &str, cells: Vec<&str>| format!("| {first} | {} |\n", cells.join(" | "));
    let mut text = line("", columns.iter().map(|(name, _)| *name).collect());
    text.push_str(&line("---", vec!["---"; columns.len()]));
    for (place, row) in rows.iter().enumerate() {
        text.push_str(&line(row, columns.iter().map(|(_, answers)| &*answers[place]).collect()));
    }
    text
}

fn yes(declared: bool) -> String {
    if declared { "yes".into() } else { "–".into() }
}

fn bytes(limit: Option<usize>) -> String {
    limit.map_or("none".into(), |limit| format!("{limit} bytes"))
}

const STORAGE_ROWS: &[&str] = &[
    "records outlive the process (`persistent`)",
    "several processes may use it at once (`shared`)",
    "publishing joins the caller's own transaction (`enlists`)",
    "handlers work inside the transaction that settles their record (`transactional_handlers`)",
    "a savepoint takes back what was published after it (`savepoints`)",
    "tells of what other processes publish, instead of being polled (`watches`; see below)",
    "counts time by the database's clock, and not the host's (not `host_clock`)",
    "limit of a record's content (`max_content`), unless the server tells of a smaller one",
];

fn storage(name: &'static str, storage: &impl Storage) -> Column {
    // Named one by one: a new one is an error here.
    let StorageCapabilities {
        persistent,
        shared,
        enlists,
        transactional_handlers,
        savepoints,
        watches,
        host_clock,
        max_content,
        // Learnt from the server, as a smaller `max_content` is.
        ascii_only: _,
    } = storage.capabilities();
    let mut answers =
        Vec::from([persistent, shared, enlists, transactional_handlers, savepoints, watches, !host_clock].map(yes));
    answers.push(bytes(max_content));
    (name, answers)
}

const TRANSPORT_ROWS: &[&str] = &[
    "what is confirmed outlives a restart of the broker (`durable`)",
    "a group gets what was sent while it had no consumer (`keeps_backlog`)",
    "messages of one sender and topic keep their order for a single consumer (`ordered`)",
    "patterns with `*` and `#` can be subscribed (`wildcards`)",
    "tells how much waits for a group (`reports_backlog`)",
    "tells which topics have no queue (`checks_routes`)",
    "limit of a body (`max_body`)",
];

fn transport(name: &'static str, transport: &impl Transport) -> Column {
    let TransportCapabilities { durable, keeps_backlog, ordered, wildcards, reports_backlog, checks_routes, max_body } =
        transport.capabilities();
    let mut answers = Vec::from([durable, keeps_backlog, ordered, wildcards, reports_backlog, checks_routes].map(yes));
    answers.push(bytes(max_body));
    (name, answers)
}

/// Handles that have not connected: what they declare before they ask the server.
async fn document() -> cap::Result<String> {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let rabbit_url = "amqp://127.0.0.1";
    let management = cap::rabbitmq::RabbitMqOptions::new(rabbit_url).management_url("http://127.0.0.1:15672");
    let postgres = cap::postgres::PostgresOptions::new("postgres://127.0.0.1/cap");
    let mysql = cap::mysql::MySqlOptions::new("mysql://127.0.0.1/cap");
    let mongo = cap::mongo::MongoOptions::new("mongodb://127.0.0.1/cap");
    let storages = [
        storage("memory", &cap::memory::MemoryStorage::new()),
        storage("SQLite", &cap::sqlite::SqliteStorage::open(folder.path().join("cap.db"))?),
        storage("PostgreSQL", &cap::postgres::PostgresStorage::connect_lazy(postgres)?),
        storage("MySQL, MariaDB", &cap::mysql::MySqlStorage::connect_lazy(mysql)?),
        storage("MongoDB", &cap::mongo::MongoStorage::connect_lazy(mongo).await?),
    ];
    let transports = [
        transport("memory", &cap::memory::MemoryTransport::new()),
        transport("RabbitMQ", &cap::rabbitmq::RabbitMq::new(rabbit_url)?),
        transport("RabbitMQ with `management_url`", &cap::rabbitmq::RabbitMq::with_options(management)?),
        transport("Kafka", &cap::kafka::Kafka::new("127.0.0.1:9092")?),
    ];
    let (storages, transports) = (table(STORAGE_ROWS, &storages), table(TRANSPORT_ROWS, &transports));
    Ok(format!("{HEAD}\n## Storages\n\n{storages}{WATCHES}\n## Transports\n\n{transports}"))
}

#[tokio::test]
async fn the_document_says_what_the_backends_declare() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/backends.md");
    let document = document().await.unwrap();
    if std::env::var_os("CAP_UPDATE_DOCS").is_some() {
        std::fs::write(&path, &document).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, document, "{} is not what the backends declare; see its head", path.display());
}
