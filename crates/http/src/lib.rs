//! Everything of hookgate that speaks HTTP: the public ingress and the private admin port.
//!
//! Only this crate knows axum and hyper, and only `respond` knows status codes. It must not know brokers.

pub mod admin;
mod body;
mod config;
mod ingress;
mod respond;
mod server;

pub use self::{
    config::{AdminConfig, ServerConfig},
    ingress::Ingress,
    server::{Limits, Server},
};
