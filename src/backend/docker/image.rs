//! Images: here already, or pulled.
//!
//! Promises: an image that is here causes no traffic to any registry, whatever its name says. One that is not is only asked
//! for at a registry that is allowed (`registry.rs`). A pull without progress ends in a minute.
//! Dropping the future ends the pull. A reference without a tag means `latest`, as everywhere in Docker.
//! Refuses: references with characters that no reference has; they would reach into the engine's paths.

use std::time::Duration;

use bollard::{models::CreateImageInfo, query_parameters::CreateImageOptions};
use futures_util::TryStreamExt;
use tokio::time::Instant;

use super::{
    client::{Engine, SHORT, within},
    error,
    registry::Registries,
};
use crate::backend::{BackendError, Progress};

/// Without a word from the registry for this long, the pull has failed.
const IDLE: Duration = Duration::from_secs(60);
/// At most one line of progress in this time.
const EVERY: Duration = Duration::from_millis(400);

pub(super) async fn ensure(
    engine: &Engine,
    allowed: &Registries,
    image: &str,
    progress: Progress<'_>,
) -> Result<(), BackendError> {
    if !is_plausible(image) {
        return Err(BackendError::ImageNotFound(format!("{image:?}: invalid reference format").into()));
    }
    match within(SHORT, engine.docker().await?.inspect_image(image)).await {
        Ok(_) => Ok(()),
        Err(error) if error::status(&error) == Some(404) => {
            allowed.check(image).await?;
            pull(engine, image, progress).await
        }
        Err(error) if error::status(&error) == Some(400) => Err(error::pulling(image, error)),
        Err(error) => Err(error::general(error)),
    }
}

async fn pull(engine: &Engine, image: &str, progress: Progress<'_>) -> Result<(), BackendError> {
    let options = CreateImageOptions { from_image: Some(with_tag(image)), ..Default::default() };
    let docker = engine.docker().await?.clone().with_timeout(IDLE);
    let mut lines = std::pin::pin!(docker.create_image(Some(options), None, None));
    let mut told: Option<Instant> = None;
    while let Some(info) = within(IDLE, lines.try_next()).await.map_err(|error| error::pulling(image, error))? {
        if told.is_none_or(|told| told.elapsed() >= EVERY)
            && let Some(line) = line(&info)
        {
            told = Some(Instant::now());
            progress(line.into());
        }
    }
    Ok(())
}

/// Without a tag the engine would pull every tag of the repository.
fn with_tag(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains([':', '@']) { image.to_owned() } else { format!("{image}:latest") }
}

fn is_plausible(image: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | ':' | '/' | '@' | '+');
    !image.is_empty() && image.chars().all(allowed) && image.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// `a1b2c3: Downloading 12/34 MB`.
fn line(info: &CreateImageInfo) -> Option<String> {
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
    fn a_reference_without_a_tag_means_latest() {
        assert_eq!(with_tag("nginx"), "nginx:latest");
        assert_eq!(with_tag("127.0.0.1:5000/nginx"), "127.0.0.1:5000/nginx:latest");
        assert_eq!(with_tag("127.0.0.1:5000/nginx:1"), "127.0.0.1:5000/nginx:1");
        assert_eq!(with_tag("nginx@sha256:00"), "nginx@sha256:00");
    }

    #[test]
    fn a_reference_cannot_reach_into_the_engines_paths() {
        for image in ["nginx", "127.0.0.1:5000/a/b_c:1.2-x", "a@sha256:0a"] {
            assert!(is_plausible(image), "{image}");
        }
        for image in ["", "../containers", "a/../b", "a//b", "/a", "a?x=1", "a#b", "a b", "a%2fb", "ä"] {
            assert!(!is_plausible(image), "{image}");
        }
    }
}
