//! A database of its own for each test, on the server that `CAP_TEST_MONGO_URL` names.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cap_storage_mongo::mongodb::bson::{Document, doc};
use cap_storage_mongo::mongodb::options::{ClientOptions, Credential};
use cap_storage_mongo::mongodb::{Client, Collection};
use cap_storage_mongo::{MongoOptions, MongoStorage};

/// The URL of the server, for a user that may create databases and users.
///
/// # Panics
/// When there is none: these tests are never skipped.
pub(crate) fn server_url() -> String {
    std::env::var("CAP_TEST_MONGO_URL").unwrap_or_else(|_| {
        panic!(
            "CAP_TEST_MONGO_URL is not set. Start a server and set it: \
             `scripts/backends up mongo`, then `eval \"$(scripts/backends env)\"`. \
             Or set it to a replica set of yours, for a user that may create databases and users: \
             mongodb://user:password@localhost:27017/?replicaSet=rs0"
        )
    })
}

pub(crate) async fn server() -> ClientOptions {
    let mut options = ClientOptions::parse(server_url()).await.unwrap();
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
    #[allow(dead_code, reason = "each test crate uses some of it")]
    pub(crate) async fn url(&self) -> String {
        let host = &server().await.hosts[0];
        format!("mongodb://{}:{PASSWORD}@{host}/?authSource={}", self.name, self.name)
    }

    /// A handle with a client of its own.
    pub(crate) async fn storage(&self) -> MongoStorage {
        self.storage_with(MongoOptions::default().statement_timeout(Duration::from_secs(300))).await
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
    #[allow(dead_code, reason = "each test crate uses some of it")]
    pub(crate) async fn run(&self, command: Document) -> Document {
        let shown = command.clone();
        let done = self.admin.database(&self.name).run_command(command).await;
        done.unwrap_or_else(|error| panic!("{shown}: {error}"))
    }

    /// Removes it, whoever still uses it.
    pub(crate) async fn drop(&self) {
        let database = self.admin.database(&self.name);
        database.run_command(doc! { "dropUser": &self.name }).await.unwrap();
        database.drop().await.unwrap();
    }
}
