//! Gets images onto the node: those of containers and those of image volumes, each by its pull policy.

pub(crate) mod login;
pub(crate) mod name;
pub(crate) mod providers;
pub(crate) mod records;

use std::time::Instant;

use k8s_openapi::api::core::v1::{Container, Pod};
use proto::cri::{Image, PodSandboxConfig};
use tokio::sync::Semaphore;

use self::login::Login;
use self::providers::Providers;
use self::records::{Owner, Records};
use crate::pod;
use crate::shared::Shared;
use crate::throttle::Throttle;

/// Why a container's image is not there: the reason of its waiting state, and the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageError {
    /// `ErrImagePull`, `ErrImageNeverPull`, `InvalidImageName`, `ImageInspectError`.
    pub(crate) reason: &'static str,
    /// Why.
    pub(crate) message: String,
}

/// What all pulls of the node share.
#[derive(Debug)]
pub(crate) struct Pulls {
    /// Pulls at work.
    pub(crate) slots: Semaphore,
    /// Pulls that begin.
    pub(crate) rate: Throttle,
    /// Programs that know logins.
    pub(crate) providers: Providers,
    /// Who may use what is here.
    pub(crate) records: Records,
}

/// An image that a pod wants.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    /// Its name.
    pub(crate) image: &'a str,
    /// `Always`, `IfNotPresent` or `Never`.
    pub(crate) policy: &'a str,
    /// The container that events are about; that of an image volume is the pod's.
    pub(crate) container: Option<&'a str>,
}

impl<'a> Wanted<'a> {
    /// A container's own image.
    pub(crate) fn of(container: &'a Container) -> Self {
        Self {
            image: container.image.as_deref().unwrap_or_default(),
            policy: pod::pull_policy(container),
            container: Some(&container.name),
        }
    }
}

/// How many pulls may run at once. `serializeImagePulls: false` alone sets no limit, as upstream; where nothing is said there
/// are some at a time, since a big image must not hold up a small one.
pub(crate) fn permits(serialize: Option<bool>, most: Option<i32>) -> usize {
    const NOTHING_SAID: usize = 8;
    match (serialize, most) {
        (Some(true), _) => 1,
        (_, Some(n)) if n > 0 => usize::try_from(n).unwrap_or(NOTHING_SAID),
        (Some(false), _) => Semaphore::MAX_PERMITS,
        _ => NOTHING_SAID,
    }
}

/// Makes sure of an image. Events tell what happened.
///
/// # Errors
/// See [`ImageError`].
pub(crate) async fn ensure(
    shared: &Shared,
    pod: &Pod,
    wanted: Wanted<'_>,
    sandbox: &PodSandboxConfig,
) -> Result<Image, ImageError> {
    let Wanted { image, policy, container } = wanted;
    let event = |warning, reason, message| shared.events.pod(pod, container, warning, reason, message);
    if let Err(why) = name::check(image) {
        let message =
            format!("Failed to apply default image tag {image:?}: couldn't parse image name {image:?}: {why}");
        event(true, "InspectFailed", message.clone());
        return Err(ImageError { reason: "InvalidImageName", message });
    }
    let present = shared.cri.image(image).await.map_err(|e| {
        let message = format!("Failed to inspect image {image:?}: {e}");
        event(true, "InspectFailed", message.clone());
        ImageError { reason: "ImageInspectError", message }
    })?;
    let pulls = &shared.pulls;
    match (policy, present) {
        ("Never", None) => {
            let message = format!("Container image {image:?} is not present with pull policy of Never");
            event(true, "ErrImageNeverPull", message.clone());
            return Err(ImageError { reason: "ErrImageNeverPull", message });
        }
        ("Never" | "IfNotPresent", Some(found)) => {
            let (full, whole) = (name::full(image), name::repository(image));
            let named = found.repo_tags.contains(&full)
                || found.repo_digests.iter().any(|digest| name::repository(digest) == whole);
            let may_use = |logins: &[Login]| pulls.records.may_use(image, &found.id, named, logins);
            let free = !pulls.records.asks()
                || may_use(&[])
                || may_use(&login::of_secrets(shared, pod, image).await)
                || (pulls.providers.asks_for_accounts(image)
                    && may_use(&login::of_providers(shared, &pulls.providers, pod, image).await));
            if free {
                event(false, "Pulled", format!("Container image {image:?} already present on machine"));
                return Ok(found);
            }
            if policy == "Never" {
                let message = format!(
                    "Container image {image:?} is present with pull policy of Never but does not have the proper \
                     credentials: it was pulled with a login that the pod has not"
                );
                event(true, "ErrImageNeverPull", message.clone());
                return Err(ImageError { reason: "ErrImageNeverPull", message });
            }
        }
        _ => {}
    }
    let begin = Instant::now();
    let failed = |why: String| {
        event(true, "Failed", format!("Failed to pull image {image:?}: {why}"));
        event(true, "Failed", "Error: ErrImagePull".to_owned());
        ImageError { reason: "ErrImagePull", message: why }
    };
    let _slot = pulls.slots.acquire().await.map_err(|e| failed(e.to_string()))?;
    pulls.rate.turn().await;
    event(false, "Pulling", format!("Pulling image {image:?}"));
    let alone = Instant::now();
    let logins = login::logins(shared, &pulls.providers, pod, image).await;
    let intent = pulls.records.begin(image).map_err(|e| failed(format!("write down that it is pulled: {e}")))?;
    let found = match pull(shared, image, logins, sandbox).await {
        Ok((found, owner)) => {
            pulls.records.succeeded(intent, &found.id, &owner);
            found
        }
        Err(why) => {
            pulls.records.failed(intent);
            return Err(failed(why));
        }
    };
    let (took, all) = (alone.elapsed().as_millis(), begin.elapsed().as_millis());
    event(
        false,
        "Pulled",
        format!(
            "Successfully pulled image {image:?} in {took}ms ({all}ms including waiting). Image size: {} bytes.",
            found.size
        ),
    );
    Ok(found)
}

/// Tries one login after the other; without any, none.
async fn pull(
    shared: &Shared,
    image: &str,
    logins: Vec<Login>,
    sandbox: &PodSandboxConfig,
) -> Result<(Image, Owner), String> {
    let mut tries: Vec<(Option<_>, Owner)> = logins.into_iter().map(|l| (Some(l.auth), l.owner)).collect();
    if tries.is_empty() {
        tries.push((None, Owner::Node));
    }
    let mut last = String::new();
    for (auth, owner) in tries {
        match shared.cri.pull(image, auth, sandbox.clone()).await {
            Ok(_) => {
                let found = shared.cri.image(image).await.map_err(|e| e.to_string())?;
                return found.map(|found| (found, owner)).ok_or_else(|| "it was pulled but is not there".to_owned());
            }
            Err(e) => last = e.to_string(),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pulls_are_parallel_unless_said_otherwise() {
        assert_eq!((permits(None, None), permits(Some(true), None), permits(Some(false), Some(3))), (8, 1, 3));
        assert_eq!((permits(None, Some(1)), permits(Some(false), None)), (1, Semaphore::MAX_PERMITS));
    }
}
