#![doc = include_str!("../README.md")]

mod client;
mod config;
mod consumer;
mod error;
mod ledger;
mod pattern;
mod progress;
mod publisher;
mod reports;
mod sentry;
mod settings;
mod topics;
mod traffic;
mod transport;
mod wire;
mod worker;

pub use config::{CreateTopics, KafkaOptions};
pub use transport::Kafka;
