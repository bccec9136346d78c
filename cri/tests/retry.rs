//! A call whose client lost its patience goes on, and the same call again joins it: nothing is done twice, and nobody is told that
//! a name is taken.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::registry::Registry;
use common::{Client, Daemon, until};
use proto::cri;
use proto::cri::image_service_client::ImageServiceClient;

const LIMIT: Duration = Duration::from_secs(60);

fn script(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
}

/// A daemon whose runtime and network plugin write down what they are asked to do, and wait while `hold-WHAT` is there.
struct Slow {
    daemon: Daemon,
    folder: PathBuf,
}

impl Slow {
    fn start() -> Option<Self> {
        let mut daemon = Daemon::start()?;
        daemon.stop();
        let folder = daemon.path("slow");
        fs::create_dir_all(&folder).unwrap();
        let wait = format!(
            "echo $what >>{0}/calls; while [ -e {0}/hold-$what ]; do /bin/busybox sleep 0.05; done",
            folder.display()
        );
        let run = daemon.programs().join("gantry-run");
        let text =
            format!("for what; do case $what in run|delete) {wait} ;; esac; done\nexec {} \"$@\"", run.display());
        script(&folder.join("run"), &text);
        let mut install = Command::new(daemon.programs().join("gantry-cni"));
        assert!(install.arg("install").arg(folder.join("cni")).output().unwrap().status.success());
        let bridge = daemon.path("cni/bridge");
        fs::remove_file(&bridge).unwrap();
        script(&bridge, &format!("what=$CNI_COMMAND\n{wait}\nexec {}/cni/bridge", folder.display()));
        let config = fs::read_to_string(daemon.path("cri.toml")).unwrap();
        let config = format!("runtime = \"{}/run\"\n{config}", folder.display());
        fs::write(daemon.path("cri.toml"), config).unwrap();
        daemon.launch();
        Some(Self { daemon, folder })
    }

    fn count(&self, what: &str) -> usize {
        let calls = fs::read_to_string(self.folder.join("calls")).unwrap_or_default();
        calls.lines().filter(|l| *l == what).count()
    }

    /// A call whose client gives up while `what` is at work, then the same call again, which is to succeed without a second `what`.
    async fn again<T, F>(&self, what: &str, call: impl Fn() -> F) -> T
    where
        T: Send + 'static,
        F: Future<Output = Result<T, tonic::Status>> + Send + 'static,
    {
        let before = self.count(what);
        let gate = self.folder.join(format!("hold-{what}"));
        fs::write(&gate, "").unwrap();
        let first = tokio::spawn(call());
        until(what, LIMIT, || (self.count(what) > before).then_some(()));
        first.abort();
        let _ = first.await;
        let second = tokio::spawn(call());
        // Long enough for a daemon that would answer at once that the name is taken.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!second.is_finished(), "{what} goes on, and the second call has an answer");
        fs::remove_file(&gate).unwrap();
        let answer = tokio::time::timeout(LIMIT, second).await.expect("an answer in time").unwrap().unwrap();
        assert_eq!(self.count(what), before + 1, "{what} was done again");
        answer
    }
}

async fn containers(client: &Client) -> Vec<cri::Container> {
    let ask = cri::ListContainersRequest { filter: None };
    client.clone().list_containers(ask).await.unwrap().into_inner().containers
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_impatient_clients_are_joined() {
    let Some(slow) = Slow::start() else { return };
    let client = slow.daemon.client().await;
    let config = common::pod("joined");
    let pod = slow
        .again("ADD", || {
            let (mut client, config) = (client.clone(), Some(config.clone()));
            async move {
                let ask = cri::RunPodSandboxRequest { config, runtime_handler: String::new() };
                Ok(client.run_pod_sandbox(ask).await?.into_inner().pod_sandbox_id)
            }
        })
        .await;
    let listed = client.clone().list_pod_sandbox(cri::ListPodSandboxRequest { filter: None }).await.unwrap();
    let listed: Vec<String> = listed.into_inner().items.into_iter().map(|s| s.id).collect();
    assert!(listed.len() == 1 && listed[0] == pod, "{listed:?}");
    let create = |name: &str, script: &str| {
        let (mut client, main) = (client.clone(), common::container(name, script));
        let (pod, config) = (pod.clone(), config.clone());
        async move { common::create(&mut client, &pod, &config, main).await }
    };
    let twice = || create("main", "exec /bin/busybox sleep 1000");
    let (id, same) = tokio::join!(twice(), twice());
    let id = id.unwrap();
    assert_eq!(id, same.unwrap());
    let listed = containers(&client).await;
    assert!(listed.len() == 1 && listed[0].id == id, "{listed:?}");
    slow.again("run", || {
        let (mut client, container_id) = (client.clone(), id.clone());
        async move { common::start(&mut client, &container_id).await }
    })
    .await;
    assert_eq!(common::state(&mut client.clone(), &id).await.state(), cri::ContainerState::ContainerRunning);
    create("other", "exec /bin/busybox sleep 1000").await.unwrap();
    slow.again("delete", || {
        let (mut client, container_id) = (client.clone(), id.clone());
        async move { client.remove_container(cri::RemoveContainerRequest { container_id }).await.map(drop) }
    })
    .await;
    assert_eq!(containers(&client).await.len(), 1);
    slow.again("DEL", || {
        let (mut client, pod_sandbox_id) = (client.clone(), pod.clone());
        async move { client.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id }).await.map(drop) }
    })
    .await;
    // Its container was let go of when that ended: nothing slow is left to do.
    let ask = cri::RemovePodSandboxRequest { pod_sandbox_id: pod.clone() };
    client.clone().remove_pod_sandbox(ask).await.unwrap();
    assert!(containers(&client).await.is_empty());
    slow.daemon.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_is_asked_for_once_and_comes_to_its_end_without_its_client() {
    let Some(daemon) = Daemon::start() else { return };
    let client = daemon.client().await;
    // It hears the request, says so, and stays.
    let deaf = "trap 'echo asked' TERM; echo ready; while :; do /bin/busybox sleep 0.1; done";
    let mut config = common::pod("deaf");
    config.log_directory = daemon.path("logs").display().to_string();
    let pod = common::run_pod(&mut client.clone(), &config, "").await.unwrap();
    for retried in [false, true] {
        let mut main = common::container(&format!("deaf-{retried}"), deaf);
        main.log_path = format!("{retried}.log");
        let id = common::create_and_start(&mut client.clone(), &pod, &config, main).await.unwrap();
        let log = daemon.path("logs").join(format!("{retried}.log"));
        let said = |word: &str| {
            let text = fs::read_to_string(&log).unwrap_or_default();
            text.lines().filter(|l| l.ends_with(word)).count()
        };
        until("the container", LIMIT, || (said("ready") == 1).then_some(()));
        let stop = |timeout| {
            let (mut client, container_id) = (client.clone(), id.clone());
            tokio::spawn(
                async move { client.stop_container(cri::StopContainerRequest { container_id, timeout }).await },
            )
        };
        let first = stop(if retried { 1000 } else { 1 });
        until("the signal", LIMIT, || (said("asked") == 1).then_some(()));
        first.abort();
        let _ = first.await;
        if retried {
            tokio::time::timeout(LIMIT, stop(1)).await.expect("an answer in time").unwrap().unwrap();
        }
        let mut asker = client.clone();
        let end = std::time::Instant::now() + LIMIT;
        while common::state(&mut asker, &id).await.state() != cri::ContainerState::ContainerExited {
            assert!(!retried && std::time::Instant::now() < end, "it does not end");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(said("asked"), 1);
        assert_eq!(common::state(&mut asker, &id).await.exit_code, 137);
    }
    common::remove_pod(&mut client.clone(), &pod).await.unwrap();
    daemon.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_is_joined_by_whoever_asks_again() {
    let Some(daemon) = Daemon::start() else { return };
    let gate = daemon.path("hold-blobs");
    fs::write(&gate, "").unwrap();
    let registry = Registry::start(daemon.init(), 1, 300_000, gate.clone());
    let address = format!("unix://{}", daemon.path("cri.sock").display());
    let client = ImageServiceClient::new(tonic::transport::Endpoint::new(address).unwrap().connect_lazy());
    let pull = || {
        let (mut client, image) = (client.clone(), registry.image.clone());
        tokio::spawn(async move {
            let image = Some(cri::ImageSpec { image, ..Default::default() });
            client.pull_image(cri::PullImageRequest { image, ..Default::default() }).await
        })
    };
    let first = pull();
    until("the download", LIMIT, || (registry.asked("/blobs/") > 0).then_some(()));
    first.abort();
    let _ = first.await;
    let manifests = registry.asked("/manifests/");
    let again = [pull(), pull()];
    tokio::time::sleep(Duration::from_millis(300)).await;
    fs::remove_file(&gate).unwrap();
    for pull in again {
        let id = tokio::time::timeout(LIMIT, pull).await.expect("an answer in time").unwrap().unwrap();
        assert!(id.into_inner().image_ref.starts_with("sha256:"));
    }
    assert_eq!(
        (registry.asked("/manifests/"), registry.asked("/blobs/")),
        (manifests, 2),
        "something was fetched again"
    );
    daemon.assert_clean();
}
