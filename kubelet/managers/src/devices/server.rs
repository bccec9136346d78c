//! Where plugins register, and the task that follows each of them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use proto::deviceplugin::registration_server::{Registration, RegistrationServer};
use proto::deviceplugin::{DevicePluginOptions, Empty, RegisterRequest};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::plugin::Plugin;
use crate::manager::Managers;
use crate::socket;

/// The only version there is.
pub(crate) const VERSION: &str = "v1beta1";

struct Endpoint {
    plugin: Plugin,
    stop: CancellationToken,
}

/// Plugins that are connected, by resource.
#[derive(Default)]
pub(crate) struct Endpoints(Mutex<HashMap<String, Endpoint>>);

impl Endpoints {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Endpoint>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The plugin of a resource.
    pub(crate) fn get(&self, resource: &str) -> Option<Plugin> {
        self.lock().get(resource).map(|e| e.plugin.clone())
    }

    /// Puts a plugin in place of another one, whose task ends.
    fn put(&self, resource: &str, plugin: Plugin) -> CancellationToken {
        let stop = CancellationToken::new();
        let old = self.lock().insert(resource.to_owned(), Endpoint { plugin, stop: stop.clone() });
        if let Some(old) = old {
            old.stop.cancel();
        }
        stop
    }
}

struct Service {
    managers: Managers,
    folder: PathBuf,
}

/// `example.com/gpu`: a name with a domain that is not Kubernetes' own, as requests of pods may have it.
pub(crate) fn is_extended(name: &str) -> bool {
    let Some((domain, rest)) = name.split_once('/') else { return false };
    let word = |t: &str, most: usize| {
        !t.is_empty()
            && t.len() <= most
            && t.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && t.starts_with(|c: char| c.is_ascii_alphanumeric())
            && t.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    let own = domain == "kubernetes.io" || domain.ends_with(".kubernetes.io");
    !own && !name.starts_with("requests.") && word(domain, 253) && word(rest, 63)
}

#[tonic::async_trait]
impl Registration for Service {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        let name = &request.resource_name;
        if request.version != VERSION {
            let text = format!(
                "requested API version {:?} is not supported by kubelet. Supported version is {VERSION:?}",
                request.version
            );
            return Err(Status::invalid_argument(text));
        }
        if !is_extended(name) {
            return Err(Status::invalid_argument(format!("the ResourceName {name:?} is invalid")));
        }
        let endpoint = Path::new(&request.endpoint);
        let in_folder = endpoint.file_name().is_some_and(|f| f == endpoint.as_os_str());
        if !in_folder {
            let text = format!("the endpoint {:?} is not the name of a socket beside kubelet.sock", request.endpoint);
            return Err(Status::invalid_argument(text));
        }
        let socket = self.folder.join(endpoint);
        let (managers, name) = (self.managers.clone(), request.resource_name);
        let options = Some(request.options.unwrap_or_default());
        // Not awaited: a plugin may serve its socket only after its registration was answered.
        tokio::spawn(async move { follow(managers, name, socket, options).await });
        Ok(Response::new(Empty {}))
    }
}

/// Says that a plugin is gone, however its task ends, unless another one has taken its place.
struct Followed {
    managers: Managers,
    resource: String,
    stop: CancellationToken,
}

impl Drop for Followed {
    fn drop(&mut self) {
        if self.stop.is_cancelled() {
            return;
        }
        tracing::warn!(resource = self.resource, "device plugin gone; its devices are not given to new pods");
        self.managers.change(|state| state.devices.stopped(&self.resource, Instant::now()));
    }
}

/// Connects to a plugin and takes what it tells, until it goes away or another one takes its place. A plugin that did not
/// say its options is asked for them.
pub(crate) async fn follow(
    managers: Managers,
    resource: String,
    socket: PathBuf,
    options: Option<DevicePluginOptions>,
) {
    let reached = async {
        let plugin = Plugin::connect(&socket).await?;
        let options = match options {
            Some(options) => options,
            None => plugin.options().await?,
        };
        Ok::<_, Status>((plugin, options))
    };
    let (plugin, options) = match reached.await {
        Ok(reached) => reached,
        Err(e) => {
            tracing::warn!(resource, socket = %socket.display(), error = %e.message(), "device plugin not reached");
            return;
        }
    };
    let stop = managers.endpoints().put(&resource, plugin.clone());
    let followed = Followed { managers: managers.clone(), resource: resource.clone(), stop };
    managers.change(|state| state.devices.registered(&resource, options));
    tracing::info!(resource, socket = %socket.display(), "device plugin registered");
    let work = async {
        let mut stream = plugin.devices().await?;
        while let Some(list) = stream.message().await? {
            managers.devices_told(&resource, list.devices);
        }
        Ok::<(), Status>(())
    };
    tokio::select! {
        ended = work => if let Err(e) = ended {
            tracing::info!(resource, error = e.message(), "device plugin's list of devices ended");
        },
        () = followed.stop.cancelled() => {}
    }
}

/// Serves registrations on `kubelet.sock`, until `stop`. Sockets that earlier plugins left are removed, which tells those
/// that still run to register again.
///
/// # Errors
/// The socket cannot be had.
pub(crate) async fn serve(managers: Managers, folder: PathBuf, stop: CancellationToken) -> std::io::Result<()> {
    std::fs::create_dir_all(&folder)?;
    socket::remove_all(&folder)?;
    let listener = socket::listen(&folder.join("kubelet.sock"))?;
    let service = RegistrationServer::new(Service { managers, folder });
    socket::serve(listener, tonic::transport::Server::builder().add_service(service), stop);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_resources_are_checked() {
        for (name, want) in [
            ("example.com/gpu", true),
            ("vendor.example/dev-1", true),
            ("gpu", false),
            ("kubernetes.io/gpu", false),
            ("sub.kubernetes.io/gpu", false),
            ("example.com/", false),
            ("example.com/-x", false),
            ("requests.example.com/x", false),
        ] {
            assert_eq!(is_extended(name), want, "{name}");
        }
    }
}
