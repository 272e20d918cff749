//! Images: looks for one on the host, and pulls it if it is not there.
//!
//! An image that is on the host causes no traffic to any registry, whatever its name. One that is not is only pulled
//! from a registry that is allowed (`registry`). A pull without progress fails after a minute, and dropping the future
//! ends it. A reference without a tag means `latest`, as everywhere in Docker. References with characters that no
//! reference has are refused, because they would become part of the paths of engine requests.

use std::time::Duration;

use bollard::{models::CreateImageInfo, query_parameters::CreateImageOptions};
use futures_util::TryStreamExt;
use tokio::time::Instant;

use super::{
    client::{Engine, SHORT_CALL_TIMEOUT, within},
    error,
    registry::Registries,
};
use crate::backend::{BackendError, Progress};

/// A pull without progress for this long has failed.
const PULL_IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// The shortest time between two lines of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(400);

/// Makes an image available on the host.
///
/// # Errors `ImageNotFound` for a reference that is invalid or that the registry does not have; `ImagePullFailed` for a
/// registry that is not allowed or a transfer that failed.
pub(super) async fn ensure(
    engine: &Engine,
    allowed: &Registries,
    image: &str,
    progress: Progress<'_>,
) -> Result<(), BackendError> {
    if !has_valid_characters(image) {
        return Err(BackendError::ImageNotFound(format!("{image:?}: invalid reference format").into()));
    }
    match within(SHORT_CALL_TIMEOUT, engine.docker().await?.inspect_image(image)).await {
        Ok(_) => Ok(()),
        Err(error) if error::status(&error) == Some(404) => {
            allowed.check(image).await?;
            pull(engine, image, progress).await
        }
        Err(error) if error::status(&error) == Some(400) => Err(error::of_pull(image, error)),
        Err(error) => Err(error::from_response(error)),
    }
}

async fn pull(engine: &Engine, image: &str, progress: Progress<'_>) -> Result<(), BackendError> {
    let options = CreateImageOptions { from_image: Some(with_tag(image)), ..Default::default() };
    let docker = engine.docker().await?.clone().with_timeout(PULL_IDLE_TIMEOUT);
    let mut lines = std::pin::pin!(docker.create_image(Some(options), None, None));
    let mut reported_at: Option<Instant> = None;
    while let Some(info) =
        within(PULL_IDLE_TIMEOUT, lines.try_next()).await.map_err(|error| error::of_pull(image, error))?
    {
        if reported_at.is_none_or(|at| at.elapsed() >= PROGRESS_INTERVAL)
            && let Some(line) = progress_line(&info)
        {
            reported_at = Some(Instant::now());
            progress(line.into());
        }
    }
    Ok(())
}

/// Adds the tag `latest` to a reference without a tag; the engine would pull every tag of the repository.
fn with_tag(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains([':', '@']) { image.to_owned() } else { format!("{image}:latest") }
}

fn has_valid_characters(image: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | ':' | '/' | '@' | '+');
    !image.is_empty() && image.chars().all(allowed) && image.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// Formats progress for people: `a1b2c3: Downloading 12/34 MB`.
fn progress_line(info: &CreateImageInfo) -> Option<String> {
    let mut line = info.status.clone()?;
    if let Some(id) = &info.id {
        line = format!("{id}: {line}");
    }
    if let Some(detail) = &info.progress_detail
        && let (Some(current), Some(total)) = (detail.current, detail.total)
        && total > 0
    {
        line.push_str(&format!(" {}/{} MB", current / 1_000_000, (total + 999_999) / 1_000_000));
    }
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_without_a_tag_means_latest() {
        assert_eq!(with_tag("nginx"), "nginx:latest");
        assert_eq!(with_tag("127.0.0.1:5000/nginx"), "127.0.0.1:5000/nginx:latest");
        assert_eq!(with_tag("127.0.0.1:5000/nginx:1"), "127.0.0.1:5000/nginx:1");
        assert_eq!(with_tag("nginx@sha256:00"), "nginx@sha256:00");
    }

    #[test]
    fn reference_cannot_change_the_paths_of_engine_requests() {
        for image in ["nginx", "127.0.0.1:5000/a/b_c:1.2-x", "a@sha256:0a"] {
            assert!(has_valid_characters(image), "{image}");
        }
        for image in ["", "../containers", "a/../b", "a//b", "/a", "a?x=1", "a#b", "a b", "a%2fb", "ä"] {
            assert!(!has_valid_characters(image), "{image}");
        }
    }
}
