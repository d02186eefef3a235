#![doc = include_str!("../README.md")]

mod address;
mod again;
mod anchor;
mod audit;
mod client;
mod config;
mod consumer;
mod context;
mod error;
mod groups;
mod ledger;
mod metadata;
mod pattern;
mod place;
mod post;
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
