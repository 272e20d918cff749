//! Between this program and a real Docker: an engine that has lost count of a network's endpoints.
//!
//! Engines before 28.1 do that when containers of one network come and go at once, but not when they are asked to. So the
//! answer to the removal of a network is the one that such an engine gives; all else is the real one's.

use std::path::PathBuf;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    task::JoinSet,
};

pub struct Miscounting {
    pub host: String,
    task: tokio::task::JoinHandle<()>,
}

impl Miscounting {
    /// In front of the engine at `unix://…`.
    pub async fn before(docker_host: &str) -> Self {
        let socket = PathBuf::from(docker_host.strip_prefix("unix://").unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = format!("tcp://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move {
            // Dropped with the task, and all connections with it.
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(answer(client, socket.clone()));
            }
        });
        Self { host, task }
    }
}

impl Drop for Miscounting {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One request: the engine is asked to close after it, so that the next one comes on its own connection.
async fn answer(mut client: TcpStream, socket: PathBuf) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).ok()?;
    if head.starts_with("DELETE ") && head.contains("/networks/") {
        let body = r#"{"message":"error while removing network: network app id 0a1b has active endpoints"}"#;
        let length = body.len();
        let answer = format!(
            "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        return client.write_all(answer.as_bytes()).await.ok();
    }
    let mut engine = UnixStream::connect(socket).await.ok()?;
    engine.write_all(head.replacen("\r\n", "\r\nConnection: close\r\n", 1).as_bytes()).await.ok()?;
    tokio::io::copy_bidirectional(&mut client, &mut engine).await.ok()?;
    Some(())
}
