#![doc = include_str!("../README.md")]

mod address;
mod bindings;
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
mod silence;
mod sizes;
mod topology;
mod transport;
mod verdicts;
mod version;
mod wakes;
mod wire;

pub use config::{QueueType, RabbitMqOptions, Topology};
pub use transport::RabbitMq;
