//! What a claim takes and what it leaves alone.

use std::time::Duration;

use cap_core::storage::{Claim, ClaimRequest, Lane, NewRecord, Record, Settlement, Storage, Table};
use cap_core::{Due, NodeId, Topic, Version, lifecycle};
use cap_storage_mongo::MongoStorage;
use cap_storage_mongo::mongodb::bson::doc;
use cap_testkit::storage::scene::{LEASE, delivery, group, listed, message, node, request, succeeded, waiting};

use crate::support::Database;

fn names(records: &[Record]) -> Vec<&str> {
    records.iter().map(|record| record.message_id.as_str()).collect()
}

async fn prepared(database: &Database) -> MongoStorage {
    let storage = database.storage().await;
    storage.prepare().await.unwrap();
    storage
}

#[tokio::test]
async fn suspects_have_a_lane_of_their_own_and_what_succeeds_or_is_requeued_leaves_it() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    let dead = NodeId::generate();
    storage.join(dead, LEASE).await.unwrap();
    storage.insert(Table::Inbox, vec![delivery("crashed")], Some(Claim::by(dead))).await.unwrap();
    assert_eq!(cap_testkit::take_over_from(&storage, &[dead]).await.unwrap().inbox, 1);
    storage.insert(Table::Inbox, vec![waiting("healthy")], None).await.unwrap();
    let node = node(&storage).await;
    let (healthy, suspects) = (Lane::Inbox(group()), Lane::Suspects(group()));
    let asked = vec![healthy.clone(), suspects.clone(), Lane::Outbox];
    let due = storage.next_due(Version::default(), asked).await.unwrap();
    assert_eq!(due, [Some(Duration::ZERO), Some(Duration::ZERO), None]);

    let claimed = storage.claim(request(node, healthy.clone(), 10)).await.unwrap();
    assert_eq!((names(&claimed.records), claimed.records[0].crashes), (vec!["healthy"], 0));
    assert_eq!(claimed.next_due, None, "the suspect is none of this lane's");
    let again = request(node, suspects.clone(), 10);
    let claimed = storage.claim(again.clone()).await.unwrap();
    assert_eq!((names(&claimed.records), claimed.records[0].crashes), (vec!["crashed"], 1));
    assert_eq!(storage.release(Table::Inbox, again.claim).await.unwrap(), 1);

    let again = request(node, suspects, 10);
    let record = storage.claim(again.clone()).await.unwrap().records[0].id;
    let settlement = Settlement { record, token: again.claim.token, state: succeeded() };
    storage.settle(Table::Inbox, vec![settlement]).await.unwrap();
    assert_eq!(listed(&storage, Table::Inbox).await[0].crashes, 0);
    storage.requeue(Table::Inbox, vec![record], lifecycle::scheduled(Due::Now)).await.unwrap();
    let claimed = storage.claim(request(node, healthy, 10)).await.unwrap();
    assert_eq!(names(&claimed.records), ["crashed"]);
    database.drop().await;
}

#[tokio::test]
async fn what_a_node_of_the_version_before_made_due_is_in_the_lane_of_the_healthy_after_a_takeover() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    storage.insert(Table::Inbox, vec![waiting("a")], None).await.unwrap();
    database.collection("cap.received").update_many(doc! {}, doc! { "$unset": { "Crashes": "" } }).await.unwrap();
    let node = node(&storage).await;
    storage.take_over(Vec::new()).await.unwrap();
    let claimed = storage.claim(request(node, Lane::Inbox(group()), 10)).await.unwrap();
    assert_eq!((names(&claimed.records), claimed.records[0].crashes), (vec!["a"], 0));
    database.drop().await;
}

#[tokio::test]
async fn documents_of_the_version_before_are_in_their_lane_after_the_upgrade() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    storage.insert(Table::Inbox, vec![waiting("a")], None).await.unwrap();
    database.collection("cap.received").update_many(doc! {}, doc! { "$unset": { "Crashes": "" } }).await.unwrap();
    database.collection("cap.schema").delete_one(doc! { "_id": "version 2" }).await.unwrap();
    for index in ["cap_lane", "cap_suspects"] {
        database.collection("cap.received").drop_index(index).await.unwrap();
    }
    // Both upgrade at once.
    let other = database.storage().await;
    let (one, two) = tokio::join!(storage.prepare(), other.prepare());
    one.and(two).unwrap();
    let node = node(&storage).await;
    let claimed = storage.claim(request(node, Lane::Inbox(group()), 10)).await.unwrap();
    assert_eq!(names(&claimed.records), ["a"]);
    database.drop().await;
}

#[tokio::test]
async fn a_claim_leaves_topics_alone_and_its_next_due_does_not_know_them() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    let of = |topic: &str, id: &str| NewRecord { topic: Topic::try_from(topic).unwrap(), ..message(id) };
    let later = NewRecord { state: lifecycle::scheduled(Due::In(LEASE)), ..of("c", "4") };
    let records = vec![of("a", "1"), of("b", "2"), of("c", "3"), later];
    storage.insert(Table::Outbox, records, None).await.unwrap();
    let node = node(&storage).await;
    let except = |topics: &[&str]| ClaimRequest {
        except: topics.iter().map(|topic| Topic::try_from(*topic).unwrap()).collect(),
        ..request(node, Lane::Outbox, 10)
    };
    let claimed = storage.claim(except(&["a", "$b"])).await.unwrap();
    assert_eq!(names(&claimed.records), ["2", "3"]);
    assert!(claimed.next_due.unwrap() > Duration::from_secs(1), "{:?}", claimed.next_due);
    let claimed = storage.claim(except(&["a", "c"])).await.unwrap();
    assert_eq!((names(&claimed.records), claimed.next_due), (vec![], None));
    database.drop().await;
}

#[tokio::test]
async fn a_claim_takes_no_more_bytes_than_it_may_but_for_a_first_that_is_larger() {
    let database = Database::create().await;
    let storage = prepared(&database).await;
    let sized = |id: &str, bytes: usize| NewRecord { content: "ü".repeat(bytes / 2).into(), ..message(id) };
    let records = vec![sized("1", 100), sized("2", 30), sized("3", 30), sized("4", 30)];
    storage.insert(Table::Outbox, records, None).await.unwrap();
    let node = node(&storage).await;
    let bounded = |bytes| ClaimRequest { bytes, ..request(node, Lane::Outbox, 10) };
    let claimed = storage.claim(bounded(60)).await.unwrap();
    assert_eq!((names(&claimed.records), claimed.next_due), (vec!["1"], Some(Duration::ZERO)));
    let claimed = storage.claim(bounded(60)).await.unwrap();
    assert_eq!((names(&claimed.records), claimed.next_due), (vec!["2", "3"], Some(Duration::ZERO)));
    let claimed = storage.claim(bounded(0)).await.unwrap();
    assert_eq!((names(&claimed.records), claimed.next_due), (vec!["4"], None));
    database.drop().await;
}
