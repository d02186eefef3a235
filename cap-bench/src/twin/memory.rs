//! The backends inside the process by hand: there is no driver below them, so the traits are called without an engine.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cap_core::lifecycle::{self, Begun, Outcome, RetryPolicy, Rules};
use cap_core::storage::{Claim, ClaimRequest, Enlist as _, Inserted, Lane, NewRecord, Settlement, Storage as _};
use cap_core::transport::{Confirm, Consumer, DeliveryTag, Outgoing, Subscription, Transport as _};
use cap_core::{
    ClaimToken, Due, Group, Message, MessageId, NodeId, RecordId, Table, Topic, TopicPattern, Version, headers,
};
use cap_storage_memory::MemoryStorage;
use cap_transport_memory::MemoryTransport;
use tokio::sync::oneshot;

use crate::backend::{Arrived, Claimed, Fallible, Hand, InboxRow, Names, OutboxRow, Wire};
use crate::database::NOTE;
use crate::twin::rows;

const LEASE: Duration = Duration::from_secs(3600);

/// The twin's handle of a storage.
#[derive(Clone)]
pub(crate) struct MemoryHand {
    storage: MemoryStorage,
    node: NodeId,
    tokens: Arc<Mutex<HashMap<(Table, i64), ClaimToken>>>,
}

impl MemoryHand {
    pub(crate) async fn join(storage: MemoryStorage) -> Fallible<Self> {
        let node = NodeId::generate();
        storage.join(node, LEASE).await?;
        Ok(Self { storage, node, tokens: Arc::default() })
    }

    /// Each table has addresses of its own.
    fn hold(&self, table: Table, id: i64, token: ClaimToken) {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).insert((table, id), token);
    }

    async fn mark(&self, table: Table, ids: Vec<i64>) -> Fallible {
        let rules =
            Rules { retry: RetryPolicy::never(), keep_succeeded: Duration::from_secs(86_400), keep_dead: LEASE };
        let state = lifecycle::settle(&Begun::first(), Outcome::Succeeded, &rules, 0.0);
        let settlements = {
            let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
            let settlement = |id| {
                let token = tokens.remove(&(table, id)).ok_or("a row that was not claimed")?;
                Ok::<_, &str>(Settlement { record: RecordId(id), token, state: state.clone() })
            };
            ids.into_iter().map(settlement).collect::<Result<_, _>>()?
        };
        self.storage.settle(table, settlements).await?;
        Ok(())
    }
}

impl Hand for MemoryHand {
    async fn place(&mut self, row: &OutboxRow) -> Fallible<i64> {
        let mut tx = self.storage.begin();
        tx.put(format!("order/{}", row.number), NOTE);
        let record = NewRecord {
            message_id: MessageId::try_from(row.message_id.as_str())?,
            version: Version::default(),
            topic: Topic::try_from(row.topic.as_str())?,
            group: None,
            content: row.content.as_str().into(),
            state: lifecycle::scheduled(Due::Now),
        };
        let inserted = self.storage.enlist(&mut tx, vec![record])?;
        tx.commit();
        match inserted.first() {
            Some(Inserted::Stored(id)) => Ok(id.0),
            _ => Err("the row was there already".into()),
        }
    }

    async fn claim(&mut self, limit: usize) -> Fallible<Vec<Claimed>> {
        let claim = Claim::by(self.node);
        let request = ClaimRequest::new(Lane::Outbox, Version::default(), claim, limit);
        let claimed = self.storage.claim(request).await?;
        let row = |record: cap_core::storage::Record| {
            self.hold(Table::Outbox, record.id.0, claim.token);
            Claimed {
                id: record.id.0,
                message_id: record.message_id.to_string(),
                content: record.content.as_ref().to_owned(),
            }
        };
        Ok(claimed.records.into_iter().map(row).collect())
    }

    async fn claim_one(&mut self, _: i64) -> Fallible<Claimed> {
        self.claim(1).await?.pop().ok_or_else(|| "the row is not there".into())
    }

    async fn mark_sent(&mut self, ids: Vec<i64>) -> Fallible {
        self.mark(Table::Outbox, ids).await
    }

    async fn receive(&mut self, names: &Names, rows: Vec<InboxRow>) -> Fallible<Vec<i64>> {
        let claim = Claim::by(self.node);
        let group = Group::try_from(names.queue().as_str())?;
        let topic = Topic::try_from(names.topic.as_str())?;
        let record = |row: InboxRow| {
            Ok(NewRecord {
                message_id: MessageId::try_from(row.message_id.as_str())?,
                version: Version::default(),
                topic: topic.clone(),
                group: Some(group.clone()),
                content: row.content.into(),
                state: lifecycle::received(true),
            })
        };
        let records = rows.into_iter().map(record).collect::<cap_core::Result<_>>()?;
        let inserted = self.storage.insert(Table::Inbox, records, Some(claim)).await?;
        let stored = inserted.into_iter().filter_map(|outcome| match outcome {
            Inserted::Stored(id) => Some(id.0),
            Inserted::Duplicate => None,
        });
        Ok(stored.inspect(|id| self.hold(Table::Inbox, *id, claim.token)).collect())
    }

    async fn mark_handled(&mut self, ids: Vec<i64>) -> Fallible {
        self.mark(Table::Inbox, ids).await
    }
}

/// The twin's connection to the broker in this process.
pub(crate) struct MemoryWire {
    pub(crate) transport: MemoryTransport,
    pub(crate) names: Names,
    pub(crate) consumer: Option<Box<dyn Consumer>>,
}

impl Wire for MemoryWire {
    type Confirm = Pin<Box<dyn Future<Output = Fallible> + Send>>;

    async fn publish(&mut self, row: Claimed) -> Fallible<Self::Confirm> {
        let (report, reported) = oneshot::channel();
        let confirm = Confirm::new(move |outcome| drop(report.send(outcome)));
        let opened = rows::opened(&row.content)?;
        let message = Message {
            id: MessageId::try_from(row.message_id.as_str())?,
            topic: Topic::try_from(self.names.topic.as_str())?,
            headers: opened.headers.iter().map(|(name, value)| (*name, value.as_ref())).collect(),
            payload: opened.content.get().as_bytes().to_vec().into(),
        };
        self.transport.send(vec![Outgoing { message, confirm }]).await;
        Ok(Box::pin(async move { Ok(reported.await??) }))
    }

    async fn consume(&mut self, prefetch: usize) -> Fallible {
        let subscription = Subscription {
            group: Group::try_from(self.names.queue().as_str())?,
            topics: vec![TopicPattern::try_from(self.names.topic.as_str())?],
            prefetch,
            prefetch_bytes: 64 * 1024 * 1024,
        };
        self.consumer = Some(self.transport.subscribe(subscription).await?);
        Ok(())
    }

    async fn receive(&mut self, most: usize) -> Fallible<Vec<Arrived>> {
        let consumer = self.consumer.as_mut().ok_or("nothing is consumed")?;
        let deliveries = consumer.receive(most).await?;
        let arrived = |delivery: cap_core::transport::Delivery| Arrived {
            tag: delivery.tag.0,
            message_id: delivery.headers.get(headers::MESSAGE_ID).unwrap_or_default().to_owned(),
            headers: delivery.headers.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            body: delivery.body.to_vec(),
        };
        Ok(deliveries.into_iter().map(arrived).collect())
    }

    async fn ack(&mut self, tags: Vec<u64>) -> Fallible {
        let consumer = self.consumer.as_mut().ok_or("nothing is consumed")?;
        Ok(consumer.ack(tags.into_iter().map(DeliveryTag).collect()).await?)
    }
}
