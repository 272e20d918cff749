//! Between this program and a real Docker: an engine that has lost count of a network's endpoints, and a line that breaks.
//!
//! Engines before 28.1 lose count when containers of one network come and go at once, but not when they are asked to. So the
//! answer to the removal of a network is the one that such an engine gives; all else is the real one's.

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

/// An engine that has lost count of its networks' endpoints.
pub struct MiscountingEngine {
    pub host: String,
    task: JoinHandle<()>,
}

impl MiscountingEngine {
    /// In front of the engine at `unix://…`.
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

/// A line to the engine that can break just when a container is to be started.
pub struct DroppedStart {
    pub host: String,
    armed: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl DroppedStart {
    /// In front of the engine at `unix://…`.
    pub async fn before(docker_host: &str) -> Self {
        let armed = Arc::<AtomicBool>::default();
        let cuts = armed.clone();
        let (host, task) = serve(docker_host, move |head| {
            let is_start = head.starts_with("POST ") && head.split(' ').nth(1)?.ends_with("/start");
            // Nothing is answered, and the connection ends.
            (is_start && cuts.swap(false, Ordering::SeqCst)).then(String::new)
        })
        .await;
        Self { host, armed, task }
    }

    /// The next start does not reach the engine.
    pub fn arm(&self) {
        self.armed.store(true, Ordering::SeqCst);
    }

    /// Whether no start was cut off since.
    pub fn is_armed(&self) -> bool {
        self.armed.load(Ordering::SeqCst)
    }
}

impl Drop for DroppedStart {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Its own address, and the task that serves it. `instead`: the answer to a request of this head, where the engine is not asked.
async fn serve(
    docker_host: &str,
    instead: impl Fn(&str) -> Option<String> + Clone + Send + 'static,
) -> (String, JoinHandle<()>) {
    let socket = PathBuf::from(docker_host.strip_prefix("unix://").unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = format!("tcp://{}", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        // Dropped with the task, and all connections with it.
        let mut connections = JoinSet::new();
        while let Ok((client, _)) = listener.accept().await {
            connections.spawn(answer(client, socket.clone(), instead.clone()));
        }
    });
    (host, task)
}

/// One request: the engine is asked to close after it, so that the next one comes on its own connection.
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
