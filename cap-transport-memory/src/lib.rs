#![doc = include_str!("../README.md")]

mod broker;
mod config;
mod confirms;
mod consumer;
mod group;
mod transport;

pub use config::MemoryTransportOptions;
pub use transport::MemoryTransport;
