//! Errors as RFC 9457 problem details, of a closed set of codes.

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
        /// The closed set of error codes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ToSchema)]
        #[schema(as = ProblemCode)]
        pub enum Code { $(#[schema(rename = $text)] $name),* }

        impl Code {
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }

            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status),* }
            }

            pub const fn title(self) -> &'static str {
                match self { $(Self::$name => $title),* }
            }
        }
    };
}

codes! {
    MalformedRequest = "malformed_request" 400 "The request could not be read",
    Unauthenticated = "unauthenticated" 401 "A valid API key is required",
    Forbidden = "forbidden" 403 "The API key does not allow this",
    QuotaExceeded = "quota_exceeded" 403 "The tenant's quota is used up",
    NotFound = "not_found" 404 "There is no such thing",
    MethodNotAllowed = "method_not_allowed" 405 "The resource does not have this method",
    NameTaken = "name_taken" 409 "The name is taken",
    InvalidState = "invalid_state" 409 "Not possible in the present state",
    NetworkInUse = "network_in_use" 409 "The network is in use",
    AddressExhausted = "address_exhausted" 409 "The network has no free address",
    PortTaken = "port_taken" 409 "The host port is taken",
    IdempotencyInProgress = "idempotency_in_progress" 409 "The first request with this key is still in progress",
    PayloadTooLarge = "payload_too_large" 413 "The body is too large",
    UnsupportedMediaType = "unsupported_media_type" 415 "The body's media type is not supported",
    ValidationFailed = "validation_failed" 422 "The request is not valid",
    IdempotencyKeyReused = "idempotency_key_reused" 422 "The key was used for another request",
    RateLimited = "rate_limited" 429 "Too many requests",
    Internal = "internal" 500 "Something went wrong here",
    Unavailable = "unavailable" 503 "Not available at the moment",
}

/// Of the things that are wrong with a request this many are listed.
const ERRORS_MAX: usize = 100;
/// A longer pointer or detail is cut, and ends with `…`; in bytes.
const ERROR_TEXT_MAX: usize = 1024;

/// An error on its way to a client.
#[derive(Clone, Debug)]
pub struct Problem {
    pub code: Code,
    pub detail: String,
    pub errors: Vec<Invalid>,
    /// For 405.
    pub allow: Option<String>,
}

/// The body of every error.
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemBody<'a> {
    /// Always `about:blank`: the code tells.
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: &'a str,
    #[schema(value_type = Code)]
    code: &'static str,
    request_id: String,
    /// Only for `validation_failed`.
    #[serde(skip_serializing_if = "<[Invalid]>::is_empty")]
    errors: &'a [Invalid],
}

impl Problem {
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), errors: Vec::new(), allow: None }
    }

    /// 422 with the first `ERRORS_MAX` of these errors, their texts cut at `ERROR_TEXT_MAX`: they quote the request, and
    /// an answer must not be many times as large.
    pub fn invalid(mut errors: Vec<Invalid>) -> Self {
        let many = errors.len();
        errors.truncate(ERRORS_MAX);
        for error in &mut errors {
            cut(&mut error.pointer);
            cut(&mut error.detail);
        }
        let detail = match errors.as_slice() {
            [one] => format!("{}: {}", one.pointer, one.detail),
            shown if shown.len() < many => format!("{many} things are wrong; errors has the first {ERRORS_MAX}"),
            _ => format!("{many} things are wrong; see errors"),
        };
        Self { errors, ..Self::new(Code::ValidationFailed, detail) }
    }

    pub fn not_found() -> Self {
        Self::new(Code::NotFound, "no such resource")
    }

    pub fn method_not_allowed(allow: String) -> Self {
        Self { allow: Some(allow), ..Self::new(Code::MethodNotAllowed, "see the Allow header") }
    }
}

fn cut(text: &mut String) {
    if text.len() > ERROR_TEXT_MAX {
        text.truncate(text.floor_char_boundary(ERROR_TEXT_MAX));
        text.push('…');
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.detail)
    }
}

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
            code: self.code.as_str(),
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

        assert_eq!((few.errors.len(), few.detail.as_str()), (2, "2 things are wrong; see errors"));
        assert_eq!(many.errors.len(), ERRORS_MAX);
        assert_eq!(many.detail, "10000 things are wrong; errors has the first 100");
        let one = &many.errors[0];
        assert!(one.pointer.len() <= ERROR_TEXT_MAX + '…'.len_utf8() && one.pointer.ends_with('…'));
        assert_eq!(one.detail, format!("{}…", "é".repeat(512)));
    }
}
