//! A cluster without processes: tests call the statements of the queue directly.

use std::time::Duration;

use app::{
    config::database::{DatabaseConfig, PostgresUrl},
    config::lease::LeaseTimes,
    core::{
        db::{DbError, DualDb},
        hosts::HostSpec,
        id::{InstanceId, JobId, LeaseId, TenantId},
        instances::{
            InstanceSpec, RestartPolicy,
            create::{self, AcceptError, Create, CreateOutcome},
            delete::{self, Delete, Deletion},
            spec::Placement,
            store::InstanceRecord,
        },
        queue::{
            claim::{self, Batch, ClaimRequest, Claimed, WorkerIdentity},
            finish::{self, Outcome},
            workers::{self, ProcessInfo},
        },
        tenants,
    },
};
use serde_json::Value;

use crate::support::Cluster;

pub const LEASE: Duration = Duration::from_secs(3);
pub const TIMES: LeaseTimes = LeaseTimes { lease: LEASE };

pub struct QueueFixture {
    pub cluster: Cluster,
    pub db: DualDb,
    pub sql: tokio_postgres::Client,
    pub tenant: TenantId,
}

impl QueueFixture {
    pub async fn new() -> Self {
        let cluster = Cluster::simulated().await;
        let primary = PostgresUrl::parse(&cluster.database_url).unwrap();
        let config = DatabaseConfig { primary, replica: None, max_conns: 18, wait: Duration::from_secs(1) };
        let db = DualDb::new(&config).unwrap();
        let sql = cluster.sql().await;
        let tenant = tenant(&db, "acme").await;
        Self { cluster, db, sql, tenant }
    }

    /// Creates an instance, and with it its provision job.
    pub async fn create(&self, tenant: TenantId, spec: &InstanceSpec) -> InstanceRecord {
        create(&self.db, tenant, spec).await.unwrap()
    }

    pub async fn create_many(&self, tenant: TenantId, spec: &InstanceSpec, count: usize) -> Vec<InstanceRecord> {
        futures_util::future::join_all((0..count).map(|_| self.create(tenant, spec))).await
    }

    /// Registers a worker with 16 slots.
    pub async fn register_worker(&self, name: &str, memory_mib: Option<i64>) -> WorkerIdentity {
        register_worker(&self.db, name, memory_mib).await
    }

    pub async fn claim_next(&self, me: WorkerIdentity, free: usize) -> Vec<Claimed> {
        claim(&self.db, me, free).await.unwrap().jobs
    }

    /// Finishes the job; panics when the lease was lost.
    pub async fn finish(&self, job: &Claimed, outcome: Outcome) {
        assert!(finish::finish(&self.db, job.lease, job.kind, &outcome, &[]).await.unwrap());
    }

    pub async fn succeed(&self, job: &Claimed) {
        self.finish(job, Outcome::Succeeded { container_id: None }).await;
    }

    pub async fn count(&self, query: &str) -> i64 {
        self.sql.query_one(query, &[]).await.unwrap().get(0)
    }

    pub async fn job(&self, id: JobId) -> Value {
        let query = "select to_jsonb(j) from jobs j where id = $1";
        self.sql.query_one(query, &[&id.uuid()]).await.unwrap().get(0)
    }
}

pub async fn tenant(db: &DualDb, name: &str) -> TenantId {
    tenants::store::ensure(db, name, "10.0.0.0/16".parse().unwrap()).await.unwrap().id
}

pub async fn register_worker(db: &DualDb, name: &str, memory_mib: Option<i64>) -> WorkerIdentity {
    let spec = HostSpec { name: name.into(), address: None, labels: [].into(), cpu_millis: None, memory_mib };
    let process = ProcessInfo { machine_id: "fixture".into(), pid: 1, version: "0", slots: 16 };
    workers::register_worker(db, &spec, &process, Duration::ZERO, |_| false).await.unwrap().0
}

pub async fn create(db: &DualDb, tenant: TenantId, spec: &InstanceSpec) -> Result<InstanceRecord, String> {
    let queue_deadline = Duration::from_secs(600);
    let request = Create { tenant, spec, idempotency: None, port_range: 1..=60_000, queue_deadline, request_id: None };
    match create::create(db, &request).await {
        Ok(CreateOutcome::New(record)) => Ok(*record),
        other => Err(format!("{other:?}")),
    }
}

/// Deletes an instance as a request without an idempotency key does.
pub async fn delete(db: &DualDb, tenant: TenantId, instance: InstanceId) -> Result<Option<Deletion>, AcceptError> {
    delete::delete(db, &Delete { tenant, instance, idempotency: None, request_id: None }).await
}

pub async fn claim(db: &DualDb, me: WorkerIdentity, free: usize) -> Result<Batch, DbError> {
    let request = ClaimRequest {
        worker: me,
        free_slots: free,
        lease: LeaseId::new(),
        lease_ttl: LEASE,
        job_deadline: Duration::from_secs(600),
    };
    claim::claim(db, &request).await
}

pub fn spec(memory_mib: i32) -> InstanceSpec {
    InstanceSpec {
        name: None,
        image: "web:1".into(),
        command: None,
        env: [].into(),
        cpu_millis: 100,
        memory_mib,
        network: "default".into(),
        ports: Vec::new(),
        labels: [].into(),
        restart_policy: RestartPolicy::No,
        placement: Placement::default(),
    }
}
