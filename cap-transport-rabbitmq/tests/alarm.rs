//! A broker that takes nothing because of an alarm of its own, and says so.

mod support;

use std::time::{Duration, Instant};

use cap_core::{Error, ErrorKind, Transport};
use support::SERVER;
use support::scene::{PATIENCE, Scene, message, receive, refused, send};

const LIMIT: Duration = Duration::from_secs(2);

async fn watermark(fraction: &str) {
    SERVER.client(&["set_vm_memory_high_watermark", fraction]).await.expect("a limit of memory");
}

async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not come");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_waits_for_an_alarm_to_end_says_so() {
    if !SERVER.is_ours() {
        return eprintln!("skipped: the broker is not ours, so it cannot be given an alarm");
    }
    let scene = Scene::new();
    let transport = scene.open(scene.options().confirm_timeout(LIMIT)).await;
    let topic = scene.topic("order");
    let mut consumer = transport.subscribe(scene.wants(&[&topic])).await.unwrap();
    watermark("0").await;
    // The broker tells those who send; the first messages find out. They are late in the end.
    let outcomes = send(&transport, (0..3).map(|_| message(&topic, &[])).collect()).await;
    let obstacle = until("an obstacle", || transport.obstacle()).await;
    let begun = Instant::now();
    let at_once = send(&transport, vec![message(&topic, &[])]).await.remove(0);
    let took = begun.elapsed();
    watermark("0.6").await;

    let is_told = |error: &Error| error.reason().contains("alarm") && error.reason().contains("connection.blocked");
    assert!(is_told(&obstacle), "{obstacle}");
    for outcome in outcomes.into_iter().filter(Result::is_err) {
        assert!(is_told(&refused(outcome, ErrorKind::Unavailable, &["2s"])));
    }
    assert!(is_told(&refused(at_once, ErrorKind::Unavailable, &[])));
    assert!(took < LIMIT / 2, "{took:?}");

    until("the end of the obstacle", || transport.obstacle().is_none().then_some(())).await;
    send(&transport, vec![message(&topic, &[])]).await.remove(0).unwrap();
    receive(&mut *consumer, 1).await;
    scene.names.clean_up().await;
}
