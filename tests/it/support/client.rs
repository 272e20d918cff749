//! A client of the HTTP API as a tenant would write one.

use std::time::Duration;

use reqwest::{Method, header::HeaderMap};
use serde_json::{Value, json};

#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    pub base: String,
    pub key: String,
}

/// A response of the API, read completely.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
    /// The body as JSON; `Null` when it is not JSON.
    pub body: Value,
}

impl Answer {
    /// Returns the code of the problem body, or an empty text.
    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Returns the response itself; panics with its body when the status differs.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text);
        self
    }

    /// Returns the id of the instance in a 202; panics with the body for any other status.
    #[track_caller]
    pub fn instance(&self) -> String {
        assert_eq!(self.status, 202, "{}", self.text);
        self.body["instance"]["id"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub fn job(&self) -> String {
        self.body["job_id"].as_str().unwrap().to_owned()
    }
}

impl Client {
    pub fn new(base: &str, key: &str) -> Self {
        let http = reqwest::Client::builder().timeout(Duration::from_secs(90)).build().unwrap();
        Self { http, base: base.into(), key: key.into() }
    }

    /// Returns a client of the same API with another key.
    pub fn with_key(&self, key: &str) -> Self {
        Self { key: key.into(), ..self.clone() }
    }

    /// Returns a request with the key, which the caller may change before `send`.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base)).header("X-API-Key", &self.key)
    }

    /// Returns a request without a key.
    pub fn anonymous(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base))
    }

    pub async fn get(&self, path: &str) -> Answer {
        send(self.request(Method::GET, path)).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        send(self.request(Method::POST, path).json(&body)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        send(self.request(Method::DELETE, path)).await
    }

    /// Waits until an instance has this status, or can no longer have it, and returns the instance.
    pub async fn wait_for(&self, id: &str, status: &str) -> Value {
        self.get(&format!("/instances/{id}?wait={status}&timeout=60")).await.expect(200).body
    }

    /// Waits until the job has finished, and returns it.
    pub async fn wait_for_job(&self, job: &str) -> Value {
        let job = self.get(&format!("/jobs/{job}?wait=true&timeout=60")).await.expect(200).body;
        assert_ne!(job["finished_at"], json!(null), "{job}");
        job
    }

    /// Creates an instance and waits until it runs; panics when it does not.
    pub async fn create_running(&self, body: Value) -> Value {
        let id = self.post("/instances", body).await.instance();
        let instance = self.wait_for(&id, "running").await;
        assert_eq!(instance["status"], "running", "{instance}");
        instance
    }

    /// Deletes an instance and waits until it is deleted; panics when it is not.
    pub async fn delete_fully(&self, id: &str) {
        self.delete(&format!("/instances/{id}")).await.expect(202);
        assert_eq!(self.wait_for(id, "deleted").await["status"], "deleted");
    }
}

/// Sends a request and reads the whole response.
pub async fn send(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let text = response.text().await.unwrap();
    let body = serde_json::from_str(&text).unwrap_or_default();
    Answer { status, headers, text, body }
}
