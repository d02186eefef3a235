//! Times at both ends: nothing overflows, nobody is told what is not true.

use std::time::{Duration, SystemTime};

use cap::{Options, Publish, Status, Subscribe, Table};

use crate::support::{Seen, Shop, idle, options, record};

#[tokio::test]
async fn a_message_may_be_published_for_the_end_of_time_and_the_others_go_on() {
    let shop = Shop::new();
    let seen = Seen::<u32>::new();
    let cap = shop.builder().subscribe("t", "g", record(&seen)).start().await.unwrap();
    let far = [
        Publish::json("t", &1).delay(Duration::MAX),
        Publish::json("t", &1).delay(Duration::from_secs(u64::MAX / 2)),
        Publish::json("t", &1).at(SystemTime::now() + Duration::from_secs(1 << 40)),
    ];
    for publish in far {
        cap.publish_one(publish).await.unwrap();
    }
    cap.publish_one(Publish::json("t", &2).at(SystemTime::UNIX_EPOCH)).await.unwrap();
    cap.publish("t", &3).await.unwrap();
    let mut handled = [seen.next().await, seen.next().await];
    handled.sort();
    assert_eq!(handled, [2, 3]);
    idle(&cap).await;
    assert!(cap.health().ready, "{:?}", cap.health());
    let delayed = shop.records(Table::Outbox).await.into_iter().filter(|record| record.status == Status::Delayed);
    assert_eq!(delayed.count(), 3);
    cap.stop().await;
}

#[tokio::test]
async fn options_may_have_the_longest_times() {
    let shop = Shop::new();
    let seen = Seen::<u32>::new();
    let longest = Options {
        lease: Duration::MAX,
        poll: Duration::MAX,
        collect_every: Duration::MAX,
        keep_succeeded: Duration::MAX,
        keep_dead: Duration::MAX,
        unhandled_limit: Duration::MAX,
        drain: Duration::MAX,
        ..options()
    };
    let subscription = Subscribe::to("t", record(&seen)).group("g").timeout(Duration::MAX);
    let cap = shop.builder().options(longest).subscription(subscription).start().await.unwrap();
    cap.publish("t", &1).await.unwrap();
    assert_eq!(seen.next().await, 1);
    idle(&cap).await;
    assert!(cap.health().ready, "{:?}", cap.health());
    cap.stop().await;
}
