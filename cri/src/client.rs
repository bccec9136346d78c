//! What `gantry-cri` asks of a running daemon, through the CRI itself: so it works on any CRI server.

use std::path::Path;

use anyhow::Context;
use proto::cri;
use proto::cri::runtime_service_client::RuntimeServiceClient;
use tonic::transport::Channel;

type Client = RuntimeServiceClient<Channel>;

async fn connect(socket: &Path) -> anyhow::Result<Client> {
    let address = format!("unix://{}", socket.display());
    let channel = tonic::transport::Endpoint::new(address)?.connect().await;
    let channel = channel.with_context(|| format!("no CRI daemon answers at {}", socket.display()))?;
    Ok(Client::new(channel))
}

/// Stops and removes every pod sandbox; goes on after a failure and tells all of them at the end.
///
/// # Errors
/// The daemon does not answer, or a pod could not be removed.
pub async fn remove_all_pods(socket: &Path) -> anyhow::Result<()> {
    let mut client = connect(socket).await?;
    let list = client.list_pod_sandbox(cri::ListPodSandboxRequest { filter: None }).await?.into_inner();
    let mut faults = Vec::new();
    for pod in list.items {
        let id = pod.id.clone();
        let stopped = client.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await;
        let removed = client.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: id.clone() }).await;
        let name = pod.metadata.map(|m| format!("{}/{}", m.namespace, m.name)).unwrap_or_default();
        for (verb, outcome) in [("stop", stopped.err()), ("remove", removed.err())] {
            if let Some(status) = outcome {
                faults.push(format!("{verb} {name} ({id}): {}", status.message()));
            }
        }
    }
    if faults.is_empty() { Ok(()) } else { anyhow::bail!("{}", faults.join("\n")) }
}

/// Prints what the daemon holds for a container or sandbox.
///
/// # Errors
/// The daemon does not answer, or knows neither a container nor a sandbox of that id.
pub async fn explain(socket: &Path, id: &str) -> anyhow::Result<()> {
    let mut client = connect(socket).await?;
    let ask = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
    if let Ok(answer) = client.container_status(ask).await {
        println!("{:#?}", answer.into_inner());
        return Ok(());
    }
    let ask = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
    match client.pod_sandbox_status(ask).await {
        Ok(answer) => println!("{:#?}", answer.into_inner()),
        Err(status) => anyhow::bail!("no container or sandbox {id}: {}", status.message()),
    }
    Ok(())
}
