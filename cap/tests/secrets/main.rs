//! No password is in any log line that the process writes, at any level, whichever backend it is for.
//!
//! The servers are those of `CAP_TEST_POSTGRES_URL` and its like for the others; without them the test fails.
#![allow(clippy::unwrap_used, reason = "tests")]

mod log;

use std::process::Command;

use cap::kafka::{Kafka, KafkaOptions};
use cap::memory::{MemoryStorage, MemoryTransport};
use cap::mongo::MongoStorage;
use cap::mongo::mongodb::bson::doc;
use cap::mongo::mongodb::{Client, options::ClientOptions};
use cap::mysql::MySqlStorage;
use cap::mysql::sqlx::mysql::MySqlConnectOptions;
use cap::postgres::PostgresStorage;
use cap::postgres::sqlx::postgres::PgConnectOptions;
use cap::postgres::sqlx::{self, AssertSqlSafe, ConnectOptions};
use cap::rabbitmq::{QueueType, RabbitMq, RabbitMqOptions};
use cap::storage::Storage;
use cap::{Cap, Json, MessageId, Transport};

use crate::log::All;

const PASSWORD: &str = "planted-password-8c1f";

fn value(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!("this test needs {variable}: `scripts/backends up`, then `eval \"$(scripts/backends env)\"`")
    })
}

/// `host:port` of a URL, which may have users and paths.
fn place(url: &str) -> String {
    let after = url.split_once("://").map_or(url, |(_, after)| after);
    let authority = after.split(['/', '?']).next().unwrap();
    authority.rsplit('@').next().unwrap().to_owned()
}

/// A message on its way through an engine.
async fn works<S: Storage, T: Transport>(storage: S, transport: T, topic: &str, group: &str) {
    let (told, mut handled) = tokio::sync::mpsc::unbounded_channel();
    let handler = move |Json(number): Json<u32>| {
        let told = told.send(number).map_err(|_| std::io::Error::other("the test is over"));
        async move { told }
    };
    let builder = Cap::builder().storage(storage).transport(transport).subscribe(topic, group, handler);
    let cap = builder.start().await.unwrap();
    cap.publish(topic, &7).await.unwrap();
    assert_eq!(handled.recv().await, Some(7));
    cap.stop().await;
}

async fn works_on<S: Storage>(storage: S) {
    works(storage, MemoryTransport::new(), "t", "g").await;
}

async fn postgres(name: &str) {
    let server: PgConnectOptions = value("CAP_TEST_POSTGRES_URL").parse().unwrap();
    let mut admin = server.disable_statement_logging().connect().await.unwrap();
    for sql in [
        format!("CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'"),
        format!("CREATE DATABASE {name}"),
        format!("ALTER DATABASE {name} OWNER TO {name}"),
    ] {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut admin).await.unwrap();
    }
    let place = place(&value("CAP_TEST_POSTGRES_URL"));
    let wrong = format!("postgres://{name}-nobody:{PASSWORD}@{place}/{name}");
    let error = PostgresStorage::connect(&wrong).await.unwrap_err();
    assert!(!error.to_string().contains(PASSWORD), "{error}");
    works_on(PostgresStorage::connect(&format!("postgres://{name}:{PASSWORD}@{place}/{name}")).await.unwrap()).await;
    for sql in [format!("DROP DATABASE {name} WITH (FORCE)"), format!("DROP ROLE {name}")] {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut admin).await.unwrap();
    }
}

async fn mysql(name: &str) {
    let server: MySqlConnectOptions = value("CAP_TEST_MYSQL_URL").parse().unwrap();
    let mut admin = server.disable_statement_logging().connect().await.unwrap();
    let create = format!(
        "CREATE USER {name} IDENTIFIED BY '{PASSWORD}'; CREATE DATABASE {name}; GRANT ALL ON {name}.* TO {name}"
    );
    sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut admin).await.unwrap();
    let place = place(&value("CAP_TEST_MYSQL_URL"));
    let wrong = format!("mysql://nobody:{PASSWORD}@{place}/{name}");
    let error = MySqlStorage::connect(&wrong).await.unwrap_err();
    assert!(!error.to_string().contains(PASSWORD), "{error}");
    works_on(MySqlStorage::connect(&format!("mysql://{name}:{PASSWORD}@{place}/{name}")).await.unwrap()).await;
    let drop = format!("DROP DATABASE {name}; DROP USER {name}");
    sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut admin).await.unwrap();
}

async fn mongo(name: &str) {
    let url = value("CAP_TEST_MONGO_URL");
    let admin = Client::with_options(ClientOptions::parse(&url).await.unwrap()).unwrap().database(name);
    let create = doc! { "createUser": name, "pwd": PASSWORD, "roles": [{ "role": "dbOwner", "db": name }] };
    admin.run_command(create).await.unwrap();
    let options = |user: &str| {
        let url = format!("mongodb://{user}:{PASSWORD}@{}/?authSource={name}", place(&url));
        cap::mongo::MongoOptions::new(url).database(name)
    };
    let error = MongoStorage::connect_with(options("nobody")).await.unwrap_err();
    assert!(!error.to_string().contains(PASSWORD), "{error}");
    works_on(MongoStorage::connect_with(options(name)).await.unwrap()).await;
    admin.run_command(doc! { "dropUser": name }).await.unwrap();
    admin.drop().await.unwrap();
}

fn rabbitmqctl(arguments: &[&str]) {
    let mut script = Command::new(value("CAP_TEST_BACKENDS"));
    let output = script.args(["client", "rabbitmq"]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

fn rabbitmq_options(user: &str) -> RabbitMqOptions {
    let url = format!("amqp://{user}:{PASSWORD}@{}/%2f", place(&value("CAP_TEST_RABBITMQ_URL")));
    RabbitMqOptions::new(url).exchange(user).queue_type(QueueType::Classic)
}

async fn rabbitmq(name: &str) {
    rabbitmqctl(&["add_user", name, PASSWORD]);
    rabbitmqctl(&["set_permissions", name, ".*", ".*", ".*"]);
    let wrong = RabbitMq::with_options(rabbitmq_options("nobody")).unwrap();
    let error = wrong.connect().await.unwrap_err();
    assert!(!error.to_string().contains(PASSWORD), "{error}");
    works(MemoryStorage::new(), RabbitMq::with_options(rabbitmq_options(name)).unwrap(), "t", name).await;
}

async fn kafka() {
    let sasl = [
        ("security.protocol", "SASL_PLAINTEXT"),
        ("sasl.mechanism", "PLAIN"),
        ("sasl.username", "nobody"),
        ("sasl.password", PASSWORD),
    ];
    let options = KafkaOptions::new(value("CAP_TEST_KAFKA_SASL_URL"));
    let options = sasl.into_iter().fold(options, |options, (name, value)| options.set(name, value));
    let error = Kafka::with_options(options).unwrap().connect().await.unwrap_err();
    assert!(!error.to_string().contains(PASSWORD), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_password_is_logged_at_any_level() {
    let log = All::begin();
    let name = format!("s{}", MessageId::generate());
    postgres(&name).await;
    mysql(&name).await;
    mongo(&name).await;
    rabbitmq(&name).await;
    kafka().await;
    assert_eq!(log.leaks(PASSWORD), [""; 0]);
    let text = log.text();
    for writer in ["TRACE", " sqlx", " cap_engine"] {
        assert!(text.contains(writer), "there is no line of{writer}");
    }

    // The log is one that would show it: a driver that may write its own does.
    let loud = RabbitMq::with_options(rabbitmq_options(&name).driver_logs(true)).unwrap();
    loud.connect().await.unwrap();
    assert!(!log.leaks(PASSWORD).is_empty(), "the driver logs nothing");
    loud.close().await.unwrap();
    rabbitmqctl(&["delete_user", &name]);
    rabbitmqctl(&[
        "eval",
        &format!("rabbit_exchange:delete(rabbit_misc:r(<<\"/\">>, exchange, <<\"{name}\">>), false, <<>>)."),
    ]);
    rabbitmqctl(&["delete_queue", &format!("{name}.v1")]);
}
