//! The gauges of the outbox: how many changes Redis has not taken, and how old the oldest is.

use std::time::Instant;

use parking_lot::Mutex;

/// The outbox as it was read last.
pub(super) struct OutboxGauges(Mutex<Reading>);

struct Reading {
    at: Instant,
    pending: usize,
    oldest_s: f64,
}

impl OutboxGauges {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Reading { at: Instant::now(), pending: 0, oldest_s: 0.0 }))
    }

    /// Records the number of changes in the outbox, and the age of the oldest in seconds.
    pub(super) fn record(&self, pending: usize, oldest_s: f64) {
        *self.0.lock() = Reading { at: Instant::now(), pending, oldest_s };
    }

    /// Sets the gauges. The age of the oldest change goes on since the outbox was read, and of an empty outbox it is
    /// the age of the reading: a change may have been committed right after it.
    pub(super) fn report(&self, now: Instant) {
        let reading = self.0.lock();
        #[allow(clippy::cast_precision_loss, reason = "at most a batch")]
        metrics::gauge!("identity_revoke_pending").set(reading.pending as f64);
        let oldest_s = reading.oldest_s + now.saturating_duration_since(reading.at).as_secs_f64();
        metrics::gauge!("identity_outbox_oldest_seconds").set(oldest_s);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    fn age_of_the_outbox_grows_when_it_is_not_read() {
        let (recorder, outbox) = (PrometheusBuilder::new().build_recorder(), OutboxGauges::new());
        outbox.record(3, 2.0);

        let later = Instant::now() + Duration::from_secs(600);
        metrics::with_local_recorder(&recorder, || outbox.report(later));

        let text = recorder.handle().render();
        assert!(text.contains("identity_outbox_oldest_seconds 602"), "{text}");
    }
}
