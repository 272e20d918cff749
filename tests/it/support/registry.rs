//! An image registry on loopback that has no image, and whose error message the test chooses.

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

pub struct Registry {
    /// The address, as `127.0.0.1:port`.
    pub address: String,
    task: tokio::task::JoinHandle<()>,
}

impl Registry {
    /// Starts a registry that answers every request for an image with 404 and this message.
    pub async fn refusing(message: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let body = json!({"errors": [{"code": "MANIFEST_UNKNOWN", "message": message}]}).to_string();
        let task = tokio::spawn(async move {
            // The set is dropped with the task, which ends all connections.
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(answer(client, body.clone()));
            }
        });
        Self { address, task }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves one request per connection. `None`: the client closed it.
async fn answer(mut client: TcpStream, refusal: String) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.ok()?);
    }
    let head = String::from_utf8_lossy(&head);
    let (status, body) =
        if head.split(' ').nth(1) == Some("/v2/") { ("200 OK", "{}") } else { ("404 Not Found", refusal.as_str()) };
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    client.write_all(answer.as_bytes()).await.ok()?;
    if !head.starts_with("HEAD ") {
        client.write_all(body.as_bytes()).await.ok()?;
    }
    client.shutdown().await.ok()
}
