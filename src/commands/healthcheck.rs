//! `app healthcheck`: asks a listener of this machine whether it is ready.

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

use crate::{cli::HealthcheckArgs, config::setting};

pub async fn run(args: &HealthcheckArgs) -> anyhow::Result<ExitCode> {
    let mut address = match args.worker.trim() {
        "" => setting("APP_LISTEN", &args.listen, "0.0.0.0:8080").listen()?,
        worker => setting("APP_HEALTHCHECK_WORKER", worker, "127.0.0.1:9091").listen()?,
    };
    // What listens on every address is asked on loopback.
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    let answer = tokio::time::timeout(Duration::from_secs(3), ask(address)).await.context("no answer within 3 s")??;
    let status = answer.split_whitespace().nth(1).unwrap_or_default().to_owned();
    if status != "200" {
        let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
        bail!("not ready: {status} {body}");
    }
    Ok(ExitCode::SUCCESS)
}

async fn ask(address: SocketAddr) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address).await.with_context(|| format!("nothing listens on {address}"))?;
    stream.write_all(b"GET /health/ready HTTP/1.0\r\nHost: localhost\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.take(64 * 1024).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
