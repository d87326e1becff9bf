//! Everything of hookgate that speaks HTTP: the public ingress, the private admin port, what it asks for itself, and captured
//! requests.
//!
//! Only this crate knows axum and hyper, and only `respond` knows status codes. It must not know brokers.

pub mod admin;
mod body;
pub mod capture;
mod config;
mod fetch;
mod ingress;
mod pace;
mod pem;
mod places;
mod proxied;
mod respond;
mod server;
mod tarpit;
mod tls;

pub use self::{
    body::Content,
    config::{AdminConfig, OutboundConfig, ServerConfig},
    fetch::Fetcher,
    ingress::Ingress,
    proxied::ProxyProtocol,
    server::{Answers, Limits, Server},
    tls::{Tls, TlsConfig},
};
