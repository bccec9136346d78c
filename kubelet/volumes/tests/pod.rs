//! A pod's volumes from outside: set up, mounted, refreshed, taken down. Needs root for mounts.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, Service};
use kubelet_volumes::{
    Allocatable, MountSpec, ObjectError, Objects, PodContext, Propagation, Recursive, Token, Volumes,
};
use serde_json::{Value, json};

#[derive(Default)]
struct Store {
    maps: Mutex<BTreeMap<String, BTreeMap<String, String>>>,
    secrets: Mutex<BTreeMap<String, BTreeMap<String, String>>>,
}

impl Store {
    fn map(&self, name: &str, data: &[(&str, &str)]) {
        let data = data.iter().map(|&(k, v)| (k.into(), v.into())).collect();
        self.maps.lock().unwrap().insert(name.into(), data);
    }
}

impl Objects for Store {
    fn config_map<'a>(&'a self, _: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<ConfigMap>, ObjectError>> {
        let got = self.maps.lock().unwrap().get(name).cloned();
        async move { Ok(got.map(|data| ConfigMap { data: Some(data), ..ConfigMap::default() })) }.boxed()
    }

    fn secret<'a>(&'a self, _: &'a str, name: &'a str) -> BoxFuture<'a, Result<Option<Secret>, ObjectError>> {
        if name == "broken" {
            return async { Err(ObjectError::new("the apiserver is away")) }.boxed();
        }
        let got = self.secrets.lock().unwrap().get(name).cloned();
        let data = got.map(|d| d.into_iter().map(|(k, v)| (k, ByteString(v.into_bytes()))).collect());
        async move { Ok(data.map(|data| Secret { data: Some(data), ..Secret::default() })) }.boxed()
    }

    fn token<'a>(
        &'a self,
        pod: &'a Pod,
        audience: Option<&'a str>,
        seconds: i64,
    ) -> BoxFuture<'a, Result<Token, ObjectError>> {
        let token = format!("{}-{}", pod.metadata.name.as_deref().unwrap(), audience.unwrap_or("api"));
        let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
        async move { Ok(Token { token, expires }) }.boxed()
    }

    fn services<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Vec<Service>, ObjectError>> {
        async { Ok(Vec::new()) }.boxed()
    }
}

struct Bench {
    dir: tempfile::TempDir,
    store: Arc<Store>,
    volumes: Volumes,
    ctx: PodContext,
}

impl Bench {
    /// `None` (and a word why) when the kernel will not let us mount.
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root to mount");
            return None;
        }
        let dir = tempfile::Builder::new().prefix("podfiles-").tempdir().unwrap();
        let store = Arc::new(Store::default());
        store.map("cm", &[("a.conf", "one"), ("b.conf", "two")]);
        store.secrets.lock().unwrap().insert("sec".into(), [("pw".to_owned(), "s3".to_owned())].into());
        let volumes = Volumes::new(dir.path().join("kubelet"), store.clone());
        let ctx = PodContext {
            node_name: "n1".into(),
            pod_ips: vec!["10.0.0.4".into()],
            allocatable: Allocatable { memory_bytes: 64 << 20, ..Allocatable::default() },
            ..PodContext::default()
        };
        Some(Self { dir, store, volumes, ctx })
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join("kubelet/pods/u1").join(path)
    }

    fn mounts(&self, pod: &Pod, env: &[(&str, &str)]) -> Result<Vec<MountSpec>, String> {
        let env: Vec<_> = env.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
        self.volumes.mounts(pod, container(pod), &env, 0).map_err(|e| e.to_string())
    }
}

impl Drop for Bench {
    /// A failed test must not leave mounts on the host.
    fn drop(&mut self) {
        let root = self.dir.path();
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        for point in table.lines().rev().filter_map(|l| l.split(' ').nth(4)).filter(|p| Path::new(p).starts_with(root))
        {
            let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

fn container(pod: &Pod) -> &Container {
    &pod.spec.as_ref().unwrap().containers[0]
}

fn pod(volumes: Value, mounts: Value, security: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "ns", "uid": "u1", "labels": {"app": "web"}},
        "spec": {"volumes": volumes, "securityContext": security,
            "containers": [{"name": "app", "volumeMounts": mounts, "resources": {"limits": {"memory": "32Mi"}}}]}
    }))
    .unwrap()
}

fn is_mount(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4).is_some_and(|p| Path::new(p) == path))
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

#[tokio::test]
async fn all_kinds_are_set_up_refreshed_and_removed() {
    let Some(b) = Bench::new() else { return };
    let host = b.dir.path().join("host");
    let pod = pod(
        json!([
            {"name": "disk", "emptyDir": {}},
            {"name": "mem", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}},
            {"name": "host", "hostPath": {"path": host, "type": "DirectoryOrCreate"}},
            {"name": "cm", "configMap": {"name": "cm", "items": [{"key": "a.conf", "path": "etc/a.conf"}], "defaultMode": 256}},
            {"name": "sec", "secret": {"secretName": "sec"}},
            {"name": "info", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                {"path": "mem", "resourceFieldRef": {"containerName": "app", "resource": "limits.memory", "divisor": "1Mi"}}]}},
            {"name": "all", "projected": {"sources": [{"serviceAccountToken": {"path": "token", "audience": "vault"}},
                {"configMap": {"name": "cm"}}, {"configMap": {"name": "none", "optional": true}},
                {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}}]}}
        ]),
        json!([
            {"name": "disk", "mountPath": "/disk"}, {"name": "mem", "mountPath": "/mem"},
            {"name": "host", "mountPath": "host", "readOnly": true, "recursiveReadOnly": "Enabled"},
            {"name": "cm", "mountPath": "/cm"}, {"name": "disk", "mountPath": "/sub", "subPathExpr": "logs/$(POD)"},
            {"name": "host", "mountPath": "/shared", "mountPropagation": "Bidirectional"}
        ]),
        json!({}),
    );
    b.volumes.setup(&pod, &b.ctx).await.unwrap();
    let read = |p: &str| fs::read_to_string(b.at("volumes").join(p)).unwrap();
    assert_eq!(mode(&b.at("volumes/kubernetes.io~empty-dir/disk")), 0o777);
    let mem = b.at("volumes/kubernetes.io~empty-dir/mem");
    assert!(is_mount(&mem));
    let stat = nix::sys::statvfs::statvfs(&mem).unwrap();
    assert_eq!(stat.blocks() * stat.fragment_size(), 16 << 20);
    assert!(host.is_dir());
    assert_eq!(read("kubernetes.io~configmap/cm/etc/a.conf"), "one");
    assert_eq!(mode(&b.at("volumes/kubernetes.io~configmap/cm/etc/a.conf")), 0o400);
    assert_eq!(read("kubernetes.io~secret/sec/pw"), "s3");
    assert!(is_mount(&b.at("volumes/kubernetes.io~secret/sec")), "secrets stay in memory");
    assert_eq!(read("kubernetes.io~downward-api/info/labels"), "app=\"web\"");
    assert_eq!(read("kubernetes.io~downward-api/info/mem"), "32");
    assert_eq!(read("kubernetes.io~projected/all/token"), "web-vault");
    assert_eq!(read("kubernetes.io~projected/all/namespace"), "ns");
    assert_eq!(read("kubernetes.io~projected/all/b.conf"), "two");

    b.volumes.write_hosts(&pod, &["10.0.0.4".into()], "web", "").unwrap();
    let mounts = b.mounts(&pod, &[("POD", "web")]).unwrap();
    let by =
        |path: &str| mounts.iter().find(|m| m.container_path == path).unwrap_or_else(|| panic!("{path}: {mounts:?}"));
    assert_eq!(by("/disk").host_path, b.at("volumes/kubernetes.io~empty-dir/disk"));
    assert!(!by("/disk").read_only && by("/cm").read_only);
    assert!(
        by("/host").read_only && by("/host").recursive_read_only == Recursive::Enabled && !by("/host").selinux_relabel
    );
    assert_eq!(by("/shared").propagation, Propagation::Bidirectional);
    assert_eq!(by("/etc/hosts").host_path, b.at("etc-hosts"));
    let sub = by("/sub").host_path.clone();
    fs::write(sub.join("f"), "x").unwrap();
    assert_eq!(read("kubernetes.io~empty-dir/disk/logs/web/f"), "x");
    let log = by("/dev/termination-log").host_path.clone();
    assert_eq!(mode(&log), 0o666);
    fs::write(&log, "bye bye").unwrap();
    assert_eq!(b.volumes.termination_message("u1", "app", 0, 4096), "bye bye");
    assert_eq!(b.volumes.termination_message("u1", "app", 0, 3), "bye");
    assert_eq!(b.volumes.termination_message("u1", "app", 1, 3), "");
    assert_eq!(b.mounts(&pod, &[("POD", "web")]).unwrap(), mounts, "a restart gets the same mounts");

    assert!(!b.volumes.refresh(&pod, &b.ctx).await.unwrap());
    b.store.map("cm", &[("a.conf", "changed"), ("c.conf", "three")]);
    assert!(b.volumes.refresh(&pod, &b.ctx).await.unwrap());
    assert_eq!(read("kubernetes.io~configmap/cm/etc/a.conf"), "changed");
    assert_eq!(read("kubernetes.io~projected/all/c.conf"), "three");
    assert!(!b.at("volumes/kubernetes.io~projected/all/b.conf").exists());
    fs::write(mem.join("kept"), "x").unwrap();
    b.volumes.setup(&pod, &b.ctx).await.unwrap();
    assert!(mem.join("kept").exists(), "a repeated set-up keeps what is there");

    let usage = b.volumes.usage("u1");
    assert_eq!(
        usage.iter().map(|u| u.volume.as_str()).collect::<Vec<_>>(),
        ["all", "cm", "disk", "info", "mem", "sec"]
    );
    assert!(usage.iter().all(|u| u.used_bytes > 0 || u.volume == "mem"));
    assert_eq!(b.volumes.pods_on_disk(), ["u1"]);

    // A daemon that was restarted takes down what another one made: the volumes once the pod is over, the rest in the end.
    let second = Volumes::new(b.dir.path().join("kubelet"), b.store.clone());
    let message = b.volumes.layout().termination_log("u1", "main", 0);
    fs::create_dir_all(message.parent().unwrap()).unwrap();
    fs::write(&message, "bye").unwrap();
    for _ in 0..2 {
        second.release("u1").await.unwrap();
        assert!(!b.at("volumes").exists() && !b.at("volume-subpaths").exists());
        assert_eq!(second.termination_message("u1", "main", 0, 10), "bye");
        assert!(second.usage("u1").is_empty());
    }
    second.teardown("u1").await.unwrap();
    assert!(!b.at("").exists());
    assert!(second.pods_on_disk().is_empty());
    assert!(host.is_dir(), "host paths stay");
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(b.dir.path().to_str().unwrap()), "no mount is left");
    second.teardown("u1").await.unwrap();
}

#[tokio::test]
async fn a_group_owns_its_volumes_and_tokens_are_private() {
    let Some(b) = Bench::new() else { return };
    let pod = pod(
        json!([{"name": "disk", "emptyDir": {}}, {"name": "sec", "secret": {"secretName": "sec", "defaultMode": 256}},
            {"name": "tok", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}]),
        json!([]),
        json!({"fsGroup": 4242, "runAsUser": 1000, "fsGroupChangePolicy": "OnRootMismatch"}),
    );
    b.volumes.setup(&pod, &b.ctx).await.unwrap();
    let of = |p: &str| {
        let m = fs::metadata(b.at("volumes").join(p)).unwrap();
        (m.uid(), m.gid(), m.mode() & 0o7777)
    };
    assert_eq!(of("kubernetes.io~empty-dir/disk"), (0, 4242, 0o2777));
    assert_eq!(of("kubernetes.io~secret/sec/pw"), (0, 4242, 0o440));
    assert_eq!(of("kubernetes.io~projected/tok/token"), (1000, 4242, 0o640));
    assert!(!b.volumes.refresh(&pod, &b.ctx).await.unwrap(), "nothing to do again");
    b.volumes.teardown("u1").await.unwrap();
}

#[tokio::test]
async fn failures_are_told_as_users_know_them() {
    let Some(b) = Bench::new() else { return };
    let host = b.dir.path().join("none");
    for (volume, want) in [
        (json!({"configMap": {"name": "y"}}), "configmap \"y\" not found".to_owned()),
        (json!({"secret": {"secretName": "y"}}), "secret \"y\" not found".into()),
        (json!({"secret": {"secretName": "broken"}}), "the apiserver is away".into()),
        (
            json!({"configMap": {"name": "cm", "items": [{"key": "k", "path": "p"}]}}),
            "references non-existent config key: k".into(),
        ),
        (
            json!({"configMap": {"name": "cm", "items": [{"key": "a.conf", "path": "../p"}]}}),
            "invalid path \"../p\" in the volume".into(),
        ),
        (
            json!({"hostPath": {"path": host, "type": "Directory"}}),
            format!("hostPath type check failed: {} is not a directory", host.display()),
        ),
        (
            json!({"nfs": {"server": "s", "path": "/"}}),
            "volume \"x\" is of kind nfs, which this kubelet does not support".into(),
        ),
        (
            json!({"projected": {"sources": [{"configMap": {"name": "y"}}, {"secret": {"name": "z"}}]}}),
            "[configmap \"y\" not found, secret \"z\" not found]".into(),
        ),
        (json!({"emptyDir": {"medium": "Tape"}}), "unknown storage medium \"Tape\"".into()),
        (json!({}), "volume \"x\" has no source".into()),
    ] {
        let mut volume = volume;
        volume["name"] = json!("x");
        let pod = pod(json!([volume, {"name": "good", "emptyDir": {}}]), json!([]), json!({}));
        let e = b.volumes.setup(&pod, &b.ctx).await.unwrap_err().to_string();
        assert_eq!(e, format!("MountVolume.SetUp failed for volume \"x\" : {want}"));
        assert!(b.at("volumes/kubernetes.io~empty-dir/good").is_dir(), "the others were set up");
        b.volumes.teardown("u1").await.unwrap();
    }
    let bad: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "uid": "../x"}})).unwrap();
    assert!(b.volumes.setup(&bad, &b.ctx).await.is_err());
    assert!(b.volumes.teardown("..").await.is_err());
    assert!(b.volumes.teardown("").await.is_err());
}

#[tokio::test]
async fn sub_paths_stay_inside_their_volume() {
    let Some(b) = Bench::new() else { return };
    let volumes = json!([{"name": "disk", "emptyDir": {}}, {"name": "cm", "configMap": {"name": "cm"}}]);
    let with = |mount: Value| pod(volumes.clone(), json!([mount]), json!({}));
    b.volumes.setup(&with(json!({"name": "disk", "mountPath": "/x"})), &b.ctx).await.unwrap();
    let disk = b.at("volumes/kubernetes.io~empty-dir/disk");
    symlink("/etc", disk.join("absolute")).unwrap();
    symlink("../../../../..", disk.join("up")).unwrap();
    for (mount, want) in [
        (json!({"name": "disk", "subPath": "absolute"}), "leaves the volume"),
        (json!({"name": "disk", "subPath": "up/x"}), "leaves the volume"),
        (json!({"name": "disk", "subPath": "../x"}), "must not contain '..'"),
        (json!({"name": "disk", "subPath": "/x"}), "must be a relative path"),
        (json!({"name": "disk", "subPathExpr": "$(NONE)"}), "variable \"NONE\" is not set"),
        (json!({"name": "nowhere"}), "the pod has no such volume"),
        (json!({"name": "disk", "mountPropagation": "Sideways"}), "invalid MountPropagation mode"),
    ] {
        let mut mount = mount;
        mount["mountPath"] = json!("/x");
        let e = b.mounts(&with(mount), &[]).unwrap_err();
        assert!(e.contains(want), "{e}");
    }
    let pod = with(json!({"name": "cm", "mountPath": "/a.conf", "subPath": "a.conf"}));
    let one = b.mounts(&pod, &[]).unwrap()[0].host_path.clone();
    assert_eq!(fs::read_to_string(&one).unwrap(), "one", "a file behind the ..data symlink");
    b.store.map("cm", &[("a.conf", "new")]);
    b.volumes.refresh(&pod, &b.ctx).await.unwrap();
    let two = b.mounts(&pod, &[]).unwrap()[0].host_path.clone();
    assert_eq!((one, fs::read_to_string(&two).unwrap()), (two, "new".into()), "a new container gets the new file");
    b.volumes.teardown("u1").await.unwrap();
    assert!(!b.at("").exists());
}

#[tokio::test]
async fn a_memory_volume_comes_back_after_a_reboot() {
    let Some(b) = Bench::new() else { return };
    let pod = pod(
        json!([{"name": "sec", "secret": {"secretName": "sec"}}, {"name": "mem", "emptyDir": {"medium": "Memory"}}]),
        json!([]),
        json!({}),
    );
    b.volumes.setup(&pod, &b.ctx).await.unwrap();
    for dir in ["volumes/kubernetes.io~secret/sec", "volumes/kubernetes.io~empty-dir/mem"] {
        nix::mount::umount2(&b.at(dir), nix::mount::MntFlags::empty()).unwrap();
    }
    b.volumes.setup(&pod, &b.ctx).await.unwrap();
    assert!(is_mount(&b.at("volumes/kubernetes.io~empty-dir/mem")));
    assert_eq!(fs::read_to_string(b.at("volumes/kubernetes.io~secret/sec/pw")).unwrap(), "s3");
    assert_eq!(b.at("").metadata().unwrap().permissions().mode() & 0o777, 0o750);
    b.volumes.teardown("u1").await.unwrap();
}

#[tokio::test]
async fn host_mounts_survive_the_teardown_of_a_sub_path() {
    use nix::mount::{MsFlags, mount};
    let Some(b) = Bench::new() else { return };
    let host = b.dir.path().join("host");
    let tmpfs = |at: &Path| {
        fs::create_dir_all(at).unwrap();
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        fs::write(at.join("f"), "x").unwrap();
    };
    tmpfs(&host);
    mount(None::<&str>, &host, None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
    tmpfs(&host.join("sub/early"));
    let pod = pod(
        json!([{"name": "host", "hostPath": {"path": host}}]),
        json!([{"name": "host", "mountPath": "/x", "subPath": "sub"}]),
        json!({}),
    );
    b.volumes.setup(&pod, &b.ctx).await.unwrap();
    let pin = b.mounts(&pod, &[]).unwrap()[0].host_path.clone();
    tmpfs(&host.join("sub/late"));
    assert!(pin.join("late/f").exists(), "a later host mount is seen");
    b.volumes.teardown("u1").await.unwrap();
    assert!(!pin.exists());
    assert!(host.join("sub/early/f").exists() && host.join("sub/late/f").exists());
}
