//! Limits that operators set for a virtual host or a user: told as that.

mod support;

use cap_core::{ErrorKind, Transport};
use cap_transport_rabbitmq::{RabbitMq, RabbitMqOptions};
use support::SERVER;
use support::scene::{Scene, refused};

const PASSWORD: &str = "limited-5e2d";

/// A virtual host of its own, with a user of its own: both have the same name.
struct Shop(String);

impl Shop {
    async fn open(scene: &Scene) -> Self {
        let name = scene.names.unique("shop");
        for words in [
            &["add_vhost", &name][..],
            &["add_user", &name, PASSWORD],
            &["set_permissions", "-p", &name, &name, ".*", ".*", ".*"],
        ] {
            SERVER.client(words).await.expect("done");
        }
        Self(name)
    }

    fn transport(&self, scene: &Scene) -> RabbitMq {
        let name = &self.0;
        let url = format!("amqp://{name}:{PASSWORD}@{}/{name}", support::server());
        RabbitMq::with_options(RabbitMqOptions::new(url).exchange(scene.names.exchange())).expect("it works")
    }

    async fn limit(&self, limits: &str) {
        SERVER.client(&["set_vhost_limits", "-p", &self.0, limits]).await.expect("limited");
    }

    async fn limit_user(&self, limits: &str) {
        SERVER.client(&["set_user_limits", &self.0, limits]).await.expect("limited");
    }

    async fn close(self) {
        SERVER.client(&["delete_vhost", &self.0]).await.expect("no virtual host");
        SERVER.client(&["delete_user", &self.0]).await.expect("no user");
    }
}

#[tokio::test]
async fn a_limit_of_connections_is_told_as_that_and_may_pass() {
    let scene = Scene::new();
    let shop = Shop::open(&scene).await;
    let words = ["as many connections as are allowed", "limit (0) is reached"];
    shop.limit(r#"{"max-connections": 0}"#).await;
    let error = refused(Transport::connect(&shop.transport(&scene)).await, ErrorKind::Unavailable, &words);
    assert!(!error.to_string().contains("does not exist"), "{error}");
    shop.limit("{}").await;
    shop.limit_user(r#"{"max-connections": 0}"#).await;
    refused(Transport::connect(&shop.transport(&scene)).await, ErrorKind::Unavailable, &words);
    shop.limit_user(r#"{"max-connections": -1}"#).await;
    Transport::connect(&shop.transport(&scene)).await.unwrap();
    shop.close().await;
}

#[tokio::test]
async fn a_limit_of_queues_is_told_as_that_and_may_pass() {
    let scene = Scene::new();
    let shop = Shop::open(&scene).await;
    let transport = shop.transport(&scene);
    shop.limit(r#"{"max-queues": 0}"#).await;
    let subscription = || scene.wants(&[&scene.topic("order")]);
    let words = ["as much as is allowed", "queue limit"];
    let error = refused(transport.subscribe(subscription()).await, ErrorKind::Environment, &words);
    assert!(!error.to_string().contains("exists otherwise"), "{error}");
    shop.limit("{}").await;
    transport.subscribe(subscription()).await.unwrap();
    shop.close().await;
}
