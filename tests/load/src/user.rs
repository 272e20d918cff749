//! One user: its API key, its connection and its instance.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use goose::prelude::*;
use reqwest::header::{HeaderMap, HeaderValue};

use crate::report;

static KEYS: OnceLock<Vec<String>> = OnceLock::new();
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// The state of a user.
#[derive(Clone)]
struct Session {
    instance: String,
    /// This user has not deleted the instance.
    exists: bool,
}

/// Reads the keys from the file `APP_LOAD_KEYS`.
///
/// # Errors
/// The variable is not set, the file cannot be read, or this was called before.
pub fn read_keys() -> std::io::Result<()> {
    let path = std::env::var("APP_LOAD_KEYS").map_err(|_| std::io::Error::other("APP_LOAD_KEYS is not set"))?;
    let keys = std::fs::read_to_string(path)?.lines().map(ToOwned::to_owned).collect();
    KEYS.set(keys).map_err(|_| std::io::Error::other("the keys were read before"))
}

/// Takes a key and creates the first instance.
pub async fn start(user: &mut GooseUser) -> TransactionResult {
    let keys = KEYS.get().map_or(&[][..], Vec::as_slice);
    let mut key = HeaderValue::from_str(&keys[NEXT.fetch_add(1, Ordering::Relaxed) % keys.len()])
        .expect("a key is printable text");
    key.set_sensitive(true);
    let client = reqwest::Client::builder()
        .default_headers(HeaderMap::from_iter([("x-api-key".parse().expect("a header's name"), key)]))
        .timeout(Duration::from_secs(60))
        // The load uses plain HTTP; a thousand copies of the root certificates would only take memory.
        .tls_certs_only([]);
    user.set_client_builder(client).await.map_err(Box::new)?;
    create(user).await
}

/// Reads the user's instance.
pub async fn poll(user: &mut GooseUser) -> TransactionResult {
    if let Some(session) = user.get_session_data::<Session>() {
        let path = format!("/instances/{}", session.instance);
        request(user, GooseMethod::Get, &path, "/instances/{id}", 200, None).await?;
    }
    Ok(())
}

/// Lists the tenant's instances.
pub async fn list(user: &mut GooseUser) -> TransactionResult {
    request(user, GooseMethod::Get, "/instances?limit=20", "/instances", 200, None).await.map(drop)
}

/// Deletes the user's instance, or creates a new one if it was deleted.
pub async fn change(user: &mut GooseUser) -> TransactionResult {
    let Some(session) = user.get_session_data_mut::<Session>().filter(|session| session.exists) else {
        return create(user).await;
    };
    session.exists = false;
    let path = format!("/instances/{}", session.instance);
    request(user, GooseMethod::Delete, &path, "/instances/{id}", 202, None).await.map(drop)
}

async fn create(user: &mut GooseUser) -> TransactionResult {
    let body = r#"{"image":"web:1","cpu_millis":100,"memory_mib":64}"#;
    if let Some(body) = request(user, GooseMethod::Post, "/instances", "/instances", 202, Some(body)).await? {
        // The body is {"job_id":…,"instance":{"id":"…",…}}, of which only the id is needed.
        let id = body.split_once("\"instance\":{\"id\":\"").and_then(|(_, rest)| rest.split('"').next());
        match id {
            Some(id) => user.set_session_data(Session { instance: id.into(), exists: true }),
            None => report::wrong("status 202, but no id of an instance"),
        }
    }
    Ok(())
}

/// Sends one request, which is counted under its route. Returns the body, or `None` when the response was not the
/// expected one; this is counted, and the user continues.
async fn request(
    user: &mut GooseUser,
    method: GooseMethod,
    path: &str,
    route: &str,
    expected: u16,
    body: Option<&'static str>,
) -> Result<Option<String>, Box<TransactionError>> {
    let mut builder = user.get_request_builder(&method, path)?;
    if let Some(body) = body {
        builder = builder.header("content-type", "application/json").body(body);
    }
    let request = GooseRequest::builder()
        .method(method)
        .path(path)
        .name(route)
        .set_request_builder(builder)
        .expect_status_code(expected)
        .build();
    let sent_at = Instant::now();
    let sent = user.request(request).await?;
    // The whole body is read, so that the connection is free for the next request.
    let (status, text) = match sent.response {
        Ok(response) => (response.status().as_u16(), response.text().await.ok()),
        Err(_) => (0, None),
    };
    report::count(status, status == expected && text.is_some(), sent_at.elapsed());
    Ok(text.filter(|_| status == expected))
}
