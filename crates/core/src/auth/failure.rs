//! Why a request was not verified: exact for the operator, never told to the sender.

use std::fmt;

use crate::observe::labels;

macro_rules! failures {
    ($($(#[$doc:meta])* $variant:ident => $label:literal, $sentence:literal;)+) => {
        labels! {
            /// Why a request was not verified. For the operator: every sender gets the same answer. Its labels are also told by
            /// `hookgate explain`, and stable.
            ///
            /// Ordered by how far verification came, so that of several alternatives the most telling reason is reported.
            #[derive(PartialOrd, Ord)]
            AuthFailure {
                $($(#[$doc])* $variant => $label,)+
            }
        }

        impl fmt::Display for AuthFailure {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $sentence,)+
                })
            }
        }

        impl std::error::Error for AuthFailure {}
    };
}

failures! {
    /// There was no credential where any scheme looks for one.
    Missing => "credential_missing", "no credential";
    /// It came from an address that is not on the list.
    AddressRefused => "address_refused", "an address that is not allowed";
    /// A credential was there in another form than its scheme writes it.
    Malformed => "credential_malformed", "a credential in the wrong form";
    /// A credential, timestamp or id was there more than once: servers differ in which of them they read.
    Repeated => "credential_repeated", "more than one credential";
    /// The signature stands in the body, and the body cannot be read.
    BodyUnreadable => "body_unreadable", "a body in which the signature cannot be found";
    /// The scheme signs a timestamp and there is none.
    TimestampMissing => "timestamp_missing", "no timestamp";
    /// The timestamp is not a whole number.
    TimestampMalformed => "timestamp_malformed", "a timestamp that is not a whole number";
    /// The scheme signs a message id and there is none.
    IdMissing => "id_missing", "no message id";
    /// A token or message names an algorithm that is not agreed on.
    AlgorithmRefused => "algorithm_refused", "an algorithm that is not agreed on";
    /// A message names a certificate at a place that is not the provider's.
    CertificateUrlRefused => "certificate_url_refused", "a certificate from a place that is not the provider's";
    /// No known key has the name that the token gives.
    KeyUnknown => "key_unknown", "a key that the provider does not publish";
    /// A token was there and no secret equals it.
    Mismatch => "credential_mismatch", "a credential that matches no secret";
    /// A signature was there and no secret makes it.
    SignatureMismatch => "signature_mismatch", "a signature that no secret makes";
    /// The only secret that matches has passed its `not_after`.
    SecretExpired => "secret_expired", "a secret past its not_after";
    /// The signature is right and covers another body or request.
    ContentMismatch => "content_mismatch", "a signature for another body or request";
    /// The signature is right and too old.
    TimestampStale => "timestamp_stale", "a timestamp that is too old";
    /// The signature is right and its time has not come.
    TimestampAhead => "timestamp_ahead", "a timestamp in the future";
    /// The token is right and has expired.
    TokenExpired => "token_expired", "a token that has expired";
    /// The token is right and not valid yet.
    TokenNotYetValid => "token_not_yet_valid", "a token that is not valid yet";
    /// The token is right and from somebody else.
    IssuerRefused => "issuer_refused", "a token of another issuer";
    /// The token is right and meant for somebody else.
    AudienceRefused => "audience_refused", "a token for another audience";
    /// The token is right and another account's.
    ClaimRefused => "claim_refused", "a token of another account";
    /// The message is the provider's, from a topic that is not on the list.
    TopicRefused => "topic_refused", "a topic that is not on the list";
    /// The client certificate is good and another's.
    CertificateRefused => "certificate_refused", "the certificate of another client";
    /// The provider's keys could not be fetched: our trouble, not the sender's. Last, since nobody may be refused for good
    /// while one alternative cannot be judged.
    KeysUnavailable => "keys_unavailable", "the provider's keys could not be fetched";
}
