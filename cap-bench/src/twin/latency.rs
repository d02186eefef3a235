//! The way of one message by hand, with a notice inside the process after the commit: insert and commit, claim by
//! address, publish and wait for the confirm, mark; receive, insert into the inbox, acknowledge, handle, mark.

use std::time::Instant;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::backend::{Broker, Database, Fallible, Hand, Names, Wire};
use crate::twin::rows;

/// The twin while it runs: stops when dropped.
pub(crate) struct Chain<H> {
    placer: H,
    names: Names,
    committed: mpsc::UnboundedSender<i64>,
    loops: JoinSet<Fallible>,
}

impl<H: Hand> Chain<H> {
    /// Starts; `handled` is told the number of each order when it is handled.
    pub(crate) async fn start<D: Database<Hand = H>, B: Broker>(
        database: &D,
        broker: &B,
        handled: mpsc::UnboundedSender<(i64, Instant)>,
    ) -> Fallible<Self> {
        let placer = database.hand().await?;
        let claimer = database.another(&placer).await?;
        let inserter = database.another(&placer).await?;
        let out = broker.wire().await?;
        let mut back = broker.wire().await?;
        back.consume(500).await?;
        let (committed, commits) = mpsc::unbounded_channel();
        let mut loops = JoinSet::new();
        loops.spawn(relay(claimer, out, commits));
        loops.spawn(consume(inserter, back, broker.names().clone(), handled));
        Ok(Self { placer, names: broker.names().clone(), committed, loops })
    }

    /// Places an order; answers when it was committed.
    pub(crate) async fn place(&mut self, number: i64, payload: &str) -> Fallible<Instant> {
        let payload = serde_json::to_string(payload)?;
        let id = self.placer.place(&rows::outbox_row(number, &self.names.topic, &payload)).await?;
        let committed = Instant::now();
        self.committed.send(id)?;
        if let Some(ended) = self.loops.try_join_next() {
            ended??;
        }
        Ok(committed)
    }
}

async fn relay<H: Hand, W: Wire>(mut hand: H, mut wire: W, mut commits: mpsc::UnboundedReceiver<i64>) -> Fallible {
    while let Some(id) = commits.recv().await {
        let row = hand.claim_one(id).await?;
        let id = row.id;
        wire.publish(row).await?.await?;
        hand.mark_sent(vec![id]).await?;
    }
    Ok(())
}

async fn consume<H: Hand, W: Wire>(
    mut hand: H,
    mut wire: W,
    names: Names,
    handled: mpsc::UnboundedSender<(i64, Instant)>,
) -> Fallible {
    let group = names.queue();
    loop {
        let arrived = wire.receive(500).await?;
        let tags = arrived.iter().map(|message| message.tag).collect();
        let rows = arrived.into_iter().map(|arrived| rows::inbox_row(arrived, &group));
        let rows = rows.collect::<Fallible<Vec<_>>>()?;
        let numbers: Vec<_> = rows.iter().filter_map(|row| rows::number_in(&row.content)).collect();
        let ids = hand.receive(&names, rows).await?;
        wire.ack(tags).await?;
        for number in numbers {
            handled.send((number, Instant::now()))?;
        }
        hand.mark_handled(ids).await?;
    }
}
