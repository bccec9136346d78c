//! One plugin, from its first answer until its socket is gone.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use proto::registration::registration_client::RegistrationClient;
use proto::registration::{InfoRequest, PluginInfo, RegistrationStatus};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use super::csi;
use crate::shared::Shared;

const LIMIT: Duration = Duration::from_secs(10);
const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(60);

/// A plugin that is taken; dropping it forgets the plugin.
pub(super) enum Held {
    /// A CSI driver.
    Csi(#[expect(dead_code, reason = "it is held, not used")] csi::Driver),
    /// A device plugin.
    Devices(#[expect(dead_code, reason = "it is held, not used")] kubelet_managers::PluginTask),
}

/// Registers the plugin behind a socket, again and again until it works, and holds it until this is aborted.
pub(super) async fn keep(shared: Arc<Shared>, socket: PathBuf) {
    let mut wait = FIRST;
    loop {
        match once(&shared, &socket).await {
            Ok(_held) => std::future::pending::<()>().await,
            Err(error) => {
                tracing::warn!(socket = %socket.display(), error, "plugin not registered, will try again");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(LONGEST);
            }
        }
    }
}

async fn once(shared: &Arc<Shared>, socket: &Path) -> Result<Held, String> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    let channel: Channel = bounded("connect", endpoint.connect_with_connector(connector)).await?;
    let mut client = RegistrationClient::new(channel);
    let info = bounded("GetInfo", client.get_info(InfoRequest {})).await?.into_inner();
    let taken = take(shared, &info, socket).await;
    let status = RegistrationStatus {
        plugin_registered: taken.is_ok(),
        error: taken.as_ref().err().cloned().unwrap_or_default(),
    };
    let told = bounded("NotifyRegistrationStatus", client.notify_registration_status(status)).await;
    let held = taken.map_err(|e| format!("{} plugin {:?}: {e}", info.r#type, info.name))?;
    told?;
    tracing::info!(plugin = info.name, kind = info.r#type, socket = %socket.display(), "plugin registered");
    Ok(held)
}

async fn take(shared: &Arc<Shared>, info: &PluginInfo, socket: &Path) -> Result<Held, String> {
    if info.name.is_empty() {
        return Err("its name is empty".to_owned());
    }
    let endpoint = if info.endpoint.is_empty() { socket.to_owned() } else { PathBuf::from(&info.endpoint) };
    match info.r#type.as_str() {
        "CSIPlugin" => csi::Driver::take(shared, &info.name, &endpoint, &info.supported_versions).await.map(Held::Csi),
        "DevicePlugin" => shared.managers.plugin(&info.name, endpoint, &info.supported_versions).map(Held::Devices),
        other => Err(format!("this kubelet takes no plugins of type {other:?}")),
    }
}

async fn bounded<T, E: std::error::Error>(call: &str, work: impl Future<Output = Result<T, E>>) -> Result<T, String> {
    match tokio::time::timeout(LIMIT, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => {
            let cause = e.source().map(|s| format!(": {s}")).unwrap_or_default();
            Err(format!("{call}: {e}{cause}"))
        }
        Err(_) => Err(format!("{call}: no answer within {} s", LIMIT.as_secs())),
    }
}
