//! The engine's errors, translated by what was being done: the same answer means different things.
//!
//! Promises: causes are told apart as far as the engine does; an answer that nobody expected is `Unavailable` if it is
//! a 5xx and `Refused` otherwise. The engine's own words are kept, but never what it passes on from a registry: a tenant
//! chooses the registry, which can redirect the engine to any address that the host reaches and so make it repeat what it
//! reads there. Tenants are shown one of our own texts, the log has the other.
//! Refuses: deciding about retries.

use bollard::errors::Error;

use crate::{backend::BackendError, core::text::CleanText};

/// The registry answered, and its answer is no. Its words reach us through the engine, in many forms.
const NO_SUCH_IMAGE: [&str; 10] = [
    "manifest unknown",
    "manifest for ",
    "no matching manifest",
    "name unknown",
    "repository name not known",
    "repository does not exist",
    "pull access denied",
    "access to the resource is denied",
    "unauthorized",
    "no basic auth credentials",
];

/// What else is worth telling apart: words in the engine's message, and our text for them.
const PULL_FAILURES: [(&[&str], &str); 2] = [
    (&["toomanyrequests", "rate limit"], "the registry limits how often images are pulled"),
    (&["no space left on device"], "no space left on the host"),
];

/// The runtime tried to run it and could not: the fault of the image or of the command.
const CANNOT_RUN: [&str; 8] = [
    "executable file not found",
    "exec format error",
    "permission denied",
    "no such file or directory",
    "not a directory",
    "is a directory",
    "unable to find user",
    "no command specified",
];

/// The status and the words of an answer that is an error.
pub(super) fn answer(error: &Error) -> Option<(u16, &str)> {
    match error {
        Error::DockerResponseServerError { status_code, message } => Some((*status_code, message)),
        _ => None,
    }
}

pub(super) fn status(error: &Error) -> Option<u16> {
    answer(error).map(|(status, _)| status)
}

/// For calls that nothing but a broken engine makes fail.
pub(super) fn unavailable(error: Error) -> BackendError {
    BackendError::Unavailable(words(&error).into())
}

pub(super) fn general(error: Error) -> BackendError {
    match answer(&error) {
        Some((400..500, message)) => BackendError::Refused(message.into()),
        _ => unavailable(error),
    }
}

pub(super) fn pulling(image: &str, error: Error) -> BackendError {
    let (missing, message) = match &error {
        Error::DockerResponseServerError { status_code, message } => (*status_code == 404, message.clone()),
        Error::DockerStreamError { error } => (false, error.clone()),
        Error::RequestTimeoutError => return BackendError::ImagePullFailed(format!("{image}: no progress").into()),
        // No answer from the engine itself: not the registry's fault.
        _ => return unavailable(error),
    };
    tracing::info!(image, text = %CleanText::new(&message), "an image could not be pulled; its owner is shown the cause without this text");
    let lower = message.to_lowercase();
    let says = |words: &&str| lower.contains(*words);
    if lower.contains("invalid reference format") {
        BackendError::ImageNotFound(format!("{image}: invalid reference format").into())
    } else if missing || NO_SUCH_IMAGE.iter().any(says) {
        BackendError::ImageNotFound(format!("{image}: the registry has no such image, or asks for credentials").into())
    } else {
        let cause = PULL_FAILURES.iter().find(|(words, _)| words.iter().any(says));
        let cause = cause.map_or("the registry cannot be reached, or does not answer as one", |(_, cause)| cause);
        BackendError::ImagePullFailed(format!("{image}: {cause}").into())
    }
}

pub(super) fn creating(error: Error) -> BackendError {
    let Some((status, message)) = answer(&error) else { return unavailable(error) };
    let text = CleanText::new(message);
    match status {
        404 if message.to_lowercase().contains("no such image") => BackendError::ImageNotFound(text),
        // The network went away meanwhile, or the name is about to be free.
        404 | 409 => BackendError::Unavailable(text),
        400..500 => BackendError::Refused(text),
        _ => BackendError::Unavailable(text),
    }
}

pub(super) fn starting(error: Error) -> BackendError {
    let Some((status, message)) = answer(&error) else { return unavailable(error) };
    let (text, lower) = (CleanText::new(message), message.to_lowercase());
    let in_use = lower.contains("address already in use");
    if lower.contains("port is already allocated") || in_use && lower.contains("bind") {
        BackendError::PortConflict(text)
    } else if in_use || lower.contains("failed programming external connectivity") {
        // The address, not a port: the engine's own address management says no.
        BackendError::NetworkSetup(text)
    } else if CANNOT_RUN.iter().any(|words| lower.contains(words)) {
        BackendError::StartFailed(text)
    } else {
        match status {
            // The container or its network went away, or it is being removed.
            404 | 409 => BackendError::Unavailable(text),
            400 => BackendError::StartFailed(text),
            401..500 => BackendError::Refused(text),
            _ => BackendError::Unavailable(text),
        }
    }
}

/// For a container that joins or leaves a network: either may have gone away since they were found.
pub(super) fn joining(error: Error) -> BackendError {
    match status(&error) {
        Some(404 | 409) => unavailable(error),
        _ => general(error),
    }
}

pub(super) fn networking(cidr: impl std::fmt::Display, error: Error) -> BackendError {
    match answer(&error) {
        Some((_, message)) if message.to_lowercase().contains("overlap") => BackendError::NetworkSetup(
            format!(
                "{cidr} overlaps a network that this host already has ({message}): the docker network backend cannot hold \
                 overlapping CIDRs on one host; give one of the networks another CIDR (app keys create --default-cidr …)"
            )
            .into(),
        ),
        Some((400..500, message)) => BackendError::NetworkSetup(message.into()),
        _ => unavailable(error),
    }
}

/// An error with its causes: hyper's outermost words alone say nothing.
fn words(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status_code: u16, message: &str) -> Error {
        Error::DockerResponseServerError { status_code, message: message.to_owned() }
    }

    fn kind(error: &BackendError) -> &'static str {
        match error {
            BackendError::ImageNotFound(_) => "image not found",
            BackendError::ImagePullFailed(_) => "pull failed",
            BackendError::NameConflict(_) => "name",
            BackendError::NetworkSetup(_) => "network",
            BackendError::PortConflict(_) => "port",
            BackendError::StartFailed(_) => "start",
            BackendError::Refused(_) => "refused",
            BackendError::Unavailable(_) => "unavailable",
        }
    }

    // The words are those of engine 20.10.24 unless said.
    #[test]
    fn start() {
        let shim = "failed to create shim task: OCI runtime create failed: runc create failed: unable to start \
                    container process: exec: ";
        for (status, message, expected) in [
            (400, format!("{shim}\"nosuch\": executable file not found in $PATH: unknown"), "start"),
            (400, format!("{shim}\"/x\": stat /x: no such file or directory: unknown"), "start"),
            (500, format!("{shim}\"/www\": permission denied: unknown"), "start"),
            (500, "driver failed programming external connectivity on endpoint p2 (44): Bind for 0.0.0.0:23080 failed: port is already allocated".into(), "port"),
            (500, "driver failed programming external connectivity on endpoint p3 (b7): Error starting userland proxy: listen tcp4 0.0.0.0:23081: bind: address already in use".into(), "port"),
            // Engine 28.
            (500, "failed to set up container networking: driver failed programming external connectivity on endpoint x: failed to bind host port for 0.0.0.0:80:172.17.0.2:80/tcp: address already in use".into(), "port"),
            (500, "driver failed programming external connectivity on endpoint x: iptables failed".into(), "network"),
            (403, "Address already in use".into(), "network"),
            (404, "network nonet not found".into(), "unavailable"),
            (409, "container is marked for removal and cannot be started".into(), "unavailable"),
            (500, "containerd: context deadline exceeded".into(), "unavailable"),
            (400, "something else".into(), "start"),
        ] {
            assert_eq!(kind(&starting(answered(status, &message))), expected, "{message}");
        }
    }

    #[test]
    fn create() {
        for (status, message, expected) in [
            (404, "No such image: absent:1", "image not found"),
            (404, "network app-x not found", "unavailable"),
            (400, "Range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available", "refused"),
            (400, "Minimum memory limit allowed is 6MB", "refused"),
            (500, "no space left on device", "unavailable"),
        ] {
            assert_eq!(kind(&creating(answered(status, message))), expected, "{message}");
        }
    }

    #[test]
    fn pull() {
        for (status, message, expected) in [
            (
                500,
                "Get \"https://registry.example/v2/\": dial tcp: lookup registry.example: no such host",
                "pull failed",
            ),
            (500, "Get \"http://127.0.0.1:1/v2/\": dial tcp 127.0.0.1:1: connect: connection refused", "pull failed"),
            (404, "manifest for 127.0.0.1:5000/x:1 not found: manifest unknown: manifest unknown", "image not found"),
            (
                404,
                "pull access denied for x, repository does not exist or may require 'docker login'",
                "image not found",
            ),
            (400, "invalid reference format: repository name must be lowercase", "image not found"),
            (500, "toomanyrequests: You have reached your pull rate limit", "pull failed"),
        ] {
            assert_eq!(kind(&pulling("x:1", answered(status, message))), expected, "{message}");
        }
        let foreign = "error parsing HTTP 404 response body: invalid character 'i': \"internal: secret\"";
        for error in
            [answered(404, foreign), answered(500, foreign), Error::DockerStreamError { error: foreign.into() }]
        {
            let shown = pulling("x:1", error).to_string();
            assert!(!shown.contains("secret") && !shown.contains("HTTP"), "{shown}");
        }
        let limited = pulling("x:1", answered(500, "toomanyrequests: You have reached your pull rate limit"));
        assert!(limited.to_string().ends_with("x:1: the registry limits how often images are pulled"), "{limited}");
        let broken = Error::DockerStreamError { error: "write /x: no space left on device".to_owned() };
        assert_eq!(kind(&pulling("x:1", broken)), "pull failed");
        assert_eq!(kind(&pulling("x:1", Error::RequestTimeoutError)), "pull failed");
        let down = Error::SocketNotFoundError("/var/run/docker.sock".to_owned());
        assert_eq!(kind(&pulling("x:1", down)), "unavailable");
    }

    #[test]
    fn network() {
        let overlap = networking("10.0.0.0/24", answered(403, "Pool overlaps with other one on this address space"));
        assert_eq!(kind(&overlap), "network");
        assert!(overlap.to_string().contains("another CIDR"));
        assert_eq!(kind(&networking("10.0.0.0/24", answered(400, "invalid"))), "network");
        assert_eq!(kind(&networking("10.0.0.0/24", answered(500, "iptables"))), "unavailable");
    }
}
