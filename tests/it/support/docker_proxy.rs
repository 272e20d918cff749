//! Proxies between this program and a real Docker engine that inject two faults: an engine that has lost count of a
//! network's endpoints, and a connection that breaks when a container is to be started.
//!
//! Engines before 28.1 lose count when containers of one network are created and removed concurrently, which a test
//! cannot provoke reliably. So the proxy gives the response of such an engine when a network is removed, and passes
//! everything else through.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    task::{JoinHandle, JoinSet},
};

/// A proxy that behaves like an engine which has lost count of its networks' endpoints.
pub struct MiscountingEngine {
    pub host: String,
    task: JoinHandle<()>,
}

impl MiscountingEngine {
    /// Starts a proxy in front of the engine at `unix://…`.
    pub async fn before(docker_host: &str) -> Self {
        let (host, task) = serve(docker_host, miscount).await;
        Self { host, task }
    }
}

impl Drop for MiscountingEngine {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A proxy that can close the connection of one request to start a container.
pub struct DroppedStart {
    pub host: String,
    armed: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl DroppedStart {
    /// Starts a proxy in front of the engine at `unix://…`.
    pub async fn before(docker_host: &str) -> Self {
        let armed = Arc::<AtomicBool>::default();
        let cuts = armed.clone();
        let (host, task) = serve(docker_host, move |head| {
            let is_start = head.starts_with("POST ") && head.split(' ').nth(1)?.ends_with("/start");
            // The client gets an empty response, and the connection ends.
            (is_start && cuts.swap(false, Ordering::SeqCst)).then(String::new)
        })
        .await;
        Self { host, armed, task }
    }

    /// Makes the next start request fail before it reaches the engine.
    pub fn arm(&self) {
        self.armed.store(true, Ordering::SeqCst);
    }

    /// Returns whether no start request has failed since `arm`.
    pub fn is_armed(&self) -> bool {
        self.armed.load(Ordering::SeqCst)
    }
}

impl Drop for DroppedStart {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Returns the proxy's address and the task that serves it. `instead` returns a response for the head of a request that
/// must not reach the engine.
async fn serve(
    docker_host: &str,
    instead: impl Fn(&str) -> Option<String> + Clone + Send + 'static,
) -> (String, JoinHandle<()>) {
    let socket = PathBuf::from(docker_host.strip_prefix("unix://").unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = format!("tcp://{}", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        // The set is dropped with the task, which ends all connections.
        let mut connections = JoinSet::new();
        while let Ok((client, _)) = listener.accept().await {
            connections.spawn(answer(client, socket.clone(), instead.clone()));
        }
    });
    (host, task)
}

/// Serves one request. The header asks the engine to close the connection after it, so that each request opens its own.
async fn answer(mut client: TcpStream, socket: PathBuf, instead: impl Fn(&str) -> Option<String>) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).ok()?;
    if let Some(answer) = instead(&head) {
        return client.write_all(answer.as_bytes()).await.ok();
    }
    let mut engine = UnixStream::connect(socket).await.ok()?;
    engine.write_all(head.replacen("\r\n", "\r\nConnection: close\r\n", 1).as_bytes()).await.ok()?;
    tokio::io::copy_bidirectional(&mut client, &mut engine).await.ok()?;
    Some(())
}

fn miscount(head: &str) -> Option<String> {
    let body = r#"{"message":"error while removing network: network app id 0a1b has active endpoints"}"#;
    let length = body.len();
    (head.starts_with("DELETE ") && head.contains("/networks/")).then(|| {
        format!(
            "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
    })
}
