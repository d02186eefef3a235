#![doc = include_str!("../README.md")]

mod blame;
mod config;
mod connection;
mod consumer;
mod driver;
mod error;
mod escape;
mod flight;
mod hold;
mod intake;
mod lane;
#[cfg(feature = "management")]
mod management;
#[cfg(not(feature = "management"))]
#[path = "no_management.rs"]
mod management;
mod parcel;
mod publisher;
mod quarantine;
mod refusals;
mod routes;
mod settings;
mod sizes;
mod topology;
mod transport;
mod verdicts;
mod wakes;
mod wire;

pub use config::{QueueType, RabbitMqOptions, Unroutable};
pub use transport::RabbitMq;
