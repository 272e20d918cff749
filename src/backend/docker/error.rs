//! Translates the engine's errors, by what was being done: the same status means different things in different calls.
//!
//! Causes are distinguished as far as the engine does. An answer that is not expected is `Unavailable` if it is a 5xx,
//! and `Refused` otherwise. Tenants are shown the engine's text, but never what the engine repeats from a registry: a
//! tenant chooses the registry, which can redirect the engine to any address that the host reaches, and so make the
//! engine repeat what it reads there. In its place tenants are shown a text of ours; the engine's text is in the log.

use bollard::errors::Error;

use crate::{backend::BackendError, core::text::CleanText};

/// Texts of the engine when the registry has no such image or denies access; they differ between registries.
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

/// Other causes of a failed pull: words in the engine's message, and our text for the tenant.
const PULL_FAILURES: [(&[&str], &str); 2] = [
    (&["toomanyrequests", "rate limit"], "the registry limits how often images are pulled"),
    (&["no space left on device"], "no space left on the host"),
];

/// Texts of the runtime when it cannot run the command, because of the image or of the command itself.
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

/// Returns the status and the message of the engine's response; `None`: the engine did not respond.
pub(super) fn response(error: &Error) -> Option<(u16, &str)> {
    match error {
        Error::DockerResponseServerError { status_code, message } => Some((*status_code, message)),
        _ => None,
    }
}

/// Returns the status of the engine's response.
pub(super) fn status(error: &Error) -> Option<u16> {
    response(error).map(|(status, _)| status)
}

/// Translates the error of a call that fails only when the engine does.
pub(super) fn unavailable(error: Error) -> BackendError {
    BackendError::Unavailable(with_causes(&error).into())
}

/// Translates the error of a call without causes of its own.
pub(super) fn from_response(error: Error) -> BackendError {
    match response(&error) {
        Some((400..500, message)) => BackendError::Refused(message.into()),
        _ => unavailable(error),
    }
}

/// Translates the error of a pull.
pub(super) fn of_pull(image: &str, error: Error) -> BackendError {
    let (missing, message) = match &error {
        Error::DockerResponseServerError { status_code, message } => (*status_code == 404, message.clone()),
        Error::DockerStreamError { error } => (false, error.clone()),
        Error::RequestTimeoutError => return BackendError::ImagePullFailed(format!("{image}: no progress").into()),
        // The engine itself did not respond.
        _ => return unavailable(error),
    };
    let text = CleanText::new(&message);
    tracing::info!(image, %text, "image pull failed; the owner is shown the cause without this text");
    let lower = message.to_lowercase();
    let contains = |words: &&str| lower.contains(*words);
    if lower.contains("invalid reference format") {
        BackendError::ImageNotFound(format!("{image}: invalid reference format").into())
    } else if missing || NO_SUCH_IMAGE.iter().any(contains) {
        BackendError::ImageNotFound(format!("{image}: the registry has no such image, or requires credentials").into())
    } else {
        let cause = PULL_FAILURES.iter().find(|(words, _)| words.iter().any(contains));
        let cause = cause.map_or("the registry cannot be reached, or does not answer as one", |(_, cause)| cause);
        BackendError::ImagePullFailed(format!("{image}: {cause}").into())
    }
}

/// Translates the error of creating a container.
pub(super) fn of_create(error: Error) -> BackendError {
    let Some((status, message)) = response(&error) else { return unavailable(error) };
    let text = CleanText::new(message);
    match status {
        404 if message.to_lowercase().contains("no such image") => BackendError::ImageNotFound(text),
        // The network was removed meanwhile, or the container that has the name is being removed.
        404 | 409 => BackendError::Unavailable(text),
        400..500 => BackendError::Refused(text),
        _ => BackendError::Unavailable(text),
    }
}

/// Translates the error of starting a container.
pub(super) fn of_start(error: Error) -> BackendError {
    let Some((status, message)) = response(&error) else { return unavailable(error) };
    let (text, lower) = (CleanText::new(message), message.to_lowercase());
    let in_use = lower.contains("address already in use");
    if lower.contains("port is already allocated") || in_use && lower.contains("bind") {
        BackendError::PortConflict(text)
    } else if in_use || lower.contains("failed programming external connectivity") {
        // The container's address is in use, not a port: this text comes from the engine's address management.
        BackendError::NetworkSetup(text)
    } else if CANNOT_RUN.iter().any(|words| lower.contains(words)) {
        BackendError::StartFailed(text)
    } else {
        match status {
            // The container or its network was removed, or is being removed.
            404 | 409 => BackendError::Unavailable(text),
            400 => BackendError::StartFailed(text),
            401..500 => BackendError::Refused(text),
            _ => BackendError::Unavailable(text),
        }
    }
}

/// Translates the error of joining or leaving a network. Container or network may have been removed since they were
/// found.
pub(super) fn of_join(error: Error) -> BackendError {
    match status(&error) {
        Some(404 | 409) => unavailable(error),
        _ => from_response(error),
    }
}

/// Translates the error of creating a network.
pub(super) fn of_network(cidr: impl std::fmt::Display, error: Error) -> BackendError {
    match response(&error) {
        Some((_, message)) if message.to_lowercase().contains("overlap") => BackendError::NetworkSetup(
            format!("{cidr} overlaps another network of the instance's host; use a network with another CIDR").into(),
        ),
        Some((400..500, message)) => BackendError::NetworkSetup(message.into()),
        _ => unavailable(error),
    }
}

/// Returns the message of an error and of its causes; hyper's outermost message alone does not name the cause.
fn with_causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response_error(status_code: u16, message: &str) -> Error {
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

    // The messages are those of engine 20.10.24, except where a comment names another.
    #[test]
    fn start_errors_are_translated_by_cause() {
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
            assert_eq!(kind(&of_start(response_error(status, &message))), expected, "{message}");
        }
    }

    #[test]
    fn create_errors_are_translated_by_cause() {
        for (status, message, expected) in [
            (404, "No such image: absent:1", "image not found"),
            (404, "network app-x not found", "unavailable"),
            (400, "Range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available", "refused"),
            (400, "Minimum memory limit allowed is 6MB", "refused"),
            (500, "no space left on device", "unavailable"),
        ] {
            assert_eq!(kind(&of_create(response_error(status, message))), expected, "{message}");
        }
    }

    #[test]
    fn pull_errors_are_translated_without_the_registry_text() {
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
            assert_eq!(kind(&of_pull("x:1", response_error(status, message))), expected, "{message}");
        }
        let foreign = "error parsing HTTP 404 response body: invalid character 'i': \"internal: secret\"";
        for error in [
            response_error(404, foreign),
            response_error(500, foreign),
            Error::DockerStreamError { error: foreign.into() },
        ] {
            let shown = of_pull("x:1", error).to_string();
            assert!(!shown.contains("secret") && !shown.contains("HTTP"), "{shown}");
        }
        let limited = of_pull("x:1", response_error(500, "toomanyrequests: You have reached your pull rate limit"));
        assert!(limited.to_string().ends_with("x:1: the registry limits how often images are pulled"), "{limited}");
        let broken = Error::DockerStreamError { error: "write /x: no space left on device".to_owned() };
        assert_eq!(kind(&of_pull("x:1", broken)), "pull failed");
        assert_eq!(kind(&of_pull("x:1", Error::RequestTimeoutError)), "pull failed");
        let down = Error::SocketNotFoundError("/var/run/docker.sock".to_owned());
        assert_eq!(kind(&of_pull("x:1", down)), "unavailable");
    }

    #[test]
    fn network_errors_are_translated_by_cause() {
        let overlap =
            of_network("10.0.0.0/24", response_error(403, "Pool overlaps with other one on this address space"));
        assert_eq!(kind(&overlap), "network");
        assert!(overlap.to_string().contains("another CIDR"));
        assert_eq!(kind(&of_network("10.0.0.0/24", response_error(400, "invalid"))), "network");
        assert_eq!(kind(&of_network("10.0.0.0/24", response_error(500, "iptables"))), "unavailable");
    }
}
