//! Between this program and Postgres: counts round trips, and can cut the line.
//!
//! A round trip is one `ReadyForQuery` of the server: it sends one for each `Sync` or simple query of the client.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
    task::JoinSet,
};
use tokio_postgres::config::{Config, Host};

pub struct Proxy {
    pub url: String,
    round_trips: Arc<AtomicU64>,
    cut: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    /// In front of the server of `database_url`.
    pub async fn start(database_url: &str) -> Self {
        let config: Config = database_url.parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (user, database) = (config.get_user().unwrap(), config.get_dbname().unwrap());
        let password = config.get_password().map(|p| format!(":{}", String::from_utf8_lossy(p))).unwrap_or_default();
        let url = format!("postgresql://{user}{password}@127.0.0.1:{port}/{database}?sslmode=disable");
        let round_trips = Arc::new(AtomicU64::new(0));
        let counter = round_trips.clone();
        let (cut, is_cut) = watch::channel(false);
        let task = tokio::spawn(async move {
            // Dropped with the task, and all connections with it.
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                // Messages pass in two pieces: the second must not wait for an acknowledgement of the first.
                client.set_nodelay(true).unwrap();
                let (config, counter, mut is_cut) = (config.clone(), counter.clone(), is_cut.clone());
                connections.spawn(async move {
                    tokio::select! {
                        _ = is_cut.wait_for(|cut| *cut) => None,
                        done = forward(client, config, counter) => done,
                    }
                });
            }
        });
        Self { url, round_trips, cut, task }
    }

    /// Round trips so far.
    pub fn round_trips(&self) -> u64 {
        self.round_trips.load(Ordering::SeqCst)
    }

    /// Closes all connections, and new ones at once, until `heal`.
    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    pub fn heal(&self) {
        self.cut.send_replace(false);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(client: TcpStream, config: Config, counter: Arc<AtomicU64>) -> Option<()> {
    let port = config.get_ports().first().copied().unwrap_or(5432);
    match config.get_hosts().first()? {
        Host::Unix(dir) => {
            let server = UnixStream::connect(dir.join(format!(".s.PGSQL.{port}"))).await.ok()?;
            let (from_server, to_server) = server.into_split();
            pump(client, from_server, to_server, counter).await
        }
        Host::Tcp(name) => {
            let (from_server, to_server) = TcpStream::connect((name.as_str(), port)).await.ok()?.into_split();
            pump(client, from_server, to_server, counter).await
        }
    }
}

async fn pump(
    client: TcpStream,
    mut from_server: impl AsyncReadExt + Unpin,
    mut to_server: impl AsyncWriteExt + Unpin,
    counter: Arc<AtomicU64>,
) -> Option<()> {
    let (mut from_client, mut to_client) = client.into_split();
    let up = tokio::io::copy(&mut from_client, &mut to_server);
    let down = async {
        loop {
            // Each message of the server: a type, a length that counts itself, and the rest.
            let mut head = [0u8; 5];
            from_server.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes(head[1..].try_into().ok()?);
            let mut rest = vec![0u8; usize::try_from(length).ok()?.checked_sub(4)?];
            from_server.read_exact(&mut rest).await.ok()?;
            if head[0] == b'Z' {
                counter.fetch_add(1, Ordering::SeqCst);
            }
            to_client.write_all(&head).await.ok()?;
            to_client.write_all(&rest).await.ok()?;
        }
    };
    tokio::select! {
        _ = up => None,
        done = down => done,
    }
}
