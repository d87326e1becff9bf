//! What does not compile: each proof has a program that tries to do without it, beside a twin that earns it.
//!
//! The programs are tests. A pair differs in the lines after `// Earned:` and `// Forged:` only, so that the one that must
//! fail fails for that reason. Every pair starts from the same hidden scaffolding: a source with one bearer token, a
//! route to one sink, and a request that carries the token.
//!
//! # An authenticated request comes from the verifier
//!
//! ```
#![doc = include_str!("proofs.scaffold")]
//! let scaffold = scaffold();
//! // Earned:
//! let authenticated: Authenticated<Request> = scaffold.source.verify(scaffold.request).unwrap();
//! # let _ = authenticated;
//! ```
//! ```compile_fail,E0308
#![doc = include_str!("proofs.scaffold")]
//! let scaffold = scaffold();
//! // Forged:
//! let authenticated: Authenticated<Request> = scaffold.request;
//! # let _ = authenticated;
//! ```
//!
//! # It cannot be put together by hand
//!
//! ```
#![doc = include_str!("proofs.scaffold")]
//! let (event, proof) = (event(), event().proof().clone());
//! // Earned:
//! let authenticated = event;
//! # let _ = (proof, authenticated);
//! ```
//! ```compile_fail,E0451
#![doc = include_str!("proofs.scaffold")]
//! let (event, proof) = (event(), event().proof().clone());
//! // Forged:
//! let authenticated = Authenticated { value: event, proof };
//! # let _ = authenticated;
//! ```
//!
//! # Only an authenticated event is claimed
//!
//! ```
#![doc = include_str!("proofs.scaffold")]
//! let (memory, event) = (memory(), event());
//! // Earned:
//! let claim = memory.claim(&event);
//! # let _ = claim;
//! ```
//! ```compile_fail,E0308
#![doc = include_str!("proofs.scaffold")]
//! let (memory, event) = (memory(), event());
//! // Forged:
//! let claim = memory.claim(&*event);
//! # let _ = claim;
//! ```
//!
//! # Only the router makes a plan
//!
//! ```
#![doc = include_str!("proofs.scaffold")]
//! let event = event();
//! // Earned:
//! let Routed::To(plan) = router().plan(&event).routed else { unreachable!() };
//! # let _: Plan = plan;
//! ```
//! ```compile_fail,E0451
#![doc = include_str!("proofs.scaffold")]
//! let event = event();
//! // Forged:
//! let plan = Plan { event: event.key, legs: Vec::new() };
//! # let _: Plan = plan;
//! ```
//!
//! # A receipt names the message that was acknowledged
//!
//! ```
#![doc = include_str!("proofs.scaffold")]
//! let message = message();
//! // Earned:
//! let receipt = Receipt::acknowledged(&message, position());
//! # let _ = receipt;
//! ```
//! ```compile_fail,E0451
#![doc = include_str!("proofs.scaffold")]
//! let message = message();
//! // Forged:
//! let receipt = Receipt { event: message.event.key, leg: 0, position: position() };
//! # let _ = receipt;
//! ```
//!
//! # A receipt that is dropped is noticed
//!
//! ```
#![doc = include_str!("proofs.scaffold")]
//! #[deny(unused_must_use)]
//! fn keep(message: &Message) {
//!     // Earned:
//!     let _receipt = Receipt::acknowledged(message, position());
//! }
//! ```
//! ```compile_fail
#![doc = include_str!("proofs.scaffold")]
//! #[deny(unused_must_use)]
//! fn keep(message: &Message) {
//!     // Forged:
//!     Receipt::acknowledged(message, position());
//! }
//! ```
//!
//! # A handoff adds up receipts
//!
//! ```
#![doc = include_str!("proofs.scaffold")]
//! let (plan, message) = (plan(), message());
//! // Earned:
//! let handoff = Handoff::complete(&plan, &[Receipt::acknowledged(&message, position())], &[]).unwrap();
//! # let _ = handoff;
//! ```
//! ```compile_fail,E0451
#![doc = include_str!("proofs.scaffold")]
//! let (plan, message) = (plan(), message());
//! // Forged:
//! let handoff = Handoff { event: message.event.key };
//! # let _ = (plan, handoff);
//! ```
//!
//! # A claim is settled by a handoff, and once
//!
//! ```
#![doc = include_str!("proofs.scaffold")]
//! # async fn run() {
//! let (claimed, handoff) = (claimed(), handoff());
//! // Earned:
//! let accepted: Accepted = claimed.settle(&handoff).await;
//! # let _ = accepted;
//! # }
//! ```
//! ```compile_fail,E0308
#![doc = include_str!("proofs.scaffold")]
//! # async fn run() {
//! let (claimed, handoff) = (claimed(), handoff());
//! // Forged:
//! let accepted: Accepted = claimed.settle(&plan()).await;
//! # let _ = (handoff, accepted);
//! # }
//! ```
//! ```compile_fail,E0382
#![doc = include_str!("proofs.scaffold")]
//! # async fn run() {
//! let (claimed, handoff) = (claimed(), handoff());
//! // Forged:
//! let accepted: Accepted = claimed.settle(&handoff).await;
//! # let _ = accepted;
//! let again: Accepted = claimed.settle(&handoff).await;
//! # }
//! ```
//!
//! # Nothing else is accepted
//!
//! ```
#![doc = include_str!("proofs.scaffold")]
//! # async fn run() {
//! let (claimed, handoff, event) = (claimed(), handoff(), event());
//! // Earned:
//! let accepted: Accepted = claimed.settle(&handoff).await;
//! # let _ = (event, accepted);
//! # }
//! ```
//! ```compile_fail,E0624
#![doc = include_str!("proofs.scaffold")]
//! # async fn run() {
//! let (claimed, handoff, event) = (claimed(), handoff(), event());
//! // Forged:
//! let accepted: Accepted = Accepted::new(AcceptedAs::Delivered, event.id.clone());
//! # let _ = (claimed, handoff, accepted);
//! # }
//! ```
