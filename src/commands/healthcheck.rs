//! `app healthcheck`: requests `/health/ready` from a listener of this machine, over HTTP/1.0.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::cli::HealthcheckArgs;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Succeeds when the listener answers 200.
///
/// # Errors
/// When nothing listens, when there is no answer within 3 s, or when the answer is another status.
pub async fn run(args: &HealthcheckArgs) -> anyhow::Result<ExitCode> {
    let address = reachable(args.worker.unwrap_or(args.api.listen));
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, request(address)).await.context("no answer within 3 s")??;
    let status = answer.split_whitespace().nth(1).unwrap_or_default().to_owned();
    if status != "200" {
        let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
        bail!("not ready: {status} {body}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the address to connect to: the loopback address for a listener on every address.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

async fn request(address: SocketAddr) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address).await.with_context(|| format!("nothing listens on {address}"))?;
    stream.write_all(b"GET /health/ready HTTP/1.0\r\nHost: localhost\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
