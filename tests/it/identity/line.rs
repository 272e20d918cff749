//! A line to a server that can be long (bytes take their time), held (they stay where they are) and cut (connections
//! end, new ones too).

use std::{path::PathBuf, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use tokio_postgres::config::{Config, Host};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    Open,
    /// Bytes travel that long, each way; more while others are on their way.
    Long(Duration),
    Held,
    Cut,
}

pub struct Line {
    pub port: u16,
    mode: watch::Sender<Mode>,
    task: JoinHandle<()>,
}

impl Line {
    /// To a server's socket in the file system.
    pub async fn to(socket: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (mode, seen) = watch::channel(Mode::Open);
        let task = tokio::spawn(async move {
            // Dropped with the task, and all connections with it.
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(carry(client, socket.clone(), seen.clone()));
            }
        });
        Self { port, mode, task }
    }

    /// To the Postgres of a URL, and the URL of this line.
    pub async fn to_postgres(url: &str) -> (Self, String) {
        let config: Config = url.parse().unwrap();
        let port = config.get_ports().first().copied().unwrap_or(5432);
        let Host::Unix(directory) = &config.get_hosts()[0] else { panic!("the tests' Postgres has a socket") };
        let line = Self::to(directory.join(format!(".s.PGSQL.{port}"))).await;
        let (user, database) = (config.get_user().unwrap(), config.get_dbname().unwrap());
        let url = format!("postgresql://{user}@127.0.0.1:{}/{database}?sslmode=disable", line.port);
        (line, url)
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(client: TcpStream, socket: PathBuf, mut mode: watch::Receiver<Mode>) {
    if *mode.borrow() == Mode::Cut {
        return;
    }
    let Ok(server) = UnixStream::connect(socket).await else { return };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (up, down) = (pump(from_client, to_server, mode.clone()), pump(from_server, to_client, mode.clone()));
    tokio::select! {
        _ = mode.wait_for(|mode| *mode == Mode::Cut) => {}
        _ = up => {}
        _ = down => {}
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut mode: watch::Receiver<Mode>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 || mode.wait_for(|mode| *mode != Mode::Held).await.is_err() {
            return Ok(());
        }
        let travel = *mode.borrow();
        if let Mode::Long(time) = travel {
            tokio::time::sleep(time).await;
        }
        to.write_all(&buffer[..n]).await?;
    }
}
