//! An HTTP client with one HTTP/1.1 connection that is kept alive. It uses little processor time: it has to send
//! requests faster than the server answers.

use std::time::Duration;

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

pub struct RawClient {
    stream: TcpStream,
    address: String,
    buffer: Vec<u8>,
}

/// A response, read completely.
pub struct Reply {
    pub status: u16,
    head: String,
    body: Vec<u8>,
}

impl Reply {
    /// The body as JSON; `Null` when it is not JSON.
    pub fn body(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// Returns a header by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }

    /// Returns the response itself; panics with its text when the status differs.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}{}", self.head, String::from_utf8_lossy(&self.body));
        self
    }
}

impl RawClient {
    /// Connects to `http://HOST:PORT`.
    pub async fn connect(base: &str) -> Self {
        let address = base.strip_prefix("http://").unwrap().to_owned();
        let stream = TcpStream::connect(&address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, address, buffer: Vec::with_capacity(4096) }
    }

    pub async fn get(&mut self, path: &str, key: &str) -> Reply {
        self.send("GET", path, key, None).await
    }

    pub async fn send(&mut self, method: &str, path: &str, key: &str, body: Option<&Value>) -> Reply {
        let body = body.map(Value::to_string);
        let length = body.as_ref().map_or(0, String::len);
        let kind = if body.is_some() { "Content-Type: application/json\r\n" } else { "" };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nX-API-Key: {key}\r\n{kind}Content-Length: {length}\r\n\r\n{}",
            self.address,
            body.unwrap_or_default()
        );
        let exchange = async {
            self.stream.write_all(request.as_bytes()).await?;
            self.read().await
        };
        tokio::time::timeout(Duration::from_secs(60), exchange).await.expect("a response within a minute").unwrap()
    }

    async fn read(&mut self) -> std::io::Result<Reply> {
        self.buffer.clear();
        let head = loop {
            if let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            self.more().await?;
        };
        let text = String::from_utf8_lossy(&self.buffer[..head]).into_owned();
        let mut reply = Reply { status: text[9..12].parse().unwrap(), head: text, body: Vec::new() };
        let length = reply.header("content-length").map_or(0, |length| length.parse::<usize>().unwrap());
        while self.buffer.len() < head + length {
            self.more().await?;
        }
        reply.body = self.buffer[head..head + length].to_vec();
        Ok(reply)
    }

    async fn more(&mut self) -> std::io::Result<()> {
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}
