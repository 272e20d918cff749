//! Writes the log to standard error by a thread of its own.
//!
//! Logging never blocks: when the reader of standard error stops reading, requests and jobs go on. A line goes into a
//! bounded buffer, and the thread writes it. When the buffer is full or standard error is closed, the line is dropped;
//! `log_lines_dropped_total` counts such lines, and a warning reports them once lines can be written again. Before the
//! process ends, the buffer is written for at most `FLUSH_TIMEOUT`. Nothing else may write to standard error while the
//! process runs, because that write would block.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::{self, IsTerminal, Write},
    panic::PanicHookInfo,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use parking_lot::Mutex;
use tracing::{Level, Metadata};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{EnvFilter, filter::filter_fn, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::config::environment::LogFormat;

/// Number of lines that wait for standard error; at 200 bytes each, some 3 MiB.
const BUFFERED_LINES_LIMIT: usize = 16_384;
/// How long writing the buffer may delay the end of the process; the writer itself gives up after 1.1 s.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(1500);

/// Crates that log what tenants sent on levels below INFO: bodies (bollard) and parameters of statements (`tokio_postgres`).
const CRATES_WITH_SECRETS: [&str; 2] = ["bollard", "tokio_postgres"];

/// The writing thread; dropping the guard writes the buffer and ends the thread.
static GUARD: Mutex<Option<WorkerGuard>> = Mutex::new(None);
/// Counts the lines that were dropped because the buffer was full.
static OVERFLOWED: OnceLock<ErrorCounter> = OnceLock::new();
/// Counts the lines that were dropped because standard error is closed.
static UNWRITTEN: AtomicUsize = AtomicUsize::new(0);

/// Starts logging what `filter` (the syntax of `RUST_LOG`) lets through, and logs panics from now on.
///
/// # Errors
/// When `filter` cannot be parsed.
pub fn log(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter)?;
    let buffer = NonBlockingBuilder::default().buffered_lines_limit(BUFFERED_LINES_LIMIT).thread_name("log");
    let (writer, guard) = buffer.finish(StandardError);
    let _ = OVERFLOWED.set(writer.error_counter());
    *GUARD.lock() = Some(guard);
    // Errors of the layer itself would be written to standard error directly.
    let logs = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(io::stderr().is_terminal())
        .log_internal_errors(false);
    // Not a directive of `filter`, which a more specific one in RUST_LOG would override.
    let filtered = tracing_subscriber::registry().with(filter).with(filter_fn(has_no_secrets));
    match format {
        LogFormat::Text => filtered.with(logs).init(),
        LogFormat::Json => filtered.with(logs.json().flatten_event(true)).init(),
    }
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

fn has_no_secrets(metadata: &Metadata<'_>) -> bool {
    let origin = metadata.target().split("::").next().unwrap_or_default();
    *metadata.level() <= Level::INFO || !CRATES_WITH_SECRETS.contains(&origin)
}

/// Logs a panic like any other event; the default hook would write to standard error directly.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let thread = thread::current();
    // RUST_BACKTRACE decides, as in the default hook.
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

/// Standard error for the writing thread: a line is written whole, or dropped and counted.
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

/// Records the number of dropped lines, and logs a warning when there are more than `reported`. Returns how many are reported
/// by now; while lines are still being dropped this is `reported`, because the warning may be one of them.
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

/// Writes the buffer within `FLUSH_TIMEOUT`, and ends logging. For the end of the process.
pub fn flush() {
    if let Some(guard) = take_guard() {
        within_timeout(move || drop(guard));
    }
}

/// Writes the buffer and then `line`, both within `FLUSH_TIMEOUT`, and ends logging.
pub fn last_line(line: &str) {
    let (guard, line) = (take_guard(), format!("{line}\n"));
    within_timeout(move || {
        drop(guard);
        // When standard error is closed, there is no other place to write to.
        let _ = io::stderr().write_all(line.as_bytes());
    });
}

/// Writes the buffer and ends the process with `status`, without waiting for its threads.
pub fn exit(status: i32) -> ! {
    flush();
    std::process::exit(status)
}

/// Calls `flush` when it is dropped, which also happens when the main thread panics.
pub struct FlushOnDrop;

impl Drop for FlushOnDrop {
    fn drop(&mut self) {
        flush();
    }
}

fn take_guard() -> Option<WorkerGuard> {
    GUARD.lock().take()
}

/// Runs `write` on a thread of its own and waits for `FLUSH_TIMEOUT` at most: standard error may be a full pipe.
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
            self.0.lock().write(line)
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
        let text = String::from_utf8(lines.0.lock().clone()).expect("UTF-8");
        assert!(text.contains("ERROR") && text.contains("panicked: 1 of 2"), "{text}");
        assert!(text.contains("location=\"src/telemetry/logs.rs:"), "{text}");
    }
}
