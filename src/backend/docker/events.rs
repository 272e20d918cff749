//! The engine's events as a stream of `Changed`.
//!
//! Promises: nothing that happens after the call is missed, even if the stream is first polled later (the engine keeps
//! its last 256 events). When the engine goes away there is one error, then the end.
//! Refuses: telling what happened: events can come late, so the listener looks again.

use std::sync::Arc;

use bollard::{models::EventMessage, query_parameters::EventsOptions};
use futures_util::{StreamExt, TryFutureExt, TryStreamExt, future, stream, stream::BoxStream};
use time::OffsetDateTime;

use super::{client::Engine, error, labels};
use crate::backend::{BackendError, Changed};

const EVENTS: [&str; 4] = ["start", "die", "oom", "destroy"];

pub(super) fn changes(engine: Arc<Engine>) -> BoxStream<'static, Result<Changed, BackendError>> {
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
) -> Result<BoxStream<'static, Result<Changed, BackendError>>, BackendError> {
    let mut filters = labels::ours(engine.cluster);
    filters.insert("type".to_owned(), vec!["container".to_owned()]);
    filters.insert("event".to_owned(), EVENTS.map(str::to_owned).to_vec());
    let options = EventsOptions { since: Some(since), filters: Some(filters), ..Default::default() };
    let events = engine.docker().await?.events(Some(options));
    Ok(events.map_err(error::unavailable).try_filter_map(|event| future::ok(changed(event))).boxed())
}

fn changed(event: EventMessage) -> Option<Changed> {
    let instance = event.actor?.attributes?.get(labels::INSTANCE)?.parse().ok()?;
    Some(Changed { instance })
}
