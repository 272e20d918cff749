//! Accepting a request to delete an instance: one statement (`delete.sql`).
//!
//! Queued jobs of the instance are superseded, its running one is marked to be cancelled, and a delete job is queued
//! for its host. An instance that no host ever had is deleted at once. A repeated request returns the job of the first
//! one.

use super::{
    Refusal, Status, Transition,
    create::AcceptError,
    store::{self, InstanceRecord},
};
use crate::core::{
    db::{DbError, DualDb, Param, column},
    id::{HostId, InstanceId, JobId, TenantId},
    idempotency::{self, IdempotencyKey},
};

/// A request to delete an instance.
pub struct Delete<'a> {
    /// The tenant that must own the instance.
    pub tenant: TenantId,
    /// The instance to delete.
    pub instance: InstanceId,
    /// The request's idempotency key, if it has one.
    pub idempotency: Option<&'a IdempotencyKey>,
    /// The id of the HTTP request, for the worker's log lines.
    pub request_id: Option<&'a str>,
}

/// An accepted request to delete an instance.
#[derive(Debug)]
pub struct Deletion {
    /// The instance as it is now.
    pub instance: InstanceRecord,
    /// The job that deletes it.
    pub job: JobId,
    /// The host whose worker has a new job; `None`: no new job waits.
    pub host: Option<HostId>,
    /// Whether an earlier request with the same idempotency key was accepted.
    pub replayed: bool,
}

/// How many times the statement runs again because another job of the instance was added at the same time.
const DELETE_RETRIES_MAX: usize = 5;

const DELETE: &str = include_str!("delete.sql");

/// The parameters of `delete.sql`, in its order.
struct DeleteParams<'a> {
    tenant: TenantId,
    instance: InstanceId,
    job: JobId,
    idempotency_key: Option<&'a str>,
    route: &'a str,
    request_hash: &'a [u8],
    placed: (Vec<Status>, Vec<Status>),
    unplaced: (Vec<Status>, Vec<Status>),
    request_id: Option<&'a str>,
}

impl<'a> DeleteParams<'a> {
    fn new(request: &Delete<'a>) -> Self {
        let (idempotency_key, route, request_hash) = idempotency::columns(request.idempotency);
        Self {
            tenant: request.tenant,
            instance: request.instance,
            job: JobId::new(),
            idempotency_key,
            route,
            request_hash,
            placed: Transition::DeleteAccepted.table(),
            unplaced: Transition::DeleteAcceptedUnplaced.table(),
            request_id: request.request_id,
        }
    }

    fn list(&self) -> [Param<'_>; 11] {
        [
            &self.tenant,
            &self.instance,
            &self.job,
            &self.idempotency_key,
            &self.route,
            &self.request_hash,
            &self.placed.0,
            &self.placed.1,
            &self.unplaced.0,
            &self.unplaced.1,
            &self.request_id,
        ]
    }
}

/// Accepts the request; `None`: the tenant has no such instance.
///
/// # Errors
/// `KeyReused` and `KeyInProgress` about the idempotency key; `Db` when the statement fails.
pub async fn delete(db: &DualDb, request: &Delete<'_>) -> Result<Option<Deletion>, AcceptError> {
    let params = DeleteParams::new(request);
    let mut retries = 0..DELETE_RETRIES_MAX;
    let rows = loop {
        match db.write().await.map_err(AcceptError::Db)?.query(DELETE, &params.list()).await {
            Ok(rows) => break rows,
            Err(DbError::Refused { code, .. })
                if Refusal::from_code(&code) == Some(Refusal::DeleteRetry) && retries.next().is_some() => {}
            Err(DbError::Locked) if request.idempotency.is_some() => return Err(AcceptError::KeyInProgress),
            Err(error) => return Err(AcceptError::Db(error)),
        }
    };
    let Some(row) = rows.first() else { return Ok(None) };
    let instance = store::record(row).map_err(AcceptError::Db)?;
    if column(row, "replayed").map_err(AcceptError::Db)?
        && let Some(key) = request.idempotency
    {
        let replay = idempotency::read(db, request.tenant, key).await.map_err(AcceptError::Db)??;
        return Ok(Some(Deletion { instance, job: replay.job, host: None, replayed: true }));
    }
    let is_new: bool = column(row, "is_new").map_err(AcceptError::Db)?;
    let host = instance.host.as_ref().map(|host| host.id).filter(|_| is_new);
    Ok(Some(Deletion { job: instance.job, host, instance, replayed: false }))
}
