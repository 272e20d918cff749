//! Clients at work while something breaks, and what they were told: no accepted request may be lost, no GET may fail.
//!
//! A client repeats what got no answer (a GET as it is, on a new connection; a POST with its `Idempotency-Key`), as any
//! good one does; that is counted. A GET repeated once without success, and any status that nobody should see, is a failure.

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
    eventually,
    stack::{Stack, demo_image},
};

const READERS: usize = 6;

#[derive(Default)]
struct Seen {
    gets: AtomicUsize,
    /// GETs that got no answer at first.
    retried: AtomicUsize,
    posts_repeated: AtomicUsize,
    accepted: Mutex<Vec<String>>,
    failures: Mutex<Vec<String>>,
    stop: AtomicBool,
}

pub struct Load {
    seen: Arc<Seen>,
    client: Client,
    /// Never placed: whoever waits for it waits.
    homeless: String,
    tasks: Vec<JoinHandle<()>>,
    began: Instant,
}

impl Load {
    /// Begins, and returns when it flows.
    pub async fn start(stack: &Stack) -> Self {
        let seen = Arc::<Seen>::default();
        let id = stack.client.post("/instances", json!({"image": demo_image()})).await.instance();
        stack.client.wait_for(&id, "running").await;
        seen.accepted.lock().unwrap().push(id.clone());
        let nowhere = json!({"image": demo_image(), "placement": {"host": "nowhere"}});
        let homeless = stack.client.post("/instances", nowhere).await.instance();
        let paths = [format!("/instances/{id}"), "/instances?limit=20".into(), "/keys/self".into()];
        let wait = format!("/instances/{homeless}?wait=running&timeout=3");
        let mut tasks = Vec::new();
        for n in 0..READERS {
            let path = paths[n % paths.len()].clone();
            tasks.push(tokio::spawn(read(seen.clone(), stack.client.clone(), path, Duration::from_millis(10))));
        }
        tasks.push(tokio::spawn(read(seen.clone(), stack.client.clone(), wait, Duration::ZERO)));
        tasks.push(tokio::spawn(create(seen.clone(), stack.client.clone())));
        let load = Self { seen, client: stack.client.clone(), homeless, tasks, began: Instant::now() };
        load.flows().await;
        load
    }

    /// Until each kind of request has been answered some more.
    pub async fn flows(&self) {
        let (gets, accepted) = (self.seen.gets.load(Relaxed), self.accepted());
        eventually(120, "the load flows", async || {
            let now = (self.seen.gets.load(Relaxed), self.accepted());
            if now.0 > gets + 200 && now.1 > accepted + 1 { Ok(()) } else { Err(now) }
        })
        .await;
    }

    fn accepted(&self) -> usize {
        self.seen.accepted.lock().unwrap().len()
    }

    /// Ends; every accepted request must have been done, and no GET failed. Answers how many got no answer at first.
    pub async fn end(mut self, what: &str) -> usize {
        self.flows().await;
        self.seen.stop.store(true, Relaxed);
        for task in std::mem::take(&mut self.tasks) {
            task.await.unwrap();
        }
        self.client.delete_fully(&self.homeless).await;
        let seen = &self.seen;
        let accepted = seen.accepted.lock().unwrap().clone();
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
        let failures = seen.failures.lock().unwrap();
        eprintln!(
            "{what}: {} GETs in {:.0} s, {} failed, {} asked twice; {} creates accepted, {} lost, {} sent twice",
            seen.gets.load(Relaxed),
            self.began.elapsed().as_secs_f64(),
            failures.len(),
            seen.retried.load(Relaxed),
            accepted.len(),
            lost.len(),
            seen.posts_repeated.load(Relaxed),
        );
        assert!(
            failures.is_empty(),
            "{what}: {} failed:\n{}",
            failures.len(),
            failures[..failures.len().min(10)].join("\n")
        );
        assert!(lost.is_empty(), "{what}: lost: {lost:?}");
        seen.retried.load(Relaxed)
    }
}

impl Drop for Load {
    /// After a panic: the other steps have the system for themselves.
    fn drop(&mut self) {
        self.seen.stop.store(true, Relaxed);
    }
}

async fn read(seen: Arc<Seen>, client: Client, path: String, pause: Duration) {
    let mut n = 0u64;
    while !seen.stop.load(Relaxed) {
        n += 1;
        for attempt in 0.. {
            // The second time on a new connection: of the idle ones, more than this may have been closed.
            let client = if attempt > 0 { Client::new(&client.base, &client.key) } else { client.clone() };
            let answer = client.request(Method::GET, &path).header("X-Request-Id", format!("load-{n}")).send().await;
            let problem = match answer {
                Ok(response) if response.status() == 200 => match response.bytes().await {
                    Ok(_) => break,
                    Err(error) => format!("{error:?}"),
                },
                // An answer is final: only what got none is asked again.
                Ok(response) => {
                    let (status, text) = (response.status(), response.text().await.unwrap_or_default());
                    seen.failures.lock().unwrap().push(format!("GET {path}: {status} {text}"));
                    break;
                }
                Err(error) => format!("{error:?}"),
            };
            if attempt > 0 {
                seen.failures.lock().unwrap().push(format!("GET {path}: {problem}"));
                break;
            }
            seen.retried.fetch_add(1, Relaxed);
        }
        seen.gets.fetch_add(1, Relaxed);
        tokio::time::sleep(pause).await;
    }
}

async fn create(seen: Arc<Seen>, client: Client) {
    let mut n = 0u64;
    let run = uuid::Uuid::now_v7();
    while !seen.stop.load(Relaxed) {
        n += 1;
        let key = format!("load-{run}-{n}");
        let body = json!({"image": demo_image(), "cpu_millis": 10, "memory_mib": 16});
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let answer =
                client.request(Method::POST, "/instances").header("Idempotency-Key", &key).json(&body).send().await;
            let said = match answer {
                Ok(response) => {
                    let status = response.status().as_u16();
                    let text = response.text().await.unwrap_or_default();
                    if status == 202 {
                        let said: serde_json::Value = serde_json::from_str(&text).unwrap();
                        seen.accepted.lock().unwrap().push(said["instance"]["id"].as_str().unwrap().to_owned());
                        break;
                    }
                    format!("{status} {text}")
                }
                Err(error) => format!("{error:?}"),
            };
            // "Outcome unknown: repeat it with the same key."
            let may_repeat = ["502", "503", "504", "reqwest"].iter().any(|start| said.starts_with(start));
            if !may_repeat || Instant::now() > deadline {
                seen.failures.lock().unwrap().push(format!("POST: {said}"));
                break;
            }
            seen.posts_repeated.fetch_add(1, Relaxed);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
}
