//! A test's own part of the broker that `CAP_TEST_RABBITMQ_URL` names: an exchange, and queues with names of their own.

use std::collections::BTreeSet;
use std::sync::Mutex;

use cap::MessageId;
use cap::rabbitmq::{QueueType, RabbitMq, RabbitMqOptions};
use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};
use lapin::{Connection, ConnectionProperties};

fn url() -> String {
    std::env::var("CAP_TEST_RABBITMQ_URL").unwrap_or_else(|_| {
        panic!(
            "these tests need a RabbitMQ server and CAP_TEST_RABBITMQ_URL is not set: \
             `scripts/backends up postgres rabbitmq`, then `eval \"$(scripts/backends env)\"`"
        )
    })
}

pub(crate) struct Broker {
    run: MessageId,
    groups: Mutex<BTreeSet<String>>,
}

impl Broker {
    pub(crate) fn new(run: &MessageId) -> Self {
        Self { run: run.clone(), groups: Mutex::default() }
    }

    fn exchange(&self) -> String {
        format!("cap.nodes.{}", self.run)
    }

    /// A name that no other test uses.
    pub(crate) fn group(&self, name: &str) -> String {
        let group = format!("{name}-{}", self.run);
        self.groups.lock().unwrap().insert(group.clone());
        group
    }

    /// A connection of a node's own.
    pub(crate) fn transport(&self) -> RabbitMq {
        let options = RabbitMqOptions::new(url()).exchange(self.exchange()).queue_type(QueueType::Classic);
        RabbitMq::with_options(options).unwrap()
    }

    pub(crate) async fn clean_up(&self) {
        let connection = Connection::connect(&url(), ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let groups = std::mem::take(&mut *self.groups.lock().unwrap());
        for group in groups {
            let queue = format!("{group}.v1");
            channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
        }
        channel.exchange_delete(self.exchange().as_str().into(), ExchangeDeleteOptions::default()).await.unwrap();
        connection.close(200, "done".into()).await.unwrap();
    }
}
