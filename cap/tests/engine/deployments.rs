//! Nodes of two versions of a service, one of which knows a topic that the other does not.

use std::time::Duration;

use cap::{Options, Publish, Status, Table};

use crate::support::{Seen, Shop, eventually, idle, options, record};

#[tokio::test]
async fn in_a_rolling_deployment_messages_wait_for_a_node_that_knows_their_topic() {
    let shop = Shop::new();
    let (old_seen, new_seen, new_topic) = (Seen::<u32>::new(), Seen::<u32>::new(), Seen::<u32>::new());
    // The new version was there for a moment, so that the broker has the binding.
    let new = || shop.builder().subscribe("t", "g", record(&new_seen)).subscribe("t.new", "g", record(&new_topic));
    new().start().await.unwrap().stop().await;
    let old = shop.builder().subscribe("t", "g", record(&old_seen)).start().await.unwrap();
    old.publish_many((0..40).map(|n| Publish::json("t.new", &n))).await.unwrap();
    old.publish("t", &7).await.unwrap();
    assert_eq!(old_seen.next().await, 7);
    let is_told = eventually(async || {
        let waiting = old.health().waiting;
        waiting.into_iter().find(|waiting| waiting.group.is_some())
    });
    assert_eq!(is_told.await.topic.as_str(), "t.new");
    assert!(old.health().ready, "{:?}", old.health());
    eventually(async || (shop.records(Table::Inbox).await.len() == 41).then_some(())).await;

    let new = new().start().await.unwrap();
    let mut handled = Vec::new();
    while handled.len() < 40 {
        handled.push(new_topic.next().await);
    }
    // Those that arrive while both run, too.
    old.publish_many((40..80).map(|n| Publish::json("t.new", &n))).await.unwrap();
    while handled.len() < 80 {
        handled.push(new_topic.next().await);
    }
    handled.sort();
    assert_eq!(handled, (0..80).collect::<Vec<_>>());
    idle(&new).await;
    let records = shop.records(Table::Inbox).await;
    assert!(records.iter().all(|record| record.status == Status::Succeeded && record.attempts == 1));
    old.stop().await;
    new.stop().await;
}

#[tokio::test]
async fn what_no_node_handles_until_its_time_limit_is_dead_and_says_so() {
    let shop = Shop::new();
    let dead = Seen::new();
    let notified = dead.clone();
    let (seen, gone) = (Seen::<u32>::new(), Seen::<u32>::new());
    let before = shop.builder().subscribe("t", "g", record(&seen)).subscribe("t.gone", "g", record(&gone));
    before.start().await.unwrap().stop().await;
    let options = Options { unhandled_limit: Duration::from_millis(300), ..options() };
    let builder = shop.builder().options(options).subscribe("t", "g", record(&seen));
    let cap = builder.on_dead(move |letter| notified.push(letter.reason)).start().await.unwrap();
    cap.publish("t.gone", &1).await.unwrap();
    let reason = dead.next().await;
    for part in ["no subscription of group `g.v1`", "`t.gone`", "300ms"] {
        assert!(reason.contains(part), "{reason}");
    }
    cap.stop().await;
}
