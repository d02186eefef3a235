//! What of .NET CAP's ways an engine takes on, and what `Options::version` separates.

use std::collections::BTreeSet;
use std::time::Duration;

use cap::storage::{Query, Record};
use cap::{Options, Publish, RetryPolicy, Status, Storage as _, StoredForm, Table, Version, content};

use crate::doubles::{Troubled, away};
use crate::support::{Seen, Shop, eventually, idle, options, record};

/// The preset, with the short times of tests.
fn like_cap() -> Options {
    let Options { lease, heartbeat, poll, drain, retry, .. } = options();
    Options { lease, heartbeat, poll, drain, retry, ..Options::like_cap() }
}

#[tokio::test]
async fn an_engine_with_the_preset_of_cap_handles_messages_and_stores_them_in_its_form() {
    let shop = Shop::new();
    let seen = Seen::<String>::new();
    let cap = shop.builder().options(like_cap()).subscribe("t", "g", record(&seen)).start().await.unwrap();
    cap.publish_many(["a", "日本"].map(|text| Publish::json("t", text).header("x-tenant", "Zürich"))).await.unwrap();
    let handled = BTreeSet::from([seen.next().await, seen.next().await]);
    assert_eq!(handled, BTreeSet::from(["a".to_owned(), "日本".to_owned()]));
    idle(&cap).await;
    for table in [Table::Outbox, Table::Inbox] {
        for record in shop.records(table).await {
            let wrapper: serde_json::Value = serde_json::from_str(&record.content).unwrap();
            let members: Vec<_> = wrapper.as_object().unwrap().keys().map(String::as_str).collect();
            assert_eq!(members, ["Headers", "Value"], "{}", record.content);
            let message = content::unwrap(&record.content, &record.topic, &record.message_id).unwrap();
            assert_eq!((message.id, message.headers.get("x-tenant")), (record.message_id, Some("Zürich")));
        }
    }
    cap.stop().await;
}

#[tokio::test]
async fn with_the_preset_a_message_that_no_handler_wants_is_dead_when_it_comes() {
    let shop = Shop::new();
    let (seen, dead) = (Seen::<u32>::new(), Seen::new());
    let before = shop.builder().subscribe("t", "g", record(&seen)).subscribe("t.gone", "g", record(&seen));
    before.start().await.unwrap().stop().await;
    let told = dead.clone();
    let builder = shop.builder().options(like_cap()).subscribe("t", "g", record(&seen));
    let cap = builder.on_dead(move |letter| told.push(letter.reason)).start().await.unwrap();
    cap.publish("t.gone", &1).await.unwrap();
    let reason = dead.next().await;
    assert!(reason.contains("no subscription of group `g.v1` matches topic `t.gone`"), "{reason}");
    cap.publish("t", &2).await.unwrap();
    assert_eq!(seen.next().await, 2);
    cap.stop().await;
}

/// A transport that cannot reach its broker for messages of topic `t`.
fn refusing(shop: &Shop) -> Troubled {
    let transport = Troubled::over(shop.transport.clone(), []);
    transport.refuse(|message| (message.topic.as_str() == "t").then(away));
    transport
}

#[tokio::test]
async fn what_waits_in_either_form_is_handled_by_engines_of_either() {
    for (writes, reads) in [(StoredForm::Own, StoredForm::NetCap), (StoredForm::NetCap, StoredForm::Own)] {
        let shop = Shop::new();
        let of = |stored_form| Options {
            stored_form,
            retry: RetryPolicy::fixed(u32::MAX, Duration::from_millis(20)),
            ..options()
        };
        let failing = || std::future::ready(Err::<(), _>(cap::HandlerError::retry("on purpose")));
        let builder = shop.builder().transport(refusing(&shop)).options(of(writes));
        let writer = builder.subscribe("failed", "g", failing).start().await.unwrap();
        writer.publish("failed", "failed").await.unwrap();
        let has_failed = |record: &Record| record.status == Status::Failed;
        eventually(async || shop.records(Table::Inbox).await.iter().any(has_failed).then_some(())).await;
        writer.publish("t", "pending").await.unwrap();
        writer.publish_one(Publish::json("t", "delayed").delay(Duration::from_millis(500))).await.unwrap();
        writer.stop().await;

        let seen = Seen::<String>::new();
        let builder = shop.builder().options(of(reads)).subscribe("t", "g", record(&seen));
        let reader = builder.subscribe("failed", "g", record(&seen)).start().await.unwrap();
        let handled = BTreeSet::from([seen.next().await, seen.next().await, seen.next().await]);
        assert_eq!(handled, BTreeSet::from(["delayed", "failed", "pending"].map(str::to_owned)), "{writes:?}");
        idle(&reader).await;
        assert_eq!(seen.rest().await, [] as [String; 0]);
        reader.stop().await;
    }
}

#[tokio::test]
async fn versions_share_topics_and_neither_groups_nor_records() {
    let shop = Shop::new();
    let (first, second) = (Seen::<u32>::new(), Seen::<u32>::new());
    let v2 = Options { version: Version::try_from("v2").unwrap(), ..options() };
    let transport = Troubled::over(shop.transport.clone(), []);
    let one = shop.builder().transport(transport.clone()).subscribe("t", "g", record(&first)).start().await.unwrap();
    let two = shop.builder().options(v2).subscribe("t", "g", record(&second)).start().await.unwrap();
    // One topic for both, a group for each.
    one.publish("t", &1).await.unwrap();
    assert_eq!((first.next().await, second.next().await), (1, 1));
    idle(&one).await;
    idle(&two).await;
    let all = shop.storage.list(Table::Inbox, Query { limit: 10, ..Query::default() }).await.unwrap();
    let groups: BTreeSet<_> = all.iter().map(|record| record.group.as_ref().unwrap().as_str()).collect();
    assert_eq!(groups, BTreeSet::from(["g.v1", "g.v2"]));

    // What v1 cannot send, v2 leaves alone: it has sent its own, published later.
    transport.refuse(|_| Some(away()));
    one.publish("t", &2).await.unwrap();
    two.publish("t", &3).await.unwrap();
    assert_eq!((first.next().await, second.next().await), (3, 3));
    idle(&two).await;
    let waiting = shop.records(Table::Outbox).await.into_iter().filter(|record| record.status != Status::Succeeded);
    assert_eq!(waiting.count(), 1);
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn the_inbox_recognises_what_comes_again_for_longer_than_succeeded_records_are_kept() {
    let shop = Shop::new();
    let seen = Seen::<u32>::new();
    let options = Options {
        keep_succeeded: Duration::ZERO,
        collect_every: Duration::from_millis(20),
        dedupe_window: Duration::from_secs(3600),
        ..options()
    };
    let builder = shop.builder().options(options).subscribe("t", "g", record(&seen));
    let cap = builder.start().await.unwrap();
    cap.publish_one(Publish::json("t", &1).id("again")).await.unwrap();
    assert_eq!(seen.next().await, 1);
    // The outbox forgets it, and others that came later.
    let forgotten = async || shop.records(Table::Outbox).await.is_empty().then_some(());
    for number in [2, 3] {
        cap.publish("t", &number).await.unwrap();
        assert_eq!(seen.next().await, number);
        eventually(forgotten).await;
    }
    cap.publish_one(Publish::json("t", &1).id("again")).await.unwrap();
    eventually(forgotten).await;
    cap.publish("t", &4).await.unwrap();
    assert_eq!(seen.next().await, 4);
    assert_eq!(shop.records(Table::Inbox).await.len(), 4);
    cap.stop().await;
}

#[test]
fn the_page_for_those_who_come_from_cap_names_every_option_of_the_preset() {
    let page = include_str!("../../../docs/from-cap.md");
    let json = |options| serde_json::to_value(options).unwrap();
    let (ours, caps) = (json(Options::default()), json(Options::like_cap()));
    let mut differ = 0;
    for (name, value) in caps.as_object().unwrap() {
        if ours[name] == *value {
            continue;
        }
        differ += 1;
        let row = page.lines().find(|line| line.contains(&format!("**preset** `{name}")));
        let row = row.unwrap_or_else(|| panic!("the page does not name `{name}`"));
        if let Some(value) = value.as_str() {
            assert!(row.contains(&format!("`{name} = \"{value}\"`")), "{value} in {row}");
        }
    }
    assert!(differ >= 5, "the preset changes {differ} options");
    assert_eq!(page.matches("**preset** ").count(), differ, "a preset that the page names and does not exist");
}
