//! Sends requests byte for byte, as no normal HTTP client would.

use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{Answer, Client};

const WITHIN: Duration = Duration::from_secs(30);

/// Opens a connection to the API.
pub async fn connect(client: &Client) -> TcpStream {
    TcpStream::connect(client.base.trim_start_matches("http://")).await.unwrap()
}

/// Returns the head of a request with the client's key that asks to close the connection; `more`: further lines.
pub fn head(client: &Client, line: &str, more: &str) -> Vec<u8> {
    format!("{line} HTTP/1.1\r\nHost: api\r\nConnection: close\r\nX-API-Key: {}\r\n{more}\r\n", client.key).into_bytes()
}

/// Sends bytes on a connection of its own, and returns what the server sends until it closes it.
pub async fn exchange(client: &Client, request: &[u8]) -> Answer {
    let mut stream = connect(client).await;
    // The server may respond and close before it has read everything.
    let _ = stream.write_all(request).await;
    read(stream).await
}

/// Returns the one response on a connection that the server closes afterwards.
pub async fn read(mut stream: TcpStream) -> Answer {
    let mut bytes = Vec::new();
    // A reset after the response (unread bytes at the server) is ignored.
    let _ = tokio::time::timeout(WITHIN, stream.read_to_end(&mut bytes)).await.expect("an answer");
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    answer(head, body)
}

/// Returns the responses on a connection until the server closes it. After `most` responses the client closes its side,
/// and nothing more may arrive.
pub async fn read_all(stream: &mut TcpStream, most: usize) -> Vec<Answer> {
    let mut bytes = Vec::new();
    let reading = async {
        // A reset after the last response is ignored.
        while answers(&bytes).len() < most && matches!(stream.read_buf(&mut bytes).await, Ok(1..)) {}
        let _ = stream.shutdown().await;
        let _ = stream.read_to_end(&mut bytes).await;
    };
    tokio::time::timeout(WITHIN, reading).await.expect("answers, and then the end of the connection");
    answers(&bytes)
}

/// Returns the responses that have arrived in full, each with a `Content-Length`.
pub fn answers(bytes: &[u8]) -> Vec<Answer> {
    let mut rest = std::str::from_utf8(bytes).unwrap();
    let mut all = Vec::new();
    while let Some((head, after)) = rest.split_once("\r\n\r\n") {
        let shown = answer(head, "");
        let length: usize = shown.header("content-length").parse().unwrap();
        let Some(body) = after.get(..length) else { break };
        all.push(answer(head, body));
        rest = &after[length..];
    }
    all
}

fn answer(head: &str, body: &str) -> Answer {
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let mut headers = HeaderMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        headers.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
    }
    Answer { status, headers, text: body.into(), body: serde_json::from_str(body).unwrap_or_default() }
}
