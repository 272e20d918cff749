//! One process of this program: started, signalled, its log read, and always killed in the end.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A running process and the lines that it has logged.
pub struct App {
    child: Child,
    log: Arc<(Mutex<Vec<String>>, Condvar)>,
    name: String,
}

impl App {
    pub fn spawn(name: &str, mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let (stderr, lines) = (child.stderr.take().unwrap(), log.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                lines.0.lock().unwrap().push(line);
                lines.1.notify_all();
            }
            lines.1.notify_all();
        });
        Self { child, log, name: name.into() }
    }

    /// Waits for a log line that contains this text and returns the first one; panics with the log after a minute.
    pub fn line(&self, text: &str) -> String {
        self.line_with(&[text])
    }

    /// The first line of the log with all of these texts; panics with the log when it does not come in time.
    pub fn line_with(&self, texts: &[&str]) -> String {
        let (lines, changed) = (&self.log.0, &self.log.1);
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut guard = lines.lock().unwrap();
        loop {
            if let Some(line) = guard.iter().find(|line| texts.iter().all(|text| line.contains(text))) {
                return line.clone();
            }
            assert!(Instant::now() < deadline, "{}: no line with {texts:?}:\n{}", self.name, guard.join("\n"));
            guard = changed.wait_timeout(guard, Duration::from_millis(200)).unwrap().0;
        }
    }

    /// Returns everything logged so far.
    pub fn log(&self) -> String {
        self.log.0.lock().unwrap().join("\n")
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Kills the process by SIGKILL and waits for its end.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends SIGTERM and returns how the process ended.
    pub fn terminate(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    /// Waits until the process ends by itself, and returns how; panics after a minute.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "{} does not end:\n{}", self.name, self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            // A panic during a panic would abort all tests.
            let log = self.log.0.lock().unwrap_or_else(PoisonError::into_inner);
            let from = log.len().saturating_sub(60);
            eprintln!("---- the end of the log of {}\n{}", self.name, log[from..].join("\n"));
        }
    }
}
