//! A proxy between this program and Postgres that counts round trips, can close all connections, and can route them to
//! another server.
//!
//! A round trip is one `ReadyForQuery` of the server: it sends one for each `Sync` or simple query of the client.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
    task::JoinSet,
};
use tokio_postgres::config::{Config, Host};

pub struct Proxy {
    pub url: String,
    round_trips: Arc<AtomicU64>,
    cut: watch::Sender<bool>,
    server: watch::Sender<Config>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    /// Starts a proxy in front of the server of `database_url`.
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
        let (server, servers) = watch::channel(config);
        let task = tokio::spawn(async move {
            // The set is dropped with the task, which ends all connections.
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                // Messages are forwarded in two pieces: the second must not wait for an acknowledgement of the first.
                client.set_nodelay(true).unwrap();
                let (servers, counter, mut is_cut) = (servers.clone(), counter.clone(), is_cut.clone());
                connections.spawn(async move {
                    tokio::select! {
                        _ = is_cut.wait_for(|cut| *cut) => None,
                        done = forward(client, servers, counter) => done,
                    }
                });
            }
        });
        Self { url, round_trips, cut, server, task }
    }

    /// Returns the number of round trips so far.
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

    /// Routes new connections and open ones to the same database of another server. As behind a pooler, the client of
    /// an open connection notices nothing, except that the server does not know its prepared statements.
    pub fn route_to(&self, database_url: &str) {
        self.server.send_replace(database_url.parse().unwrap());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

async fn connect(config: &Config) -> Option<(Reader, Writer)> {
    let port = config.get_ports().first().copied().unwrap_or(5432);
    Some(match config.get_hosts().first()? {
        Host::Unix(dir) => {
            let (reader, writer) = UnixStream::connect(dir.join(format!(".s.PGSQL.{port}"))).await.ok()?.into_split();
            (Box::new(reader), Box::new(writer))
        }
        Host::Tcp(name) => {
            let (reader, writer) = TcpStream::connect((name.as_str(), port)).await.ok()?.into_split();
            (Box::new(reader), Box::new(writer))
        }
    })
}

async fn forward(client: TcpStream, mut servers: watch::Receiver<Config>, counter: Arc<AtomicU64>) -> Option<()> {
    let (mut from_client, mut to_client) = client.into_split();
    // The startup message, with user and database: a length that includes itself, and the rest.
    let mut greeting = vec![0u8; 4];
    from_client.read_exact(&mut greeting).await.ok()?;
    greeting.resize(usize::try_from(u32::from_be_bytes(greeting[..].try_into().ok()?)).ok()?, 0);
    from_client.read_exact(&mut greeting[4..]).await.ok()?;
    let mut is_open = false;
    loop {
        let config = servers.borrow_and_update().clone();
        let (mut from_server, mut to_server) = connect(&config).await?;
        to_server.write_all(&greeting).await.ok()?;
        // The client has had the startup responses of the previous server: those of this one are dropped here.
        while is_open && message(&mut from_server).await?[0] != b'Z' {}
        let down = async {
            loop {
                let message = message(&mut from_server).await?;
                if message[0] == b'Z' {
                    counter.fetch_add(1, Ordering::SeqCst);
                }
                to_client.write_all(&message).await.ok()?;
            }
        };
        tokio::select! {
            _ = servers.changed() => is_open = true,
            _ = tokio::io::copy(&mut from_client, &mut to_server) => return None,
            done = down => return done,
        }
    }
}

/// Reads a message of the server: a type, a length that includes itself, and the rest.
async fn message(from: &mut Reader) -> Option<Vec<u8>> {
    let mut message = vec![0u8; 5];
    from.read_exact(&mut message).await.ok()?;
    let length = u32::from_be_bytes(message[1..].try_into().ok()?);
    message.resize(usize::try_from(length).ok()?.checked_add(1)?, 0);
    from.read_exact(&mut message[5..]).await.ok()?;
    Some(message)
}
