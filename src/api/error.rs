//! Translates the errors of `core` into problems for clients: one table, exhaustive, so that a new error does not compile
//! without an answer.
//!
//! A problem says what is wrong with the request, or whether and when to repeat it. What Postgres or Redis said is logged
//! here, once, on a line that carries the request's id, and is never sent.

use std::collections::BTreeMap;

use actix_web::{HttpResponse, ResponseError, http::StatusCode};
use thiserror::Error;
use utoipa::{
    IntoResponses, ToSchema,
    openapi::{Ref, RefOr, Response, ResponseBuilder, content::ContentBuilder},
};

use crate::{
    core::{db::DbError, identity::IdentityError, instances::create::AcceptError, invalid::Invalid},
    http::problem::{Code, Problem, ProblemBody},
};

/// Why a handler did not succeed.
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
            Self::Identity(IdentityError::Db(error)) | Self::Db(error) | Self::Accept(AcceptError::Db(error)) => {
                db(error)
            }
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
            Self::Accept(AcceptError::PortTaken(detail)) => Problem::new(Code::PortTaken, detail.as_str()),
            Self::Accept(AcceptError::QuotaExceeded(detail)) => Problem::new(Code::QuotaExceeded, detail.as_str()),
            Self::Accept(AcceptError::KeyReused) => {
                Problem::new(Code::IdempotencyKeyReused, "the Idempotency-Key was sent before with another request")
            }
            Self::Accept(AcceptError::ReplayLost) => Problem::new(
                Code::InvalidState,
                "the key was made, but the secrets changed since and it cannot be shown again; revoke it and make another",
            ),
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
