//! The engine's events as a stream of `ContainerChange`.
//!
//! Nothing that happens after the call is missed, even if the stream is polled for the first time later, since the
//! engine keeps its last 256 events. When the engine goes away, the stream has one error and then ends.

use std::sync::Arc;

use bollard::{models::EventMessage, query_parameters::EventsOptions};
use futures_util::{StreamExt, TryFutureExt, TryStreamExt, future, stream, stream::BoxStream};
use time::OffsetDateTime;

use super::{client::Engine, error, labels};
use crate::backend::{BackendError, ContainerChange};

/// The events after which a container may be in another state.
const EVENTS: [&str; 4] = ["start", "die", "oom", "destroy"];

/// Returns the changes of this cluster's containers from now on.
pub(super) fn changes(engine: Arc<Engine>) -> BoxStream<'static, Result<ContainerChange, BackendError>> {
    let now = OffsetDateTime::now_utc();
    let since = format!("{}.{:09}", now.unix_timestamp(), now.nanosecond());
    subscribe(engine, since)
        .try_flatten_stream()
        .chain(stream::once(future::ready(Err(BackendError::Unavailable("the engine ended its events".into())))))
        .scan(false, |failed, change| {
            let item = (!*failed).then_some(change);
            *failed |= matches!(item, Some(Err(_)));
            future::ready(item)
        })
        .boxed()
}

async fn subscribe(
    engine: Arc<Engine>,
    since: String,
) -> Result<BoxStream<'static, Result<ContainerChange, BackendError>>, BackendError> {
    let mut filters = labels::cluster_filter(engine.cluster);
    filters.insert("type".to_owned(), vec!["container".to_owned()]);
    filters.insert("event".to_owned(), EVENTS.map(str::to_owned).to_vec());
    let options = EventsOptions { since: Some(since), filters: Some(filters), ..Default::default() };
    let events = engine.docker().await?.events(Some(options));
    Ok(events.map_err(error::unavailable).try_filter_map(|event| future::ok(to_change(event))).boxed())
}

fn to_change(event: EventMessage) -> Option<ContainerChange> {
    let instance = event.actor?.attributes?.get(labels::INSTANCE)?.parse().ok()?;
    Some(ContainerChange { instance })
}
