//! What the tests of every sink share: secrets as the program finds them, and errors as an operator reads them.

use std::sync::Arc;

use hookgate_core::{
    observe::Chain,
    secret::{Secret, SecretOrigin, SecretRef, SecretSlot},
    sink::{PublishError, PublishErrorKind, PublishReason},
};

/// Turns a reference into a slot as the program does, but for the environment, which tests share.
///
/// # Errors
/// A sentence: there is no such file, the value is empty.
pub fn resolve(reference: &SecretRef) -> Result<Arc<SecretSlot>, String> {
    let value = match &reference.origin {
        SecretOrigin::Literal(text) => text.as_bytes().to_vec(),
        SecretOrigin::File(path) => std::fs::read(path).map_err(|error| error.to_string())?,
        SecretOrigin::Env(variable) => return Err(format!("{variable} is not set")),
    };
    let secret = Secret::new(value).map_err(|error| error.to_string())?;
    Ok(Arc::new(SecretSlot::new(reference.display_name(), secret)))
}

/// Asserts kind and reason of `error`, and that its chain of causes says all of `words`.
///
/// # Panics
/// When it is another error.
#[track_caller]
pub fn assert_error(error: &PublishError, kind: PublishErrorKind, reason: PublishReason, words: &[&str]) {
    let chain = Chain(error).to_string();
    assert_eq!((error.kind, error.reason), (kind, reason), "{chain}");
    for part in words {
        assert!(chain.contains(part), "{chain:?} does not say {part:?}");
    }
}
