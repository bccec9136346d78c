//! Volumes of a CSI driver that listens on a real socket and mounts real folders. Needs root for mounts.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use futures::future::{BoxFuture, ready};
use gantry_test_csi::Driver;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use kubelet_volumes::{ObjectError, Objects, PodContext, Token, Volumes};
use serde_json::{Value, json};

const NAME: &str = "d.test";

/// What the cluster says; claims and volumes are all alike.
#[derive(Default)]
struct Cluster {
    driver: Mutex<Value>,
    volume: Mutex<Value>,
    attachment: Mutex<Option<Value>>,
}

fn of<T: serde::de::DeserializeOwned + Send + 'static>(
    value: Option<Value>,
) -> BoxFuture<'static, Result<Option<T>, ObjectError>> {
    Box::pin(ready(Ok(value.map(|v| serde_json::from_value(v).unwrap()))))
}

impl Objects for Cluster {
    fn config_map<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<Option<ConfigMap>, ObjectError>> {
        of(None)
    }

    fn secret<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<Option<Secret>, ObjectError>> {
        of(None)
    }

    fn token<'a>(&'a self, _: &'a Pod, _: Option<&'a str>, _: i64) -> BoxFuture<'a, Result<Token, ObjectError>> {
        Box::pin(ready(Err(ObjectError::new("no tokens here"))))
    }

    fn services<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Vec<Service>, ObjectError>> {
        Box::pin(ready(Ok(Vec::new())))
    }

    fn claim<'a>(
        &'a self,
        _: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<PersistentVolumeClaim>, ObjectError>> {
        of(Some(json!({"metadata": {"name": name}, "spec": {"volumeName": "pv"}, "status": {"phase": "Bound"}})))
    }

    fn persistent_volume<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<PersistentVolume>, ObjectError>> {
        of(Some(json!({"metadata": {"name": name}, "spec": *self.volume.lock().unwrap()})))
    }

    fn csi_driver<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<CSIDriver>, ObjectError>> {
        of(Some(json!({"metadata": {"name": name}, "spec": *self.driver.lock().unwrap()})))
    }

    fn volume_attachment<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<VolumeAttachment>, ObjectError>> {
        of(self.attachment.lock().unwrap().clone())
    }
}

struct Bench {
    dir: tempfile::TempDir,
    cluster: Arc<Cluster>,
    volumes: Volumes,
    driver: Driver,
    ctx: PodContext,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Bench {
    /// `None` without root.
    async fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root to mount");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let driver = Driver::new(NAME, &dir.path().join("driver")).unwrap();
        let serving = driver.clone();
        let serving = tokio::spawn(async move { serving.serve().await.unwrap() });
        while !driver.socket().exists() {
            tokio::task::yield_now().await;
        }
        let cluster = Arc::new(Cluster::default());
        *cluster.driver.lock().unwrap() = json!({"attachRequired": false});
        *cluster.volume.lock().unwrap() = json!({"claimRef": {"namespace": "ns"}, "accessModes": ["ReadWriteOnce"],
            "csi": {"driver": NAME, "volumeHandle": "h1"}});
        let volumes = Volumes::new(dir.path().join("kubelet"), cluster.clone());
        let known = volumes.drivers().register(NAME, &driver.socket()).await.unwrap();
        assert_eq!((known.node_id.as_str(), known.max_volumes), ("test-node", 10));
        let ctx = PodContext { node_name: "n1".into(), ..PodContext::default() };
        Some(Self { dir, cluster, volumes, driver, ctx, serving })
    }

    /// Another kubelet on the same folders.
    async fn restart(&mut self) {
        self.volumes = Volumes::new(self.dir.path().join("kubelet"), self.cluster.clone());
        self.volumes.drivers().register(NAME, &self.driver.socket()).await.unwrap();
    }

    fn count(&self, call: &str) -> usize {
        self.driver.calls().iter().filter(|c| c.starts_with(call)).count()
    }

    fn csi_folder(&self) -> PathBuf {
        self.dir.path().join("kubelet/plugins/kubernetes.io/csi")
    }
}

fn pod(uid: &str, container: Value) -> Pod {
    let mut container = container;
    container["name"] = json!("c");
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": uid}, "spec": {
        "containers": [container], "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]}}))
    .unwrap()
}

fn mounting() -> Value {
    json!({"volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": "part"}]})
}

fn mounts_below(dir: &std::path::Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = table.lines().filter_map(|l| l.split(' ').nth(4));
    points.filter(|p| std::path::Path::new(p).starts_with(dir)).map(str::to_owned).collect()
}

#[tokio::test]
async fn what_a_kubelet_that_died_left_is_taken_away() {
    let Some(mut b) = Bench::new().await else { return };
    let pod = pod("u1", mounting());
    b.volumes.setup(&pod, &b.ctx).await.unwrap();
    let container = &pod.spec.as_ref().unwrap().containers[0];
    let mounts = b.volumes.mounts(&pod, container, &[], 0).unwrap();
    std::fs::write(mounts[0].host_path.join("file"), "x").unwrap();
    assert!(b.driver.volume("h1").join("part/file").exists(), "a sub-path is in the driver's volume");
    let usage = b.volumes.backed_usage("u1").await;
    assert_eq!((usage[0].0.volume.as_str(), usage[0].0.used_bytes), ("v", 4096));
    assert_eq!(usage[0].1.as_deref(), Some("data"));
    assert_eq!(usage[0].0.health, None, "the driver says nothing of it");
    b.driver.sicken("h1", "a disk is missing").unwrap();
    let health = b.volumes.backed_usage("u1").await[0].0.health.clone().unwrap();
    assert!(health.abnormal && health.message == "a disk is missing", "{health:?}");
    b.driver.sicken("h1", "").unwrap();
    assert!(!b.volumes.backed_usage("u1").await[0].0.health.as_ref().unwrap().abnormal);
    assert!(b.volumes.usage("u1").iter().all(|u| u.volume != "pv"), "the kubelet does not walk a driver's files");
    b.restart().await;
    // The driver refuses: the pod keeps what it has, and nothing is torn out of the driver's hands.
    b.driver.fail("NodeUnpublishVolume", Some("busy")).unwrap();
    let faults = b.volumes.teardown("u1").await.unwrap_err();
    assert!(faults[0].to_string().contains("NodeUnpublishVolume of driver d.test: busy"), "{faults:?}");
    assert!(mounts_below(b.dir.path()).iter().any(|m| m.ends_with("kubernetes.io~csi/pv/mount")));
    b.driver.fail("NodeUnpublishVolume", None).unwrap();
    // It dies between the two steps: the pod is gone, the volume still staged.
    b.driver.fail("NodeUnstageVolume", Some("not now")).unwrap();
    assert!(b.volumes.teardown("u1").await.is_err());
    b.restart().await;
    b.volumes.teardown("u1").await.unwrap();
    b.volumes.sweep().await;
    assert_eq!(mounts_below(b.dir.path()).len(), 1, "it is still staged");
    b.driver.fail("NodeUnstageVolume", None).unwrap();
    b.volumes.sweep().await;
    assert_eq!(mounts_below(b.dir.path()), Vec::<String>::new());
    assert!(b.csi_folder().join(NAME).read_dir().unwrap().next().is_none());
    assert!(b.volumes.pods_on_disk().is_empty());
    assert!(b.driver.volume("h1").join("part/file").exists(), "the data stays");
    b.volumes.sweep().await;
    assert_eq!(b.count("NodeUnstageVolume"), 3);
}

#[tokio::test]
async fn a_volume_stays_staged_while_a_pod_has_it() {
    let Some(b) = Bench::new().await else { return };
    let (one, two) = (pod("u1", mounting()), pod("u2", mounting()));
    let (first, second) = tokio::join!(b.volumes.setup(&one, &b.ctx), b.volumes.setup(&two, &b.ctx));
    first.unwrap();
    second.unwrap();
    b.volumes.sweep().await;
    b.volumes.teardown("u1").await.unwrap();
    assert_eq!(b.count("NodeUnstageVolume"), 0);
    b.volumes.teardown("u2").await.unwrap();
    assert_eq!((b.count("NodeUnpublishVolume"), b.count("NodeUnstageVolume")), (2, 1));
    assert_eq!(mounts_below(b.dir.path()), Vec::<String>::new());
}

#[tokio::test]
async fn a_raw_device_reaches_its_container() {
    let Some(b) = Bench::new().await else { return };
    b.cluster.volume.lock().unwrap()["volumeMode"] = json!("Block");
    let wrong = b.volumes.setup(&pod("u1", mounting()), &b.ctx).await.unwrap_err().to_string();
    assert!(wrong.contains("volume v has volumeMode Block, but is specified in volumeMounts"), "{wrong}");
    b.volumes.teardown("u1").await.unwrap();
    let pod = pod("u2", json!({"volumeDevices": [{"name": "v", "devicePath": "/dev/disk"}]}));
    b.volumes.setup(&pod, &b.ctx).await.unwrap();
    let devices = b.volumes.devices(&pod, &pod.spec.as_ref().unwrap().containers[0]).unwrap();
    assert_eq!(devices[0].container_path, "/dev/disk");
    use std::os::unix::fs::FileTypeExt;
    assert!(devices[0].host_path.metadata().unwrap().file_type().is_char_device());
    b.volumes.teardown("u2").await.unwrap();
    assert!(!devices[0].host_path.exists());
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let Some(b) = Bench::new().await else { return };
    let pod = pod("u1", mounting());
    let error = async || b.volumes.setup(&pod, &b.ctx).await.unwrap_err().to_string();
    *b.cluster.driver.lock().unwrap() = json!({});
    let text = error().await;
    assert!(text.contains("volume pv is not yet attached to node n1: there is no VolumeAttachment csi-"), "{text}");
    let attacher = json!({"attacher": NAME, "nodeName": "n1", "source": {}});
    let attachment = |status: Value| json!({"metadata": {"name": "x"}, "spec": attacher, "status": status});
    *b.cluster.attachment.lock().unwrap() =
        Some(attachment(json!({"attached": false, "attachError": {"message": "the cable is out"}})));
    let text = error().await;
    assert!(text.contains("not yet attached") && text.contains("the cable is out"), "{text}");
    *b.cluster.attachment.lock().unwrap() = Some(attachment(json!({"attached": true})));
    b.driver.fail("NodeStageVolume", Some("no such disk")).unwrap();
    assert!(error().await.contains("NodeStageVolume of driver d.test: no such disk"));
    b.driver.fail("NodeStageVolume", None).unwrap();
    b.volumes.setup(&pod, &b.ctx).await.unwrap();
    assert!(b.volumes.drivers().unregister(NAME, &b.driver.socket()));
    assert!(error().await.contains("driver name d.test not found in the list of registered CSI drivers"));
    let faults = b.volumes.teardown("u1").await.unwrap_err();
    assert!(faults[0].to_string().contains("driver name d.test not found"), "{faults:?}");
    b.volumes.drivers().register(NAME, &b.driver.socket()).await.unwrap();
    b.volumes.teardown("u1").await.unwrap();
}
