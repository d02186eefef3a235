//! A database of its own for each test, on the server that `CAP_TEST_MONGO_URL` names.
#![allow(dead_code, reason = "each test crate uses some of it")]

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cap_storage_mongo::mongodb::bson::{Document, doc};
use cap_storage_mongo::mongodb::options::{ClientOptions, Credential};
use cap_storage_mongo::mongodb::{Client, Collection};
use cap_storage_mongo::{MongoOptions, MongoStorage};
use cap_testkit::server::Server;
use tokio::sync::OnceCell;

pub(crate) const SERVER: Server = Server {
    variable: "CAP_TEST_MONGO_URL",
    name: "mongo",
    hint: "set it to a replica set of yours, for a user that may create databases and users: \
           mongodb://user:password@localhost:27017/?replicaSet=rs0",
};

/// For tests that are not about time: a stand-in of the server may be slow, above all on a busy machine.
pub(crate) fn patient(options: MongoOptions) -> MongoOptions {
    options.connect_timeout(Duration::from_secs(60)).statement_timeout(Duration::from_secs(300))
}

pub(crate) async fn server() -> ClientOptions {
    let mut options = ClientOptions::parse(SERVER.url()).await.unwrap();
    options.server_selection_timeout = Some(Duration::from_secs(60));
    options
}

/// A client with all rights.
pub(crate) async fn admin() -> Client {
    Client::with_options(server().await).unwrap()
}

/// The password of the user that owns a test's database. It must show nowhere.
pub(crate) const PASSWORD: &str = "swordfish-and-mustard";

/// An empty database, and a user of the same name that owns it.
pub(crate) struct Database {
    pub(crate) name: String,
    admin: Client,
}

/// A database is not dropped before it is so old, in microseconds, where a transaction of it may be open still.
const GROWN_OLD: u128 = 300_000_000;

impl Database {
    pub(crate) async fn create() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let started = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_micros();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("cap_test_{}_{started}_{number}", std::process::id());
        let admin = admin().await;
        let create = doc! { "createUser": &name, "pwd": PASSWORD, "roles": [{ "role": "dbOwner", "db": &name }] };
        admin.database(&name).run_command(create).await.unwrap_or_else(|error| {
            panic!("the server of CAP_TEST_MONGO_URL cannot be reached, or grants not enough ({error}): is it up?")
        });
        Self { name, admin }
    }

    /// How its owner connects to it.
    pub(crate) async fn options(&self) -> ClientOptions {
        let mut options = server().await;
        let credential = Credential::builder().username(self.name.clone()).password(PASSWORD.to_owned());
        options.credential = Some(credential.source(self.name.clone()).build());
        options
    }

    /// The URL with which its owner connects to it.
    pub(crate) async fn url(&self) -> String {
        let host = &server().await.hosts[0];
        format!("mongodb://{}:{PASSWORD}@{host}/?authSource={}", self.name, self.name)
    }

    /// A handle with a client of its own.
    pub(crate) async fn storage(&self) -> MongoStorage {
        self.storage_with(patient(MongoOptions::default())).await
    }

    pub(crate) async fn storage_with(&self, options: MongoOptions) -> MongoStorage {
        MongoStorage::with_client(self.client().await, options.database(&self.name)).unwrap()
    }

    /// A client of the user's own.
    pub(crate) async fn client(&self) -> Client {
        Client::with_options(self.options().await).unwrap()
    }

    /// A collection, with all rights.
    pub(crate) fn collection(&self, name: &str) -> Collection<Document> {
        self.admin.database(&self.name).collection(name)
    }

    /// Runs a command of a test's own, with all rights.
    pub(crate) async fn run(&self, command: Document) -> Document {
        let shown = command.clone();
        let done = self.admin.database(&self.name).run_command(command).await;
        done.unwrap_or_else(|error| panic!("{shown}: {error}"))
    }

    /// Removes it. No transaction may be open.
    pub(crate) async fn drop(&self) {
        let database = self.admin.database(&self.name);
        database.run_command(doc! { "dropUser": &self.name }).await.unwrap();
        database.drop().await.unwrap();
    }

    /// Locks its owner out, and leaves it to [`Database::drop_old`]. To drop a database waits for its transactions; the
    /// server ends those of a dead client only after a minute, and SecantusDB serves nobody else meanwhile.
    pub(crate) async fn abandon(&self) {
        self.admin.database(&self.name).run_command(doc! { "dropUser": &self.name }).await.unwrap();
    }

    /// Drops what earlier runs have abandoned.
    pub(crate) async fn drop_old() {
        static SWEPT: OnceCell<()> = OnceCell::const_new();
        let sweep = || async {
            let admin = admin().await;
            let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_micros();
            for name in admin.list_database_names().await.unwrap() {
                let begun = name.strip_prefix("cap_test_").and_then(|rest| rest.split('_').nth(1)?.parse().ok());
                if begun.is_some_and(|begun: u128| begun + GROWN_OLD < now) {
                    admin.database(&name).drop().await.unwrap();
                }
            }
        };
        SWEPT.get_or_init(sweep).await;
    }
}
