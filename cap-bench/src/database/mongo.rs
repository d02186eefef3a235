//! MongoDB: a database of its own for each round, on the server that `CAP_TEST_MONGO_URL` names.

use std::time::Duration;

use cap_core::HandlerError;
use cap_core::storage::Storage as _;
use cap_engine::{Cap, Context, Json, Publish, Subscribe, Tx};
use cap_storage_mongo::{MongoOptions, MongoStorage};
use mongodb::bson::{Document, doc};
use mongodb::{ClientSession, Collection};

use crate::backend::{Business, Client, Database, End, Fallible, unique};
use crate::crash::recorder::Recorder;
use crate::crash::roles::mishap;
use crate::crash::trouble::called_in_billing;
use crate::database::{NOTE, now_micros};
use crate::twin::mongo::MongoHand;

/// Names the server; its user must be allowed to create databases.
pub(crate) const URL: &str = "CAP_TEST_MONGO_URL";

/// One database.
#[derive(Clone)]
pub(crate) struct Mongo {
    url: String,
}

fn server() -> Fallible<String> {
    std::env::var(URL).map_err(|_| format!("{URL} is not set: eval \"$(scripts/backends env)\"").into())
}

/// The same server, with a database in the path. It is connected to directly: the names that a replica set gives its
/// members would lead around the proxy of a crash run.
fn with_database(url: &str, name: &str) -> Fallible<String> {
    let (scheme, rest) = url.split_once("://").ok_or("it is no URL")?;
    let (authority, old) = rest.split_once('/').unwrap_or((rest, ""));
    let parameters = old.split_once('?').map_or("", |(_, parameters)| parameters).split('&');
    let is_kept = |parameter: &&str| !parameter.is_empty() && !parameter.starts_with("directConnection=");
    let mut parameters: Vec<&str> = parameters.filter(is_kept).collect();
    parameters.push("directConnection=true");
    if authority.contains('@') && !parameters.iter().any(|parameter| parameter.starts_with("authSource=")) {
        parameters.push("authSource=admin");
    }
    Ok(format!("{scheme}://{authority}/{name}?{}", parameters.join("&")))
}

/// A client of its own on a database.
async fn open(url: &str) -> Fallible<mongodb::Database> {
    let client = mongodb::Client::with_uri_str(url).await?;
    Ok(client.default_database().ok_or("the URL names no database")?)
}

impl Mongo {
    fn name(&self) -> &str {
        let path = self.url.rsplit_once('/').map_or("", |(_, path)| path);
        path.split('?').next().unwrap_or_default()
    }
}

async fn all(collection: Collection<Document>) -> Fallible<Vec<Document>> {
    let mut cursor = collection.find(doc! {}).await?;
    let mut found = Vec::new();
    while cursor.advance().await? {
        found.push(cursor.deserialize_current()?);
    }
    Ok(found)
}

impl Database for Mongo {
    type Storage = MongoStorage;
    type Client = MongoClient;
    type Hand = MongoHand;

    async fn fresh() -> Fallible<Self> {
        let database = Self { url: with_database(&server()?, &format!("cap_bench_{}", unique()))? };
        let business = open(&database.url).await?;
        for collection in ["orders", "invoices", "locks"] {
            business.create_collection(collection).await?;
        }
        business.collection("locks").insert_one(doc! { "_id": 1, "holder": 0_i64 }).await?;
        database.storage().await?.prepare().await?;
        Ok(database)
    }

    fn at(place: &str) -> Fallible<Self> {
        Ok(Self { url: place.to_owned() })
    }

    fn place(&self) -> Option<String> {
        Some(self.url.clone())
    }

    async fn storage(&self) -> Fallible<MongoStorage> {
        Ok(MongoStorage::connect_with(MongoOptions::new(&self.url).database(self.name())).await?)
    }

    async fn client(&self) -> Fallible<MongoClient> {
        let database = open(&self.url).await?;
        let session = database.client().start_session().await?;
        Ok(MongoClient { orders: database.collection("orders"), session })
    }

    async fn hand(&self) -> Fallible<MongoHand> {
        let database = open(&self.url).await?;
        let session = database.client().start_session().await?;
        Ok(MongoHand { database, session })
    }

    async fn another(&self, _: &MongoHand) -> Fallible<MongoHand> {
        self.hand().await
    }

    fn billing(&self, storage: &MongoStorage, topic: &str, recorder: Recorder) -> Subscribe {
        let invoices = storage.client().database(self.name()).collection::<Document>("invoices");
        Subscribe::to(topic, move |Json(number): Json<i64>, context: Context, mut tx: Tx<MongoStorage>| {
            let (recorder, invoices) = (recorder.clone(), invoices.clone());
            async move {
                called_in_billing(&recorder, number, &context)?;
                invoices.insert_one(doc! { "number": number, "made_at": now_micros() }).session(&mut **tx).await?;
                mishap()
            }
        })
    }

    /// A second writer of the row is told of a conflict at once, and tried again.
    fn locking(&self, storage: &MongoStorage, topic: &str, recorder: Recorder, hold: Duration) -> Subscribe {
        let database = storage.client().database(self.name());
        let (locks, invoices) = (database.collection::<Document>("locks"), database.collection::<Document>("invoices"));
        Subscribe::to(topic, move |Json(number): Json<i64>, context: Context, mut tx: Tx<MongoStorage>| {
            let (recorder, locks, invoices) = (recorder.clone(), locks.clone(), invoices.clone());
            async move {
                called_in_billing(&recorder, number, &context)?;
                let holder = doc! { "$set": { "holder": number } };
                locks.update_one(doc! { "_id": 1 }, holder).session(&mut **tx).await?;
                tokio::time::sleep(hold).await;
                invoices.insert_one(doc! { "number": number, "made_at": now_micros() }).session(&mut **tx).await?;
                Ok::<(), HandlerError>(())
            }
        })
    }

    async fn business(&self) -> Fallible<Business> {
        let database = open(&self.url).await?;
        // Nobody works any more when this is asked.
        let orders = all(database.collection("orders")).await?;
        let invoices = all(database.collection("invoices")).await?;
        let invoice = |found: &Document| Ok((found.get_i64("number")?, found.get_i64("made_at")?));
        Ok(Business {
            orders: orders.iter().map(|found| Ok(found.get_i64("_id")?)).collect::<Fallible<_>>()?,
            invoices: invoices.iter().map(invoice).collect::<Fallible<_>>()?,
        })
    }

    async fn discard(self) -> Fallible {
        Ok(open(&self.url).await?.drop().await?)
    }
}

/// An application's session.
pub(crate) struct MongoClient {
    orders: Collection<Document>,
    session: ClientSession,
}

impl Client<MongoStorage> for MongoClient {
    async fn place(&mut self, cap: &Cap<MongoStorage>, number: i64, message: Publish, end: End) -> Fallible {
        let Self { orders, session } = self;
        session.start_transaction().await?;
        let placed = async {
            orders.insert_one(doc! { "_id": number, "note": NOTE }).session(&mut *session).await?;
            cap.publish_many_in(&mut *session, [message]).await?;
            Fallible::Ok(())
        };
        if let Err(error) = placed.await {
            let _ = session.abort_transaction().await;
            return Err(error);
        }
        match end {
            End::Commit => session.commit_transaction().await?,
            End::RollBack => session.abort_transaction().await?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_of_the_same_server_is_named_and_connected_to_directly() {
        assert_eq!(with_database("mongodb://h:1", "b").unwrap(), "mongodb://h:1/b?directConnection=true");
        assert_eq!(
            with_database("mongodb://u:p@h:1/?replicaSet=r&directConnection=false", "b").unwrap(),
            "mongodb://u:p@h:1/b?replicaSet=r&directConnection=true&authSource=admin"
        );
        assert_eq!(Mongo::at("mongodb://u:p@h:1/cap?x=1").unwrap().name(), "cap");
    }
}
