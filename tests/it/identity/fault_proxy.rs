//! A proxy to a server with four modes: it forwards bytes, delays them, stalls (bytes stay where they are), or is cut
//! (connections end, and new ones too). It can also lose its open connections: these stall without a limit while new
//! ones work.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

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
    /// Bytes are delayed by this much in each direction, and by more while others are being forwarded.
    Delayed(Duration),
    Stalled,
    Cut,
}

pub struct FaultProxy {
    pub port: u16,
    state: watch::Sender<State>,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

#[derive(Clone, Copy)]
struct State {
    mode: Mode,
    /// The number of the first connections that are lost.
    lost: usize,
}

impl FaultProxy {
    /// Starts a proxy to a server's socket in the file system.
    pub async fn to(socket: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (state, seen) = watch::channel(State { mode: Mode::Open, lost: 0 });
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        let task = tokio::spawn(async move {
            // The set is dropped with the task, which ends all connections.
            let mut carried = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let n = count.fetch_add(1, Ordering::SeqCst);
                carried.spawn(carry(client, socket.clone(), n, seen.clone()));
            }
        });
        Self { port, state, connections, task }
    }

    /// Starts a proxy to the Postgres of a URL, and returns it with the URL of the proxy.
    pub async fn to_postgres(url: &str) -> (Self, String) {
        let config: Config = url.parse().unwrap();
        let port = config.get_ports().first().copied().unwrap_or(5432);
        let Host::Unix(directory) = &config.get_hosts()[0] else { panic!("the tests' Postgres has a socket") };
        let proxy = Self::to(directory.join(format!(".s.PGSQL.{port}"))).await;
        let (user, database) = (config.get_user().unwrap(), config.get_dbname().unwrap());
        let url = format!("postgresql://{user}@127.0.0.1:{}/{database}?sslmode=disable", proxy.port);
        (proxy, url)
    }

    pub fn set(&self, mode: Mode) {
        self.state.send_modify(|state| state.mode = mode);
    }

    /// Loses the open connections: they stay open and forward nothing any more, as in a network that forgot them.
    pub fn lose(&self) {
        self.state.send_modify(|state| state.lost = self.connections.load(Ordering::SeqCst));
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(client: TcpStream, socket: PathBuf, n: usize, mut state: watch::Receiver<State>) {
    if state.borrow().mode == Mode::Cut {
        return;
    }
    let Ok(server) = UnixStream::connect(socket).await else { return };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (up, down) = (pump(from_client, to_server, n, state.clone()), pump(from_server, to_client, n, state.clone()));
    tokio::select! {
        _ = state.wait_for(|state| state.mode == Mode::Cut) => {}
        _ = up => {}
        _ = down => {}
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    n: usize,
    mut state: watch::Receiver<State>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 || state.wait_for(|state| state.mode != Mode::Stalled && n >= state.lost).await.is_err() {
            return Ok(());
        }
        let mode = state.borrow().mode;
        if let Mode::Delayed(time) = mode {
            tokio::time::sleep(time).await;
        }
        to.write_all(&buffer[..read]).await?;
    }
}
