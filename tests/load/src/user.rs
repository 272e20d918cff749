//! One user: a key, a connection, an instance.

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

/// What a user remembers.
#[derive(Clone)]
struct Session {
    instance: String,
    /// Not deleted by us yet.
    lives: bool,
}

/// Reads the keys, one for each user.
pub fn read_keys() -> std::io::Result<()> {
    let path = std::env::var("APP_LOAD_KEYS").map_err(|_| std::io::Error::other("APP_LOAD_KEYS names no file"))?;
    let keys = std::fs::read_to_string(path)?.lines().map(ToOwned::to_owned).collect();
    KEYS.set(keys).map_err(|_| std::io::Error::other("the keys were read before"))
}

/// Takes a key, and makes the first instance.
pub async fn begin(user: &mut GooseUser) -> TransactionResult {
    let keys = KEYS.get().map_or(&[][..], Vec::as_slice);
    let mut key = HeaderValue::from_str(&keys[NEXT.fetch_add(1, Ordering::Relaxed) % keys.len()])
        .expect("a key is printable text");
    key.set_sensitive(true);
    let client = reqwest::Client::builder()
        .default_headers(HeaderMap::from_iter([("x-api-key".parse().expect("a header's name"), key)]))
        .timeout(Duration::from_secs(60))
        // Plain HTTP: roots of trust, a thousand times, would only fill the memory.
        .tls_certs_only([]);
    user.set_client_builder(client).await.map_err(Box::new)?;
    create(user).await
}

/// Asks how the instance is.
pub async fn poll(user: &mut GooseUser) -> TransactionResult {
    if let Some(session) = user.get_session_data::<Session>() {
        let path = format!("/instances/{}", session.instance);
        ask(user, GooseMethod::Get, &path, "/instances/{id}", 200, None).await?;
    }
    Ok(())
}

/// Lists the tenant's instances.
pub async fn list(user: &mut GooseUser) -> TransactionResult {
    ask(user, GooseMethod::Get, "/instances?limit=20", "/instances", 200, None).await.map(drop)
}

/// Deletes the instance; the next time, makes a new one.
pub async fn change(user: &mut GooseUser) -> TransactionResult {
    let Some(session) = user.get_session_data_mut::<Session>().filter(|session| session.lives) else {
        return create(user).await;
    };
    session.lives = false;
    let path = format!("/instances/{}", session.instance);
    ask(user, GooseMethod::Delete, &path, "/instances/{id}", 202, None).await.map(drop)
}

async fn create(user: &mut GooseUser) -> TransactionResult {
    let body = r#"{"image":"web:1","cpu_millis":100,"memory_mib":64}"#;
    if let Some(answer) = ask(user, GooseMethod::Post, "/instances", "/instances", 202, Some(body)).await? {
        // {"job_id":…,"instance":{"id":"…",…}}: no more of it is needed than the id.
        let id = answer.split_once("\"instance\":{\"id\":\"").and_then(|(_, rest)| rest.split('"').next());
        match id {
            Some(id) => user.set_session_data(Session { instance: id.into(), lives: true }),
            None => report::wrong("a 202 without an id"),
        }
    }
    Ok(())
}

/// One request, counted by route. `None`: it did not end as it should, which is counted, and the user goes on.
async fn ask(
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
    let asked = Instant::now();
    let answer = user.request(request).await?;
    // The whole answer is read: the connection is free for the next.
    let (status, text) = match answer.response {
        Ok(response) => (response.status().as_u16(), response.text().await.ok()),
        Err(_) => (0, None),
    };
    report::count(status, status == expected && text.is_some(), asked.elapsed());
    Ok(text.filter(|_| status == expected))
}
