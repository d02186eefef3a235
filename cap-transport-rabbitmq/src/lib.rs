#![doc = include_str!("../README.md")]

mod config;
mod connection;
mod consumer;
mod driver;
mod error;
mod lane;
mod publisher;
mod settings;
mod topology;
mod transport;
mod verdicts;
mod wire;

pub use config::{QueueType, RabbitMqOptions, Unroutable};
pub use transport::RabbitMq;
