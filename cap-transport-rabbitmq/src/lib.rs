#![doc = include_str!("../README.md")]

mod config;
mod connection;
mod consumer;
mod driver;
mod error;
mod lane;
#[cfg(feature = "management")]
mod management;
#[cfg(not(feature = "management"))]
#[path = "no_management.rs"]
mod management;
mod publisher;
mod routes;
mod settings;
mod topology;
mod transport;
mod verdicts;
mod wire;

pub use config::{QueueType, RabbitMqOptions, Unroutable};
pub use transport::RabbitMq;
