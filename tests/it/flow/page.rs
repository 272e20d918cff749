//! Fetches a page through a published port.

use std::time::Duration;

use serde_json::Value;

use crate::support::poll_until;

/// Returns the page behind the instance's first published port, once its server listens.
pub async fn page(instance: &Value) -> String {
    let port = instance["ports"][0]["host"].as_u64().unwrap();
    let url = format!("http://127.0.0.1:{port}/");
    poll_until(&format!("a page at {url}"), Duration::from_secs(60), async || {
        reqwest::get(&url).await.ok()?.error_for_status().ok()?.text().await.ok()
    })
    .await
}
