//! The relay by hand: claims batches while the batch before is being sent, keeps a window of confirms outstanding, and
//! marks what is confirmed in one statement.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::backend::{Broker, Claimed, Database, Fallible, Hand, Wire};

const BATCH: usize = 500;
const WINDOW: usize = 1000;

/// Relays until `messages` are settled.
pub(crate) async fn relay<D: Database, B: Broker>(database: &D, broker: &B, messages: usize) -> Fallible {
    let claimer = database.hand().await?;
    let marker = database.another(&claimer).await?;
    let mut wire = broker.wire().await?;

    let (claimed, mut batches) = mpsc::channel(1);
    let claiming = tokio::spawn(claim_all(claimer, claimed));
    let (sent, confirms) = mpsc::unbounded_channel();
    let marking = tokio::spawn(mark_all(marker, confirms, messages));

    let window = Arc::new(Semaphore::new(WINDOW));
    while let Some(batch) = batches.recv().await {
        for row in batch {
            let place = Arc::clone(&window).acquire_owned().await?;
            let id = row.id;
            let confirm = wire.publish(row).await?;
            if sent.send((id, confirm, place)).is_err() {
                break;
            }
        }
    }
    drop(sent);
    claiming.await??;
    marking.await?
}

async fn claim_all<H: Hand>(mut hand: H, claimed: mpsc::Sender<Vec<Claimed>>) -> Fallible {
    loop {
        let batch = hand.claim(BATCH).await?;
        if batch.is_empty() || claimed.send(batch).await.is_err() {
            return Ok(());
        }
    }
}

type Sent<C> = (i64, C, OwnedSemaphorePermit);

async fn mark_all<H: Hand, C: Future<Output = Fallible>>(
    mut hand: H,
    mut confirms: mpsc::UnboundedReceiver<Sent<C>>,
    messages: usize,
) -> Fallible {
    let mut marked = 0;
    let mut batch = Vec::with_capacity(BATCH);
    while marked < messages {
        if confirms.recv_many(&mut batch, BATCH).await == 0 {
            return Err(format!("only {marked} of {messages} rows were there").into());
        }
        let mut ids = Vec::with_capacity(batch.len());
        for (id, confirm, place) in batch.drain(..) {
            confirm.await?;
            drop(place);
            ids.push(id);
        }
        marked += ids.len();
        hand.mark_sent(ids).await?;
    }
    Ok(())
}
