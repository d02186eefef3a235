//! The consumer by hand: receives in batches, inserts them in one statement, acknowledges, and marks in one statement
//! while the next batch is on its way.

use tokio::sync::mpsc;

use crate::backend::{Broker, Database, Fallible, Hand, Wire};
use crate::twin::rows;

const BATCH: usize = 500;
/// Batches that wait to be marked.
const WAITING: usize = 2;

/// Consumes until `messages` are handled and marked. `ready` is called when the queue is consumed.
pub(crate) async fn consume<D: Database, B: Broker>(
    database: &D,
    broker: &B,
    messages: usize,
    ready: impl FnOnce() + Send,
) -> Fallible {
    let names = broker.names().clone();
    let group = names.queue();
    let mut inserter = database.hand().await?;
    let marker = database.another(&inserter).await?;
    let mut wire = broker.wire().await?;
    wire.consume(BATCH).await?;
    ready();

    let (handled, batches) = mpsc::channel(WAITING);
    let marking = tokio::spawn(mark_all(marker, batches, messages));
    let mut received = 0;
    while received < messages {
        let arrived = wire.receive(BATCH).await?;
        let tags = arrived.iter().map(|message| message.tag).collect();
        let rows = arrived.into_iter().map(|arrived| rows::inbox_row(arrived, &group));
        let rows = rows.collect::<Fallible<Vec<_>>>()?;
        let ids = inserter.receive(&names, rows).await?;
        wire.ack(tags).await?;
        received += ids.len();
        // The handler is empty.
        if handled.send(ids).await.is_err() {
            break;
        }
    }
    drop(handled);
    marking.await?
}

async fn mark_all<H: Hand>(mut hand: H, mut batches: mpsc::Receiver<Vec<i64>>, messages: usize) -> Fallible {
    let mut marked = 0;
    while marked < messages {
        let Some(ids) = batches.recv().await else {
            return Err(format!("only {marked} of {messages} messages were handled").into());
        };
        marked += ids.len();
        hand.mark_handled(ids).await?;
    }
    Ok(())
}
