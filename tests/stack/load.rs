//! Clients send requests while a step causes a fault. No accepted request may be lost and no GET may fail.
//!
//! A client repeats a request that got no response, as any good client does: a GET once, on a new connection; a POST
//! with the same `Idempotency-Key`. Repetitions are counted. A GET that fails twice and an unexpected status are failures.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use reqwest::Method;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::{
    client::Client,
    poll_until,
    stack::{Stack, demo_image},
};

const READERS: usize = 6;

#[derive(Default)]
struct Counters {
    gets: AtomicUsize,
    /// GETs without a response, which were sent again.
    retried: AtomicUsize,
    posts_repeated: AtomicUsize,
    accepted: Mutex<Vec<String>>,
    failures: Mutex<Vec<String>>,
    stop: AtomicBool,
}

pub struct Load {
    counters: Arc<Counters>,
    client: Client,
    /// An instance that no host can take, for requests that wait until it runs.
    unplaced: String,
    tasks: Vec<JoinHandle<()>>,
    started: Instant,
}

impl Load {
    /// Starts the clients and returns when requests of each kind succeed.
    pub async fn start(stack: &Stack) -> Self {
        let counters = Arc::<Counters>::default();
        let id = stack.client.post("/instances", json!({"image": demo_image()})).await.instance();
        stack.client.wait_for(&id, "running").await;
        counters.accepted.lock().unwrap().push(id.clone());
        let body = json!({"image": demo_image(), "placement": {"host": "nowhere"}});
        let unplaced = stack.client.post("/instances", body).await.instance();
        let paths = [format!("/instances/{id}"), "/instances?limit=20".into(), "/keys/self".into()];
        let wait = format!("/instances/{unplaced}?wait=running&timeout=3");
        let mut tasks = Vec::new();
        for n in 0..READERS {
            let path = paths[n % paths.len()].clone();
            tasks.push(tokio::spawn(read(counters.clone(), stack.client.clone(), path, Duration::from_millis(10))));
        }
        tasks.push(tokio::spawn(read(counters.clone(), stack.client.clone(), wait, Duration::ZERO)));
        tasks.push(tokio::spawn(create(counters.clone(), stack.client.clone())));
        let load = Self { counters, client: stack.client.clone(), unplaced, tasks, started: Instant::now() };
        load.wait_for_progress().await;
        load
    }

    /// Waits until more requests of each kind have succeeded.
    pub async fn wait_for_progress(&self) {
        let (gets, accepted) = (self.counters.gets.load(Relaxed), self.accepted());
        poll_until(120, "requests of each kind succeed", async || {
            let now = (self.counters.gets.load(Relaxed), self.accepted());
            if now.0 > gets + 200 && now.1 > accepted + 1 { Ok(()) } else { Err(now) }
        })
        .await;
    }

    fn accepted(&self) -> usize {
        self.counters.accepted.lock().unwrap().len()
    }

    /// Stops the clients and checks that every accepted instance runs and no GET failed. Returns how many GETs were
    /// sent again.
    pub async fn end(mut self, what: &str) -> usize {
        self.wait_for_progress().await;
        self.counters.stop.store(true, Relaxed);
        for task in std::mem::take(&mut self.tasks) {
            task.await.unwrap();
        }
        self.client.delete_fully(&self.unplaced).await;
        let counters = &self.counters;
        let accepted = counters.accepted.lock().unwrap().clone();
        let mut lost = Vec::new();
        for id in &accepted {
            let instance = self.client.wait_for(id, "running").await;
            if instance["status"] != "running" {
                lost.push(instance);
            }
        }
        for id in &accepted {
            self.client.delete(&format!("/instances/{id}")).await.expect(202);
        }
        for id in &accepted {
            assert_eq!(self.client.wait_for(id, "deleted").await["status"], "deleted");
        }
        let failures = counters.failures.lock().unwrap();
        eprintln!(
            "{what}: {} GETs in {:.0} s, {} failed, {} sent again; {} creates accepted, {} lost, {} sent again",
            counters.gets.load(Relaxed),
            self.started.elapsed().as_secs_f64(),
            failures.len(),
            counters.retried.load(Relaxed),
            accepted.len(),
            lost.len(),
            counters.posts_repeated.load(Relaxed),
        );
        assert!(
            failures.is_empty(),
            "{what}: {} failed:\n{}",
            failures.len(),
            failures[..failures.len().min(10)].join("\n")
        );
        assert!(lost.is_empty(), "{what}: lost: {lost:?}");
        counters.retried.load(Relaxed)
    }
}

impl Drop for Load {
    /// After a panic: stops the clients, so that they do not disturb the other steps.
    fn drop(&mut self) {
        self.counters.stop.store(true, Relaxed);
    }
}

async fn read(counters: Arc<Counters>, client: Client, path: String, pause: Duration) {
    let mut n = 0u64;
    while !counters.stop.load(Relaxed) {
        n += 1;
        for attempt in 0.. {
            // The repetition uses a new connection, because more than one idle connection may have been closed.
            let client = if attempt > 0 { Client::new(&client.base, &client.key) } else { client.clone() };
            let answer = client.request(Method::GET, &path).header("X-Request-Id", format!("load-{n}")).send().await;
            let problem = match answer {
                Ok(response) if response.status() == 200 => match response.bytes().await {
                    Ok(_) => break,
                    Err(error) => format!("{error:?}"),
                },
                // A response is final; only a request without one is repeated.
                Ok(response) => {
                    let (status, text) = (response.status(), response.text().await.unwrap_or_default());
                    counters.failures.lock().unwrap().push(format!("GET {path}: {status} {text}"));
                    break;
                }
                Err(error) => format!("{error:?}"),
            };
            if attempt > 0 {
                counters.failures.lock().unwrap().push(format!("GET {path}: {problem}"));
                break;
            }
            counters.retried.fetch_add(1, Relaxed);
        }
        counters.gets.fetch_add(1, Relaxed);
        tokio::time::sleep(pause).await;
    }
}

async fn create(counters: Arc<Counters>, client: Client) {
    let mut n = 0u64;
    let run = uuid::Uuid::now_v7();
    while !counters.stop.load(Relaxed) {
        n += 1;
        let key = format!("load-{run}-{n}");
        let body = json!({"image": demo_image(), "cpu_millis": 10, "memory_mib": 16});
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let answer =
                client.request(Method::POST, "/instances").header("Idempotency-Key", &key).json(&body).send().await;
            let problem = match answer {
                Ok(response) => {
                    let status = response.status().as_u16();
                    let text = response.text().await.unwrap_or_default();
                    if status == 202 {
                        let body: serde_json::Value = serde_json::from_str(&text).unwrap();
                        counters.accepted.lock().unwrap().push(body["instance"]["id"].as_str().unwrap().to_owned());
                        break;
                    }
                    format!("{status} {text}")
                }
                Err(error) => format!("{error:?}"),
            };
            // The outcome is unknown: the client repeats the request with the same key.
            let may_repeat = ["502", "503", "504", "reqwest"].iter().any(|start| problem.starts_with(start));
            if !may_repeat || Instant::now() > deadline {
                counters.failures.lock().unwrap().push(format!("POST: {problem}"));
                break;
            }
            counters.posts_repeated.fetch_add(1, Relaxed);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
}
