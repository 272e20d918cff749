//! Logs, written to standard error by a thread of their own.
//!
//! A reader of the log that stops reading must stop neither requests nor jobs. So a line goes into a bounded buffer, and
//! the thread writes it. Lines that find the buffer full, or standard error closed, are dropped: `log_lines_dropped_total`
//! counts them, and a line reports them once there is room again. What is buffered when the process ends is written
//! first, within `FLUSH_TIMEOUT`. Nothing else may write to standard error while the process runs: it would wait.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::{self, IsTerminal, Write},
    panic::PanicHookInfo,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use tracing::{Level, Metadata};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{EnvFilter, filter::filter_fn, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::config::environment::LogFormat;

/// Lines that wait for standard error: at 200 bytes each, some 3 MiB.
const BUFFERED_LINES_LIMIT: usize = 16_384;
/// How long the end of the process may be held up by what is still to be written. The writer itself gives up after 1.1 s.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(1500);

/// Below `info` these log what tenants sent: bodies the one, the parameters of statements the other.
const INDISCREET: [&str; 2] = ["bollard", "tokio_postgres"];

/// Dropping it writes what is buffered, and ends the writing.
static GUARD: Mutex<Option<WorkerGuard>> = Mutex::new(None);
/// Lines that found the buffer full.
static OVERFLOWED: OnceLock<ErrorCounter> = OnceLock::new();
/// Lines that could not be written.
static UNWRITTEN: AtomicUsize = AtomicUsize::new(0);

/// Starts logging what `filter` says, panics included.
///
/// # Errors
/// When it is no filter.
pub fn log(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter)?;
    let buffer = NonBlockingBuilder::default().buffered_lines_limit(BUFFERED_LINES_LIMIT).thread_name("log");
    let (writer, guard) = buffer.finish(StandardError);
    let _ = OVERFLOWED.set(writer.error_counter());
    *GUARD.lock().unwrap_or_else(PoisonError::into_inner) = Some(guard);
    // Its own errors would go to standard error directly.
    let logs = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(io::stderr().is_terminal())
        .log_internal_errors(false);
    // A filter of its own: a directive could be overruled by a longer one in RUST_LOG.
    let filtered = tracing_subscriber::registry().with(filter).with(filter_fn(is_discreet));
    match format {
        LogFormat::Text => filtered.with(logs).init(),
        LogFormat::Json => filtered.with(logs.json().flatten_event(true)).init(),
    }
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

fn is_discreet(metadata: &Metadata<'_>) -> bool {
    let of = metadata.target().split("::").next().unwrap_or_default();
    *metadata.level() <= Level::INFO || !INDISCREET.contains(&of)
}

/// Logs a panic like any other event: the default hook writes to standard error itself.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let thread = thread::current();
    // By RUST_BACKTRACE, as in the default hook.
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    tracing::error!(
        thread = thread.name(),
        location = panic.location().map(ToString::to_string),
        backtrace,
        "panicked: {}",
        panic.payload_as_str().unwrap_or("no text")
    );
}

/// Standard error, as the buffer's thread sees it: a line is written whole, or lost and counted.
struct StandardError;

impl Write for StandardError {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if io::stderr().write_all(line).is_err() {
            UNWRITTEN.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Counts the lines dropped since the start, and logs how many are new since `reported`. Returns how many are reported by now:
/// none of the new ones while lines are still being dropped, since the report may be among them.
pub(super) fn report_dropped(reported: usize) -> usize {
    let dropped = || OVERFLOWED.get().map_or(0, ErrorCounter::dropped_lines) + UNWRITTEN.load(Ordering::Relaxed);
    let before = dropped();
    ::metrics::counter!("log_lines_dropped_total").absolute(u64::try_from(before).unwrap_or(u64::MAX));
    if before == reported {
        return reported;
    }
    tracing::warn!(lines = before - reported, "log lines were dropped: standard error was not read, or is closed");
    if dropped() == before { before } else { reported }
}

/// Writes what is buffered, within `FLUSH_TIMEOUT`. Only before the process ends: nothing is logged afterwards.
pub fn flush() {
    if let Some(guard) = take_guard() {
        within_timeout(move || drop(guard));
    }
}

/// Writes what is buffered, and then this line, within `FLUSH_TIMEOUT`. Nothing is logged afterwards.
pub fn last_line(line: &str) {
    let (guard, line) = (take_guard(), format!("{line}\n"));
    within_timeout(move || {
        drop(guard);
        // Closed: there is no other place for it.
        let _ = io::stderr().write_all(line.as_bytes());
    });
}

/// Ends the process at once, whatever its threads do, but for writing what is buffered.
pub fn exit(status: i32) -> ! {
    flush();
    std::process::exit(status)
}

/// Flushes when it is dropped, so also when the main thread panics.
pub struct FlushOnDrop;

impl Drop for FlushOnDrop {
    fn drop(&mut self) {
        flush();
    }
}

fn take_guard() -> Option<WorkerGuard> {
    GUARD.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Does it on a thread that is left behind when it takes too long: standard error may be a pipe that is full.
fn within_timeout(write: impl FnOnce() + Send + 'static) {
    let (done, written) = mpsc::channel();
    let writing = thread::Builder::new().spawn(move || {
        write();
        let _ = done.send(());
    });
    if writing.is_ok() {
        let _ = written.recv_timeout(FLUSH_TIMEOUT);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(line)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn panics_are_logged_with_message_and_location() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(log_panic));

        let result =
            tracing::subscriber::with_default(subscriber, || std::panic::catch_unwind(|| panic!("{} of {}", 1, 2)));
        std::panic::set_hook(hook);

        assert!(result.is_err());
        let text = String::from_utf8(lines.0.lock().expect("no writer panics").clone()).expect("UTF-8");
        assert!(text.contains("ERROR") && text.contains("panicked: 1 of 2"), "{text}");
        assert!(text.contains("location=\"src/telemetry/logs.rs:"), "{text}");
    }
}
