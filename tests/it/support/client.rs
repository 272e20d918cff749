//! A client of the API as a tenant would write one.

use std::time::Duration;

use reqwest::{Method, header::HeaderMap};
use serde_json::{Value, json};

#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    pub base: String,
    pub key: String,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
    /// `Null` when it is not JSON.
    pub body: Value,
}

impl Answer {
    /// The problem's code.
    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Itself, or a panic that shows it.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text);
        self
    }

    /// The 202's instance id.
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

    /// The same API with another key.
    pub fn with_key(&self, key: &str) -> Self {
        Self { key: key.into(), ..self.clone() }
    }

    /// A request with the key, to be changed before `send`.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base)).header("X-API-Key", &self.key)
    }

    /// The same without a key.
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

    /// Asks for an instance and answers it when it has this status, or can no longer have it.
    pub async fn wait_for(&self, id: &str, status: &str) -> Value {
        self.get(&format!("/instances/{id}?wait={status}&timeout=60")).await.expect(200).body
    }

    /// The job once it has ended.
    pub async fn wait_for_job(&self, job: &str) -> Value {
        let job = self.get(&format!("/jobs/{job}?wait=true&timeout=60")).await.expect(200).body;
        assert_ne!(job["finished_at"], json!(null), "{job}");
        job
    }

    /// Asks for an instance and demands that it runs.
    pub async fn create_running(&self, body: Value) -> Value {
        let id = self.post("/instances", body).await.instance();
        let instance = self.wait_for(&id, "running").await;
        assert_eq!(instance["status"], "running", "{instance}");
        instance
    }

    /// Deletes an instance and demands that it is gone.
    pub async fn delete_fully(&self, id: &str) {
        self.delete(&format!("/instances/{id}")).await.expect(202);
        assert_eq!(self.wait_for(id, "deleted").await["status"], "deleted");
    }
}

/// Sends a request and takes the whole answer.
pub async fn send(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let text = response.text().await.unwrap();
    let body = serde_json::from_str(&text).unwrap_or_default();
    Answer { status, headers, text, body }
}
