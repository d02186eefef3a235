//! Connecting, closing, and what a handle may never show.

use std::sync::Arc;

use cap_core::{BoxFuture, ErrorKind, Transport};
use tokio::sync::oneshot;

use super::fixture::TransportFixture;
use super::tools::{Scene, ensure_each_once, ensure_redelivered, ensure_refused, message, messages, outgoing};
use crate::check::{CheckResult, Failure};
use crate::{ensure, ensure_eq};

pub(super) async fn connecting_again_is_harmless(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.open().await?;
    let topic = scene.topic("orders")?;
    let mut consumer = scene.consumer(&transport, "billing", &topic).await?;
    let sent = messages(&topic, 2);
    let mut outcomes = scene.send(&transport, &sent[..1]).await?;
    let at_once = async { tokio::join!(transport.connect(), transport.connect()) };
    let (one, other) = scene.within("connecting twice at once", at_once).await?;
    one.and(other)?;
    scene.within("connecting again", transport.connect()).await??;
    outcomes.append(scene.send(&transport, &sent[1..]).await?);
    let received = scene.take(&mut *consumer, 2).await?;
    ensure_each_once("the consumer", &received, &sent)?;
    scene.confirmed(outcomes).await
}

pub(super) async fn capabilities_are_constant_and_as_expected(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.within("a handle to open", fixture.open()).await??;
    let expected = fixture.capabilities();
    ensure_eq!(transport.capabilities(), expected, "capabilities before connecting");
    scene.within("connect", transport.connect()).await??;
    ensure_eq!(transport.capabilities(), expected, "capabilities when connected");
    scene.within("the end of `close`", transport.close()).await??;
    ensure_eq!(transport.capabilities(), expected, "capabilities when closed");
    Ok(())
}

pub(super) async fn after_close_a_send_is_unavailable(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let (transport, receiver) = (scene.open().await?, scene.open().await?);
    let topic = scene.topic("orders")?;
    // The group is served by another handle: the message would get through.
    let _consumer = scene.consumer(&receiver, "billing", &topic).await?;
    let clone = Arc::clone(&transport);
    scene.within("the end of `close`", transport.close()).await??;
    for handle in [&transport, &clone] {
        let outcomes = scene.send(handle, &messages(&topic, 2)).await?;
        for outcome in scene.outcomes(outcomes).await? {
            ensure_refused("a send after `close`", outcome, ErrorKind::Unavailable)?;
        }
    }
    Ok(())
}

pub(super) async fn after_close_all_else_is_stopped(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.open().await?;
    let topic = scene.topic("orders")?;
    let mut consumer = scene.consumer(&transport, "billing", &topic).await?;
    for _ in 0..3 {
        scene.within("the end of `close`", transport.close()).await??;
    }
    let wants = scene.subscription("billing", &[topic.as_str()], 1)?;
    let subscribed = scene.within("an answer to `subscribe`", transport.subscribe(wants)).await?;
    ensure_refused("`subscribe` after `close`", subscribed, ErrorKind::Stopped)?;
    let received = scene.within("an answer to `receive`", consumer.receive(1)).await?;
    ensure_refused("`receive` after `close`", received, ErrorKind::Stopped)?;
    let connected = scene.within("an answer to `connect`", transport.connect()).await?;
    ensure_refused("`connect` after `close`", connected, ErrorKind::Stopped)?;
    if fixture.capabilities().reports_backlog {
        let backlog = scene.within("an answer to `backlog`", transport.backlog(scene.group("billing")?)).await?;
        ensure_refused("`backlog` after `close`", backlog, ErrorKind::Stopped)?;
    }
    if fixture.capabilities().checks_routes {
        let unrouted = scene.within("an answer to `unrouted`", transport.unrouted(vec![topic])).await?;
        ensure_refused("`unrouted` after `close`", unrouted, ErrorKind::Stopped)?;
    }
    Ok(())
}

pub(super) async fn a_waiting_receive_ends_when_the_transport_closes(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.open().await?;
    let topic = scene.topic("orders")?;
    let mut consumer = scene.consumer(&transport, "billing", &topic).await?;
    let closing = async {
        tokio::task::yield_now().await;
        transport.close().await
    };
    let both = async { tokio::join!(consumer.receive(10), closing) };
    let (received, closed) = scene.within("the end of a receive that waits while `close` is called", both).await?;
    closed?;
    ensure_refused("a receive that waits while `close` is called", received, ErrorKind::Stopped)
}

pub(super) async fn closing_one_handle_leaves_the_others(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let (one, other, sender) = (scene.open().await?, scene.open().await?, scene.open().await?);
    let topic = scene.topic("orders")?;
    let mut first = scene.consumer(&one, "billing", &topic).await?;
    let sent = messages(&topic, 3);
    let mut outcomes = scene.send(&sender, &sent).await?;
    scene.receive(&mut *first, 3).await?;
    let mut second = scene.consumer(&other, "billing", &topic).await?;
    scene.within("the end of `close`", one.close()).await??;
    let again = scene.take(&mut *second, 3).await?;
    ensure_each_once("the other handle's consumer", &again, &sent)?;
    ensure_redelivered(&again)?;
    outcomes.append(scene.send(&other, &[message(&topic)]).await?);
    scene.take(&mut *second, 1).await?;
    scene.confirmed(outcomes).await
}

pub(super) async fn a_handle_outlives_the_runtime_that_used_it_first(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let transport = scene.within("a handle to open", fixture.open()).await??;
    let topic = scene.topic("orders")?;
    let wants = scene.subscription("billing", &[topic.as_str()], 10)?;
    let sent = messages(&topic, 3);

    let handle = Arc::clone(&transport);
    elsewhere(&scene, || Box::pin(async move { handle.connect().await })).await??;
    let handle = Arc::clone(&transport);
    let mut consumer = elsewhere(&scene, || Box::pin(async move { handle.subscribe(wants).await })).await??;
    let handle = Arc::clone(&transport);
    let (batch, mut outcomes) = outgoing(&sent[..2]);
    elsewhere(&scene, || Box::pin(async move { handle.send(batch).await })).await?;

    // All three runtimes are gone; what they began goes on.
    outcomes.append(scene.send(&transport, &sent[2..]).await?);
    let received = scene.take(&mut *consumer, 3).await?;
    ensure_each_once("the consumer", &received, &sent)?;
    scene.confirmed(outcomes).await
}

/// Does work on a runtime of one thread that ends with it.
async fn elsewhere<T: Send + 'static>(
    scene: &Scene<'_>,
    work: impl FnOnce() -> BoxFuture<'static, T> + Send + 'static,
) -> CheckResult<T> {
    let (done, is_done) = oneshot::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let result = runtime.map(|runtime| runtime.block_on(work()));
        let _ = done.send(result);
    });
    let result = scene.within("the end of work on another runtime", is_done).await?;
    let result = result.map_err(|_| Failure::new("a call on another runtime panicked"))?;
    result.map_err(|error| Failure::new(format!("no runtime could be started: {error}")))
}

pub(super) async fn secrets_are_never_shown(fixture: &dyn TransportFixture) -> CheckResult {
    let scene = Scene::new(fixture);
    let secret = fixture.secret().ok_or("the fixture tells no secret")?;
    let transport = scene.open().await?;
    let topic = scene.topic("orders")?;
    let consumer = scene.consumer(&transport, "billing", &topic).await?;
    let mut texts = vec![
        ("describe", transport.describe()),
        ("Debug of the transport", format!("{transport:#?}")),
        ("Debug of a consumer", format!("{consumer:#?}")),
    ];
    let refused = scene.send(&transport, &[message(&scene.topic("nobody")?)]).await?;
    scene.within("the end of `close`", transport.close()).await??;
    for outcome in scene.outcomes(refused).await? {
        texts.extend(outcome.err().map(|error| ("the error of a send", format!("{error} {error:?}"))));
    }
    let wants = scene.subscription("billing", &[topic.as_str()], 1)?;
    let answer = scene.within("an answer to `subscribe`", transport.subscribe(wants)).await?;
    texts.extend(answer.err().map(|error| ("the error of `subscribe`", format!("{error} {error:?}"))));
    if fixture.can_open_nowhere() {
        let error = refused_nowhere(&scene, fixture).await?;
        texts.push(("the error of `connect`", format!("{error} {error:?}")));
    }
    for (place, text) in texts {
        ensure!(!text.contains(&secret), "{place} shows the secret");
    }
    Ok(())
}

/// The error of connecting to a place where no broker is.
pub(super) async fn refused_nowhere(scene: &Scene<'_>, fixture: &dyn TransportFixture) -> CheckResult<cap_core::Error> {
    let connecting = async {
        let transport: Arc<dyn Transport> = fixture.open_nowhere().await?;
        transport.connect().await
    };
    match scene.within("an answer from a place without a broker", connecting).await? {
        Ok(()) => Err(Failure::new("connecting succeeded where no broker is")),
        Err(error) => Ok(error),
    }
}
