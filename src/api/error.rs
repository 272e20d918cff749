//! Translates the errors of `core` into problems for clients: one table, exhaustive, so that a new error does not
//! compile without an answer.
//!
//! A problem says what is wrong with the request, or whether and when to repeat it. What Postgres or Redis said is
//! logged here, once, on a line that carries the request's id, and is never sent.

use std::collections::BTreeMap;

use actix_web::{HttpResponse, ResponseError, http::StatusCode};
use thiserror::Error;
use utoipa::{
    IntoResponses, ToSchema,
    openapi::{Ref, RefOr, Response, ResponseBuilder, content::ContentBuilder},
};

use crate::{
    core::{
        db::DbError,
        identity::{IdentityError, KeyError},
        instances::create::AcceptError,
        invalid::Invalid,
    },
    http::problem::{Code, Problem, ProblemBody},
};

/// The error of a handler.
#[derive(Debug, Error)]
pub enum ApiError {
    /// A problem that the handler found in the request.
    #[error(transparent)]
    Problem(#[from] Problem),
    /// The key was not accepted or could not be verified.
    #[error(transparent)]
    Identity(IdentityError),
    /// A request for work was refused or failed.
    #[error(transparent)]
    Accept(#[from] AcceptError),
    /// A read or a write failed.
    /// A request about an API key was refused or failed.
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Db(#[from] DbError),
}

impl ApiError {
    fn problem(&self) -> Problem {
        match self {
            Self::Problem(problem) => problem.clone(),
            Self::Identity(IdentityError::Unauthenticated) => {
                Problem::new(Code::Unauthenticated, "send a valid key as X-API-Key or Authorization: Bearer")
            }
            Self::Identity(IdentityError::Busy) => {
                Problem::new(Code::Unavailable, "too many keys are being verified; send the request again")
            }
            Self::Identity(IdentityError::Db(error))
            | Self::Db(error)
            | Self::Accept(AcceptError::Db(error))
            | Self::Key(KeyError::Db(error)) => db(error),
            Self::Key(error) => key(error),
            Self::Accept(AcceptError::NameTaken) => {
                Problem::new(Code::NameTaken, "another instance of the tenant has this name")
            }
            Self::Accept(AcceptError::UnknownNetwork) => Problem::invalid(vec![Invalid::new(
                "/network",
                "not_found",
                "the tenant has no network of this name or id",
            )]),
            Self::Accept(AcceptError::AddressExhausted) => {
                Problem::new(Code::AddressExhausted, "every address of the network is in use")
            }
            Self::Accept(error @ (AcceptError::PortTaken { .. } | AcceptError::NoFreePort)) => {
                Problem::new(Code::PortTaken, error.to_string())
            }
            Self::Accept(AcceptError::QuotaExceeded(detail)) => Problem::new(Code::QuotaExceeded, detail.as_str()),
            Self::Accept(AcceptError::KeyReused) => {
                Problem::new(Code::IdempotencyKeyReused, "the Idempotency-Key was sent before with another request")
            }
            Self::Accept(AcceptError::KeyInProgress) => Problem::new(
                Code::IdempotencyInProgress,
                "the first request with this Idempotency-Key has not ended; send it again",
            ),
        }
    }
}

/// The error response of every operation, for the OpenAPI document.
impl IntoResponses for ApiError {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let body = ContentBuilder::new().schema(Some(Ref::from_schema_name(ProblemBody::name()))).build();
        let problem = ResponseBuilder::new()
            .description("The request was refused or failed. `code` is the reason, `status` repeats the HTTP status.")
            .content("application/problem+json", body);
        BTreeMap::from([("default".to_owned(), problem.build().into())])
    }
}

fn key(error: &KeyError) -> Problem {
    match error {
        KeyError::Db(error) => db(error),
        KeyError::Invalid(errors) => Problem::invalid(errors.clone()),
        KeyError::NotFound => Problem::not_found(),
        KeyError::UnknownTenant => {
            Problem::invalid(vec![Invalid::new("/tenant_id", "not_found", "there is no such tenant")])
        }
        KeyError::Grant(error) => Problem::new(Code::Forbidden, error.to_string()),
        KeyError::Revoked => Problem::new(Code::InvalidState, "the key is revoked"),
        KeyError::RevokedOrExpired => Problem::new(Code::InvalidState, "the key is revoked or expired"),
        KeyError::Contended => {
            Problem::new(Code::InvalidState, "other requests keep changing the key; nothing was changed, try again")
        }
        KeyError::IdempotencyKeyReused => {
            Problem::new(Code::IdempotencyKeyReused, "the Idempotency-Key was sent before with another request")
        }
        KeyError::IdempotencyInProgress => Problem::new(
            Code::IdempotencyInProgress,
            "the first request with this Idempotency-Key has not ended; send it again",
        ),
        KeyError::ReplayLost => Problem::new(
            Code::InvalidState,
            "the key was created, but the secrets have changed since and it cannot be shown again; revoke it and create another",
        ),
    }
}

fn db(error: &DbError) -> Problem {
    match error {
        DbError::Unavailable(_) | DbError::Locked => {
            tracing::warn!(%error, "postgres did not answer, answering 503");
            Problem::new(Code::Unavailable, "send the request again later; if it was a write, its outcome is unknown")
        }
        DbError::ReadOnly | DbError::StaleStatement { .. } | DbError::RolledBack { .. } => {
            tracing::warn!(%error, "postgres did not run the statement, answering 503");
            Problem::new(Code::Unavailable, "nothing was changed; send the request again later")
        }
        DbError::Refused { .. } | DbError::Conflict { .. } | DbError::Statement { .. } | DbError::Invariant(_) => {
            tracing::error!(%error, "a statement failed, answering 500");
            Problem::internal()
        }
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        self.problem().status_code()
    }

    fn error_response(&self) -> HttpResponse {
        self.problem().error_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problem_of_a_failed_statement_shows_nothing_of_the_server() {
        let (code, secret) = (|| "23505".to_owned(), || "jobs_pkey".to_owned());
        for (error, expected) in [
            (DbError::Unavailable(secret()), Code::Unavailable),
            (DbError::ReadOnly, Code::Unavailable),
            (DbError::StaleStatement { code: code(), message: secret() }, Code::Unavailable),
            (DbError::RolledBack { code: code(), message: secret() }, Code::Unavailable),
            (DbError::Locked, Code::Unavailable),
            (DbError::Refused { code: code(), detail: secret() }, Code::Internal),
            (DbError::Conflict { constraint: secret() }, Code::Internal),
            (DbError::Statement { code: code(), message: secret() }, Code::Internal),
            (DbError::Invariant(secret()), Code::Internal),
        ] {
            let problem = ApiError::from(error).problem();

            assert_eq!(problem.code, expected, "{problem}");
            let shown = format!("{} {}", problem.code.title(), problem.detail).to_lowercase();
            for word in ["23505", "jobs_pkey", "postgres", "database", "redis", "docker", "sql"] {
                assert!(!shown.contains(word), "{word}: {shown}");
            }
        }
    }
}
