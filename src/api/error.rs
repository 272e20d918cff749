//! Errors to problems: one table, exhaustive. What is inside stays inside; clients get the code.

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

#[derive(Debug, Error)]
pub enum ApiError {
    #[error(transparent)]
    Problem(#[from] Problem),
    #[error(transparent)]
    Identity(IdentityError),
    #[error(transparent)]
    Accept(#[from] AcceptError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Db(#[from] DbError),
}

impl std::error::Error for Problem {}

impl ApiError {
    fn problem(&self) -> Problem {
        match self {
            Self::Problem(problem) => problem.clone(),
            Self::Identity(IdentityError::Unauthenticated) => {
                Problem::new(Code::Unauthenticated, "send a valid key as X-API-Key or Authorization: Bearer")
            }
            Self::Identity(IdentityError::Busy) => {
                Problem::new(Code::Unavailable, "too many keys are being looked up; try again")
            }
            Self::Identity(IdentityError::Db(error))
            | Self::Db(error)
            | Self::Accept(AcceptError::Db(error))
            | Self::Key(KeyError::Db(error)) => db(error),
            Self::Key(error) => key(error),
            Self::Accept(AcceptError::NameTaken) => {
                Problem::new(Code::NameTaken, "another instance of this tenant has the name")
            }
            Self::Accept(AcceptError::UnknownNetwork) => {
                Problem::invalid(vec![Invalid::new("/network", "not_found", "the tenant has no such network")])
            }
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

/// How any operation fails, for the document.
impl IntoResponses for ApiError {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let body = ContentBuilder::new().schema(Some(Ref::from_schema_name(ProblemBody::name()))).build();
        let problem = ResponseBuilder::new()
            .description("Refused, or failed: `code` says why, `status` repeats the status.")
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
            tracing::warn!(%error, "answering 503");
            Problem::new(Code::Unavailable, "the database does not answer; if this was a write, its outcome is unknown")
        }
        DbError::ReadOnly | DbError::StaleStatement { .. } | DbError::RolledBack { .. } => {
            tracing::warn!(%error, "answering 503");
            Problem::new(Code::Unavailable, "nothing was changed; send the request again later")
        }
        DbError::Refused { .. } | DbError::Conflict { .. } | DbError::Statement { .. } | DbError::Invariant(_) => {
            tracing::error!(%error, "answering 500");
            Problem::new(Code::Internal, "the request id leads to the log")
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
