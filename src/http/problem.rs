//! Errors as problem details (RFC 9457), of a closed set of codes.
//!
//! `code` is what a program reads: `docs/api.md` lists all codes, and one is never removed or reused. `title` is fixed
//! for each code, and nginx.conf repeats the titles of those that nginx answers itself (a test compares them). `detail`
//! says what is wrong with this request, in terms of HTTP and of the API; it never quotes Postgres, Redis or Docker.
//! `validation_failed` also has `errors`, one for each thing that is wrong, with its place. This is our own code since
//! the crates for problem details have neither a closed set of codes nor bounds for what they quote.

use std::fmt;

use actix_web::{
    HttpResponse, ResponseError,
    http::{StatusCode, header},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::request_id;
use crate::core::invalid::Invalid;

macro_rules! codes {
    ($($name:ident = $text:literal $status:literal $title:literal,)*) => {
        /// Why a request was refused or failed: the closed set of the API.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, ToSchema)]
        #[schema(as = ProblemCode)]
        pub enum Code { $(#[doc = $title] #[serde(rename = $text)] #[schema(rename = $text)] $name),* }

        impl Code {
            /// Every code, in the order of their statuses.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Returns the code as clients see it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }

            /// Returns the HTTP status that it is answered with.
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status),* }
            }

            /// Returns the title, the same for every problem of this code.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$name => $title),* }
            }
        }
    };
}

codes! {
    MalformedRequest = "malformed_request" 400 "The request could not be read",
    Unauthenticated = "unauthenticated" 401 "A valid API key is required",
    Forbidden = "forbidden" 403 "The API key does not allow this request",
    QuotaExceeded = "quota_exceeded" 403 "The tenant's quota is exceeded",
    NotFound = "not_found" 404 "The resource does not exist",
    MethodNotAllowed = "method_not_allowed" 405 "The resource does not support this method",
    NameTaken = "name_taken" 409 "The name is taken",
    InvalidState = "invalid_state" 409 "The resource's status does not allow this request",
    NetworkInUse = "network_in_use" 409 "The network is in use",
    AddressExhausted = "address_exhausted" 409 "The network has no free address",
    PortTaken = "port_taken" 409 "The host port is taken",
    IdempotencyInProgress = "idempotency_in_progress" 409 "The first request with this Idempotency-Key is still in progress",
    PayloadTooLarge = "payload_too_large" 413 "The request body is too large",
    UnsupportedMediaType = "unsupported_media_type" 415 "The media type of the request body is not supported",
    ValidationFailed = "validation_failed" 422 "The request is not valid",
    IdempotencyKeyReused = "idempotency_key_reused" 422 "The Idempotency-Key was used for another request",
    RateLimited = "rate_limited" 429 "Too many requests",
    Internal = "internal" 500 "An internal error occurred",
    Unavailable = "unavailable" 503 "The service is temporarily unavailable",
}

/// Number of `errors` that a problem lists.
const ERRORS_MAX: usize = 100;
/// Length of a pointer or a detail within `errors`, in bytes; a longer one is cut and ends with `…`.
const ERROR_TEXT_BYTES_MAX: usize = 1024;

/// An error response: what `ProblemBody` shows, without the request's id.
#[derive(Clone, Debug)]
pub struct Problem {
    /// Why the request was refused or failed.
    pub code: Code,
    /// One sentence about this request.
    pub detail: String,
    /// What is wrong with the request, place by place; only for `validation_failed`.
    pub errors: Vec<Invalid>,
    /// The value of the `Allow` header; only for `method_not_allowed`.
    pub allow: Option<String>,
}

/// The body of every error response.
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemBody<'a> {
    /// Always `about:blank`: `code` tells problems apart.
    r#type: &'static str,
    /// What the code means.
    title: &'static str,
    /// The status of the response.
    status: u16,
    /// What is wrong with this request.
    detail: &'a str,
    code: Code,
    /// The id of the request, as in the `X-Request-Id` header.
    request_id: String,
    /// What is wrong with the request, place by place, the first 100; only for `validation_failed`.
    #[serde(skip_serializing_if = "<[Invalid]>::is_empty")]
    errors: &'a [Invalid],
}

impl Problem {
    /// Returns a problem of any code. `detail`: one sentence about this request.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), errors: Vec::new(), allow: None }
    }

    /// Returns `validation_failed` with the first `ERRORS_MAX` of these errors, their texts cut at `ERROR_TEXT_BYTES_MAX`:
    /// they quote the request, and without bounds the response could be many times as large as the request.
    pub fn invalid(mut errors: Vec<Invalid>) -> Self {
        let found = errors.len();
        errors.truncate(ERRORS_MAX);
        for error in &mut errors {
            cut(&mut error.pointer);
            cut(&mut error.detail);
        }
        let detail = match errors.as_slice() {
            [one] => format!("{}: {}", one.pointer, one.detail),
            shown if shown.len() < found => {
                format!("{found} values are not valid; errors lists the first {ERRORS_MAX}")
            }
            _ => format!("{found} values are not valid; errors lists them"),
        };
        Self { errors, ..Self::new(Code::ValidationFailed, detail) }
    }

    /// Returns `not_found`, the same for an unknown path, an unknown id and another tenant's resource.
    pub fn not_found() -> Self {
        Self::new(Code::NotFound, "there is no such resource")
    }

    /// Returns `method_not_allowed`. `allow`: the methods of the resource, as for the `Allow` header.
    pub fn method_not_allowed(allow: String) -> Self {
        Self { allow: Some(allow), ..Self::new(Code::MethodNotAllowed, "the Allow header lists the supported methods") }
    }

    /// Returns `internal`. The cause is logged where it is found, with the request's id, and not shown to the client.
    pub fn internal() -> Self {
        Self::new(
            Code::Internal,
            "the server failed to handle the request; its operator can find the cause by request_id",
        )
    }
}

fn cut(text: &mut String) {
    if text.len() > ERROR_TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(ERROR_TEXT_BYTES_MAX));
        text.push('…');
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.detail)
    }
}

impl std::error::Error for Problem {}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status_code());
        match self.code {
            Code::Unauthenticated => {
                response.insert_header((header::WWW_AUTHENTICATE, "Bearer"));
            }
            Code::Unavailable | Code::RateLimited => {
                response.insert_header((header::RETRY_AFTER, "1"));
            }
            _ => {}
        }
        if let Some(allow) = &self.allow {
            response.insert_header((header::ALLOW, allow.as_str()));
        }
        let body = ProblemBody {
            r#type: "about:blank",
            title: self.code.title(),
            status: self.code.status(),
            detail: &self.detail,
            code: self.code,
            request_id: request_id::current(),
            errors: &self.errors,
        };
        response.content_type("application/problem+json").body(serde_json::to_string(&body).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn validation_errors_are_bounded_in_number_and_length() {
        let wrong = |n: usize| vec![Invalid::new("/é".repeat(700), "invalid", "é".repeat(700)); n];

        let few = Problem::invalid(wrong(2));
        let many = Problem::invalid(wrong(10_000));

        assert_eq!((few.errors.len(), few.detail.as_str()), (2, "2 values are not valid; errors lists them"));
        assert_eq!(many.errors.len(), ERRORS_MAX);
        assert_eq!(many.detail, "10000 values are not valid; errors lists the first 100");
        let one = &many.errors[0];
        assert!(one.pointer.len() <= ERROR_TEXT_BYTES_MAX + '…'.len_utf8() && one.pointer.ends_with('…'));
        assert_eq!(one.detail, format!("{}…", "é".repeat(512)));
    }

    #[test]
    fn titles_in_nginx_conf_are_those_of_their_codes() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/nginx.conf");
        let config = std::fs::read_to_string(path).expect("nginx.conf");

        let problems =
            config.lines().filter_map(|line| line.split_once(r#"'"code":""#)?.1.split_once(r#"","title":""#));
        let titles: Vec<(&str, &str)> =
            problems.filter_map(|(code, rest)| Some((code, rest.split_once('"')?.0))).collect();

        assert!(titles.len() > 8, "only {titles:?}");
        for (code, title) in titles {
            let known = Code::ALL.iter().find(|known| known.as_str() == code).expect(code);
            assert_eq!(known.title(), title, "{code}");
        }
    }
}
