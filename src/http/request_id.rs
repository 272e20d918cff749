//! Gives each request an id: that of its `X-Request-Id` header when it is well-formed (1 to 128 characters of
//! `A-Za-z0-9._-`), else a new UUIDv7. The id is in the header of every response, in every problem, on every log line of
//! the request, and on the lines of the jobs that it causes.

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

/// Returns the id of the request that this task answers; an empty text outside of one.
pub fn current() -> String {
    CURRENT.try_with(Clone::clone).unwrap_or_default()
}

/// Gives a request its id and adds the id to the response. An error is turned into its response here, where the id is known;
/// actix would do it outside of all middlewares.
///
/// # Errors
/// Those of the inner services, each with the response that carries the id.
pub async fn middleware<B: MessageBody>(request: ServiceRequest, next: Next<B>) -> Result<ServiceResponse<B>, Error> {
    let id = request
        .headers()
        .get(&NAME)
        .and_then(|value| value.to_str().ok())
        .filter(|text| is_well_formed(text))
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

fn is_well_formed(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn well_formed_id_is_a_header_and_has_no_separators(text in any::<String>(), id in "[A-Za-z0-9._-]{1,128}") {
            prop_assert!(is_well_formed(&id));
            prop_assert!(!is_well_formed(&text) || HeaderValue::from_str(&text).is_ok() && !text.contains(['/', ' ', '"']));
        }
    }

    #[test]
    fn only_well_formed_ids_of_clients_are_used() {
        for id in ["a-1.B_c", &"x".repeat(128)] {
            assert!(is_well_formed(id), "{id}");
        }
        for id in ["", &"x".repeat(129), "a b", "a\r\nb", "é"] {
            assert!(!is_well_formed(id), "{id:?}");
        }
    }
}
