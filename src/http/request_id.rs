//! `X-Request-Id`: the caller's, if it is sane, or a new one; on every response and in every problem.

use actix_web::{
    Error,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    error::InternalError,
    http::header::{HeaderName, HeaderValue},
    middleware::Next,
};
use uuid::Uuid;

const NAME: HeaderName = HeaderName::from_static("x-request-id");

tokio::task_local! {
    static CURRENT: String;
}

/// The id of the request being answered.
pub fn current() -> String {
    CURRENT.try_with(Clone::clone).unwrap_or_default()
}

/// Gives a request its id. An error from inside becomes its response here, where the id is known: actix would make it
/// outside of all middlewares.
///
/// # Errors
/// Those from inside, with the response that has the id.
pub async fn middleware<B: MessageBody>(request: ServiceRequest, next: Next<B>) -> Result<ServiceResponse<B>, Error> {
    let id = request
        .headers()
        .get(&NAME)
        .and_then(|value| value.to_str().ok())
        .filter(|text| is_sane(text))
        .map_or_else(|| Uuid::now_v7().to_string(), ToOwned::to_owned);
    let value = HeaderValue::from_str(&id).unwrap_or_else(|_| HeaderValue::from_static("-"));
    CURRENT
        .scope(id, async {
            match next.call(request).await {
                Ok(mut response) => {
                    response.headers_mut().insert(NAME, value);
                    Ok(response)
                }
                Err(error) => {
                    let mut response = error.error_response();
                    response.headers_mut().insert(NAME, value);
                    Err(InternalError::from_response(error, response).into())
                }
            }
        })
        .await
}

fn is_sane(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sane_ids_are_taken_over() {
        assert!(is_sane("a-1.B_c") && is_sane(&"x".repeat(128)));
        assert!(!is_sane("") && !is_sane(&"x".repeat(129)) && !is_sane("a b") && !is_sane("a\r\nb"));
    }
}
