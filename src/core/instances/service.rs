//! `InstanceService`: creates, reads and deletes instances. A method that changes something also does everything that
//! must follow its commit.
//!
//! ```text
//! create, delete ─► one statement commits instance and job ─► record the write (the caller's next lists show it)
//!                                                          └► notify a worker (best effort, at most 100 ms)
//! ```
//! Both follow-ups run at the same time and cannot fail the request: without the first, lists of this tenant are read from
//! the primary for a while; without the second, a worker finds the job at its next poll.

use std::{ops::RangeInclusive, time::Duration};

use super::{
    InstanceSpec, RawInstance,
    create::{self, AcceptError, Create, CreateOutcome},
    delete::{self, Delete},
    store::{self, InstanceFilter, InstanceRecord},
};
use crate::core::{
    db::{DbError, DualDb},
    id::{InstanceId, JobId, TenantId},
    idempotency::IdempotencyKey,
    invalid::Invalid,
    page::{Page, PageRequest},
    queue::{
        job::JobKind,
        notify::{Channel, Notifier},
    },
    read_your_writes::ReadYourWrites,
};

/// How long a job may wait for a host with room.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(600);

/// The instances of all tenants. Cheap to clone.
#[derive(Clone)]
pub struct InstanceService {
    db: DualDb,
    notifier: Notifier,
    read_your_writes: ReadYourWrites,
    port_range: RangeInclusive<u16>,
}

/// A request that was accepted, now or before.
#[derive(Debug)]
pub struct AcceptedRequest {
    /// The instance as it is now.
    pub instance: InstanceRecord,
    /// The job that does the work.
    pub job: JobId,
    /// Whether an earlier request with the same idempotency key was accepted.
    pub replayed: bool,
}

/// The origin of a request that changes something.
#[derive(Clone, Copy)]
pub struct Origin<'a> {
    /// The tenant of the caller's key.
    pub tenant: TenantId,
    /// The request's idempotency key, if it has one.
    pub idempotency: Option<&'a IdempotencyKey>,
    /// The id of the HTTP request, for the worker's log lines.
    pub request_id: Option<&'a str>,
}

impl InstanceService {
    /// Returns a service that gives out host ports of `port_range`.
    pub fn new(
        db: DualDb,
        notifier: Notifier,
        read_your_writes: ReadYourWrites,
        port_range: RangeInclusive<u16>,
    ) -> Self {
        Self { db, notifier, read_your_writes, port_range }
    }

    /// Checks what a client asks for.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(&self, raw: RawInstance) -> Result<InstanceSpec, Vec<Invalid>> {
        InstanceSpec::parse(raw, &self.port_range)
    }

    /// Accepts a request for an instance. `None`: the first request with this idempotency key was accepted, and its instance
    /// can no longer be read.
    ///
    /// # Errors
    /// Those of `create::create`.
    pub async fn create(
        &self,
        origin: Origin<'_>,
        spec: &InstanceSpec,
    ) -> Result<Option<AcceptedRequest>, AcceptError> {
        let Origin { tenant, idempotency, request_id } = origin;
        let port_range = self.port_range.clone();
        let request = Create { tenant, spec, idempotency, port_range, queue_deadline: QUEUE_TIMEOUT, request_id };
        match create::create(&self.db, &request).await? {
            CreateOutcome::New(instance) => {
                let notify = self.notifier.notify(Channel::Any, instance.job, JobKind::Provision);
                tokio::join!(self.read_your_writes.record_write(tenant), notify);
                Ok(Some(AcceptedRequest { job: instance.job, instance: *instance, replayed: false }))
            }
            CreateOutcome::Replayed(replay) => {
                // The process that accepted the first request may have ended before it recorded the write.
                self.read_your_writes.record_write(tenant).await;
                let instance = self.get(tenant, replay.instance).await.map_err(AcceptError::Db)?;
                Ok(instance.map(|instance| AcceptedRequest { instance, job: replay.job, replayed: true }))
            }
        }
    }

    /// Accepts a request to delete an instance; `None`: the tenant has none of this id.
    ///
    /// # Errors
    /// Those of `delete::delete`.
    pub async fn delete(&self, origin: Origin<'_>, id: InstanceId) -> Result<Option<AcceptedRequest>, AcceptError> {
        let Origin { tenant, idempotency, request_id } = origin;
        let request = Delete { tenant, instance: id, idempotency, request_id };
        let Some(deletion) = delete::delete(&self.db, &request).await? else { return Ok(None) };
        let notify = async {
            if let Some(host) = deletion.host {
                self.notifier.notify(Channel::Host(host), deletion.job, JobKind::Delete).await;
            }
        };
        tokio::join!(self.read_your_writes.record_write(tenant), notify);
        let delete::Deletion { instance, job, replayed, .. } = deletion;
        Ok(Some(AcceptedRequest { instance, job, replayed }))
    }

    /// Reads an instance; `None`: the tenant has none of this id, or it was deleted over 24 h ago.
    ///
    /// # Errors
    /// Those of `store::get`.
    pub async fn get(&self, tenant: TenantId, id: InstanceId) -> Result<Option<InstanceRecord>, DbError> {
        store::get(&self.db, tenant, id).await
    }

    /// Lists instances, newest first, from a server that has this tenant's own writes.
    ///
    /// # Errors
    /// Those of `store::list`.
    pub async fn list(&self, filter: &InstanceFilter, page: PageRequest) -> Result<Page<InstanceRecord>, DbError> {
        let consistency = self.read_your_writes.consistency_for(filter.tenant).await;
        store::list(&self.db, consistency, filter, page).await
    }
}
