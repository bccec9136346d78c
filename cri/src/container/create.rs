//! CreateContainer: record, snapshot, configuration; failures undo in reverse.
//!
//! No OCI runtime runs yet. Everything that a request can say wrong is found here, by name; the process and all that the runtime
//! makes for it come with StartContainer ([`super::start`]). That is containerd's split, too, by which kubelets and their users
//! tell CreateContainerError from RunContainerError: what the runtime itself refuses is told by StartContainer.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use gantry_sys::root::Root;
use proto::cri;
use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};

use super::life::release;
use super::{log_path, restore};
use crate::daemon::{Container, Daemon, Making, Sandbox, lock, new_id, now};
use crate::error::{Error, Result};
use crate::events::emit;
use crate::ledger::{ContainerRecord, Wire};
use crate::oci::{capabilities, cdi, refuse, seccomp, spec, user};
use crate::sandbox::users;
use crate::{cgroups, nri, sandbox};

/// Makes a container, or answers the one that has the same metadata in this sandbox already.
///
/// # Errors
/// What failed; nothing is left then.
pub async fn create(daemon: &Arc<Daemon>, sandbox: &str, mut config: cri::ContainerConfig) -> Result<String> {
    refuse::container(&config, refuse::selinux()).map_err(Error::Invalid)?;
    if let Some(security) = config.linux.as_mut().and_then(|l| l.security_context.as_mut()) {
        refuse::modern(security).map_err(Error::Invalid)?;
    }
    let sandbox = daemon.sandbox(sandbox)?;
    let metadata = config.metadata.clone().ok_or_else(|| Error::Invalid("the container has no metadata".to_owned()))?;
    let _turn = daemon.name_turn(&format!("{}_{}_{}", sandbox.id, metadata.name, metadata.attempt)).await;
    let same = |c: &Arc<Container>| c.with(|r| r.config.0.metadata.as_ref() == Some(&metadata));
    if let Some(existing) = daemon.containers_of(&sandbox.id).into_iter().find(same) {
        if existing.with(|r| r.complete && !r.doomed) {
            return Ok(existing.id.clone());
        }
        // What an earlier try or a removal could not let go of.
        super::remove(daemon, &existing.id).await?;
    }
    let pod = sandbox.record();
    if pod.stopped {
        return Err(Error::State(format!("sandbox {} is not ready", sandbox.id)));
    }
    able(daemon, &pod.handler, &config.mounts).await?;
    let name = config.image.clone().unwrap_or_default().image;
    let source = restore::source(daemon, &name).await?;
    let image = match &source {
        Some(source) => source.image(daemon).await?,
        None => daemon.images.get(&name).ok_or_else(|| Error::NotFound(format!("image {name:?}")))?,
    };
    let id = new_id();
    let parent = sandbox::cgroup(daemon, &pod)?;
    let resources = config.linux.as_ref().and_then(|l| l.resources.clone()).unwrap_or_default();
    let stop_signal = match config.stop_signal() {
        cri::Signal::RuntimeDefault if image.config.stop_signal.is_empty() => "SIGTERM".to_owned(),
        cri::Signal::RuntimeDefault => image.config.stop_signal.clone(),
        other => other.as_str_name().to_owned(),
    };
    let record = ContainerRecord {
        id: id.clone(),
        sandbox: sandbox.id.clone(),
        image_id: image.id.clone(),
        image_ref: image.repo_digests.first().cloned().unwrap_or_else(|| image.id.clone()),
        created_at: now(),
        started_at: 0,
        complete: false,
        cgroup: cgroups::of_container(daemon.config.cgroup_driver, &parent, &id),
        log_path: log_path(&pod.config.0.log_directory, &config.log_path),
        stop_signal,
        user: Default::default(),
        resources: Wire(resources),
        exit: None,
        reason: String::new(),
        message: String::new(),
        views: Vec::new(),
        restore: source.map(|source| source.archive),
        checkpoint: None,
        doomed: false,
        config: Wire(config),
    };
    let container = Arc::new(Container::new(record));
    let _making = Making::new(daemon, &id);
    container.change(&daemon.ledger, |_| {})?;
    let mut made = make(daemon, &sandbox, &container, &image).await;
    // Whoever stops or removes the pod from now on sees this container; if that has happened already, nobody would.
    let _pods_turn = sandbox.turn.lock().await;
    if made.is_ok() && (daemon.sandbox(&sandbox.id).is_err() || sandbox.record().stopped) {
        made = Err(Error::State(format!("sandbox {} was stopped meanwhile", sandbox.id)));
    }
    let coming = match made {
        Ok(coming) => coming,
        Err(error) => return Err(undo(daemon, &container, error).await),
    };
    *lock(&container.syncing) = Some(daemon.record_synced(&id));
    daemon.add_container(container.clone());
    drop(coming);
    emit(daemon, &id, &sandbox.id, cri::ContainerEventType::ContainerCreatedEvent);
    tracing::info!(container = %id, sandbox = %sandbox.id, name = %metadata.name, "container created");
    nri::container_made(daemon, &container).await;
    Ok(id)
}

/// Whether the OCI runtime can make these mounts: one that does not know what is asked for passes over it in silence.
async fn able(daemon: &Daemon, handler: &str, mounts: &[cri::Mount]) -> Result<()> {
    let special = |m: &&cri::Mount| m.recursive_read_only || !m.uid_mappings.is_empty();
    if !mounts.iter().any(|m| special(&m)) {
        return Ok(());
    }
    let Some(program) = daemon.settings().handler(handler) else { return Ok(()) };
    let can = daemon.handlers.of(&program).await;
    for mount in mounts {
        let field = match mount {
            m if m.recursive_read_only && !can.recursive_read_only => "recursive_read_only",
            m if !m.uid_mappings.is_empty() && !can.mapped_ids => "uidMappings",
            _ => continue,
        };
        let place = format!("mount to {}", mount.container_path);
        return Err(Error::Invalid(format!(
            "{place}: {field}: {} does not list it among its features",
            program.display()
        )));
    }
    Ok(())
}

/// Lets go of a half-made container. Answers why it was not made.
async fn undo(daemon: &Arc<Daemon>, container: &Arc<Container>, error: Error) -> Error {
    let faults = release(daemon, container).await;
    for fault in &faults {
        tracing::warn!(container = %container.id, %fault, "undo of a failed container");
    }
    if faults.is_empty() {
        let _ = container.forget(&daemon.ledger);
    } else {
        // Shown, so that whoever removes the pod or tries again lets go of the rest.
        daemon.add_container(container.clone());
        super::life::doom(daemon, container);
    }
    error
}

async fn make(
    daemon: &Arc<Daemon>,
    sandbox: &Arc<Sandbox>,
    container: &Arc<Container>,
    image: &cri_images::Image,
) -> Result<nri::Coming> {
    let (task_daemon, task_sandbox, task_container, task_image) =
        (daemon.clone(), sandbox.clone(), container.clone(), image.clone());
    let prepared =
        tokio::task::spawn_blocking(move || prepare(&task_daemon, &task_sandbox, &task_container, &task_image));
    let (oci, who) = prepared.await??;
    let (oci, coming) = nri::container_comes(daemon, sandbox, container, oci).await?;
    if let Err(error) = made(daemon, container, &oci, who) {
        nri::container_removed(daemon, container, || drop(coming)).await;
        return Err(error);
    }
    Ok(coming)
}

/// Writes the configuration: the container can start.
fn made(daemon: &Daemon, container: &Container, oci: &Value, who: user::User) -> Result<()> {
    let group = oci["linux"]["cgroupsPath"].as_str().unwrap_or_default();
    let moved = group != cgroups::oci_path(&container.record().cgroup);
    if moved && (daemon.config.cgroup_driver != cgroups::Driver::Cgroupfs || !group.starts_with('/')) {
        return Err(Error::Invalid(format!(
            "an NRI plugin wants cgroup {group:?}: it can change paths of folders only"
        )));
    }
    let file = daemon.bundle(&container.id).join("config.json");
    fs::write(&file, oci.to_string()).map_err(Error::failed(format!("write {}", file.display())))?;
    container.change(&daemon.ledger, |r| {
        if moved {
            r.cgroup = group.to_owned();
        }
        r.user = (who.uid, who.gid, who.groups);
        r.complete = true;
    })
}

/// A file of the image as text, found without leaving its root; empty when missing.
fn read_in(rootfs: &Root, path: &str) -> String {
    let mut text = Vec::new();
    if let Ok(fd) = rootfs.open_in(Path::new(path), OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()) {
        let _ = fs::File::from(fd).take(4 << 20).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Mounts what the container sees. Answers its configuration and whom it runs as.
fn prepare(
    daemon: &Daemon,
    sandbox: &Sandbox,
    container: &Container,
    image: &cri_images::Image,
) -> Result<(Value, user::User)> {
    let (pod, record) = (sandbox.record(), container.record());
    let config = &record.config.0;
    let bundle = daemon.bundle(&record.id);
    let rootfs = bundle.join("rootfs");
    fs::create_dir_all(&bundle).map_err(Error::failed(format!("create {}", bundle.display())))?;
    if let Some(folder) = Path::new(&record.log_path).parent() {
        fs::create_dir_all(folder).map_err(Error::failed(format!("create folder of log {}", record.log_path)))?;
    }
    daemon.images.prepare_at(&record.id, &record.image_id, &rootfs)?;
    if let Some(archive) = &record.restore {
        restore::unpack(daemon, &record.id, archive)?;
    }
    let ids = users::wanted(&crate::sandbox::options(&pod)).map_err(Error::Invalid)?;
    let place = users::path(daemon, &sandbox.id);
    let mapped =
        cri_images::MountOptions { user_namespace: ids.is_some().then(|| place.clone()), ..Default::default() };
    daemon.images.mount(&record.id, &rootfs, &mapped)?;
    let linux = config.linux.clone().unwrap_or_default();
    let security = linux.security_context.clone().unwrap_or_default();
    let root = Root::open(&rootfs).map_err(Error::failed(format!("open {}", rootfs.display())))?;
    let wanted = user::Wanted {
        uid: security.run_as_user.as_ref().map(|v| v.value),
        name: &security.run_as_username,
        gid: security.run_as_group.as_ref().map(|v| v.value),
        image: &image.config.user,
        groups: &security.supplemental_groups,
        strict: security.supplemental_groups_policy() == cri::SupplementalGroupsPolicy::Strict,
    };
    let who =
        user::resolve(&wanted, &read_in(&root, "etc/passwd"), &read_in(&root, "etc/group")).map_err(Error::Invalid)?;
    let asked = security.capabilities.clone().unwrap_or_default();
    let bounding = gantry_sys::capability::bounding();
    let held = capabilities::plan(security.privileged, &asked.add_capabilities, &asked.drop_capabilities, bounding)
        .map_err(Error::Invalid)?;
    let mut mounts = config.mounts.clone();
    let mut views = Vec::new();
    for (index, mount) in mounts.iter_mut().enumerate() {
        if let Some(wanted) = mount.image.clone().filter(|i| !i.image.is_empty()) {
            let volume =
                daemon.images.get(&wanted.image).ok_or_else(|| Error::NotFound(format!("image {}", wanted.image)))?;
            let view = format!("{}-v{index}", record.id);
            let folder = bundle.join(format!("volume-{index}"));
            daemon.images.prepare_view_at(&view, &volume.id, &folder)?;
            views.push(view.clone());
            container.change(&daemon.ledger, |r| r.views = views.clone())?;
            daemon.images.mount(&view, &folder, &cri_images::MountOptions { read_only: true, ..mapped.clone() })?;
            mount.host_path = within(&folder, &mount.image_sub_path)?.display().to_string();
            mount.readonly = true;
        } else if !Path::new(&mount.host_path).exists() {
            return Err(Error::Invalid(format!("mount source {} does not exist", mount.host_path)));
        }
    }
    let options = security.namespace_options.clone().unwrap_or_default();
    let pid_namespace = match options.pid() {
        cri::NamespaceMode::Node => Some(String::new()),
        cri::NamespaceMode::Pod => pod.pid_init.map(|pid| format!("/proc/{pid}/ns/pid")),
        cri::NamespaceMode::Target => {
            let target = init_of(daemon, &options.target_id)?;
            Some(format!("/proc/{target}/ns/pid"))
        }
        cri::NamespaceMode::Container => None,
    };
    let lowest_oom_score = lowest_oom_score(linux.resources.as_ref().map_or(0, |r| r.oom_score_adj));
    let facts = spec::Facts {
        id: &record.id,
        sandbox_id: &sandbox.id,
        sandbox: &pod.config.0,
        sandbox_dir: &daemon.sandbox_dir(&sandbox.id),
        container: config,
        image: &image.config,
        rootfs: &rootfs,
        cgroup: &cgroups::oci_path(&record.cgroup),
        user: &who,
        seccomp: profile(daemon, &security, &held)?,
        apparmor: apparmor(&security)?,
        capabilities: &held,
        pid_namespace,
        lowest_oom_score,
        devices: devices(&config.devices, security.privileged)?,
        users: ids.as_ref().map(|ids| (ids, place.as_path())),
        mounts: &mounts,
    };
    let mut text = spec::generate(&facts).map_err(Error::Invalid)?;
    let names: Vec<&str> = config.cdi_devices.iter().map(|d| d.name.as_str()).collect();
    cdi::apply(&names, &daemon.settings().cdi_dirs, &mut text).map_err(Error::Invalid)?;
    // Where ids are mapped, root of the host owns nothing: the runtime makes the folder as root of the container.
    if let Some(cwd) = text["process"]["cwd"].as_str().filter(|d| *d != "/" && ids.is_none()) {
        root.make_dir(Path::new(cwd.trim_start_matches('/')))
            .map_err(Error::failed(format!("create working directory {cwd}")))?;
    }
    Ok((text, who))
}

const CAP_SYS_RESOURCE: u64 = 1 << 24;

/// A path of an image on the host, found by the image's own links, which never lead out of it.
fn within(image: &Path, sub: &str) -> Result<std::path::PathBuf, Error> {
    let sub = sub.trim_start_matches('/');
    if sub.is_empty() {
        return Ok(image.to_owned());
    }
    if sub.split('/').any(|part| part == "..") {
        return Err(Error::Invalid(format!("image sub path {sub:?} leaves the image")));
    }
    let found = Root::open(image)
        .and_then(|root| root.place(Path::new(sub)))
        .and_then(|place| std::fs::read_link(gantry_sys::root::proc_path(std::os::fd::AsFd::as_fd(&place))));
    found.map_err(|e| Error::Invalid(format!("image sub path {sub:?}: {e}")))
}

/// The lowest oom_score_adj that this daemon may give: any, or without CAP_SYS_RESOURCE its own. The first request that cannot
/// be met is told to the operator.
fn lowest_oom_score(wanted: i64) -> i64 {
    static TOLD: std::sync::Once = std::sync::Once::new();
    if gantry_sys::capability::get().is_ok_and(|sets| sets.effective & CAP_SYS_RESOURCE != 0) {
        return -1000;
    }
    let own = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default().trim().parse().unwrap_or(0);
    if wanted < own {
        TOLD.call_once(|| {
            tracing::warn!(wanted, given = own, "oom_score_adj is raised: lowering it needs CAP_SYS_RESOURCE");
        });
    }
    own
}

/// The host pid of the init of a container that runs.
fn init_of(daemon: &Daemon, id: &str) -> Result<i32> {
    let container = daemon.container(id)?;
    if container.state() != cri::ContainerState::ContainerRunning {
        return Err(Error::State(format!("target container {} is not running", container.id)));
    }
    let file = daemon.bundle(&container.id).join("pid");
    let text = fs::read_to_string(&file).map_err(Error::failed(format!("read {}", file.display())))?;
    text.trim().parse().map_err(|e| Error::Failed(format!("read {}: {e}", file.display())))
}

/// The profile that containers get which ask for none or for the runtime's own, where the package's profile is loaded.
const DEFAULT_APPARMOR: &str = "gantry-default";

/// The profile of AppArmor for a container; empty for none.
fn apparmor(security: &cri::LinuxContainerSecurityContext) -> Result<String> {
    let loaded = fs::read_to_string("/sys/kernel/security/apparmor/profiles").unwrap_or_default();
    choose_apparmor(security, &loaded).map_err(Error::Invalid)
}

/// Pure: `loaded` is the kernel's list, a line `name (mode)` for each profile, empty where AppArmor is off.
fn choose_apparmor(security: &cri::LinuxContainerSecurityContext, loaded: &str) -> std::result::Result<String, String> {
    use cri::security_profile::ProfileType;
    let is_loaded = |name: &str| loaded.lines().any(|l| l.rsplit_once(" (").is_some_and(|(n, _)| n == name));
    let default = || if is_loaded(DEFAULT_APPARMOR) { DEFAULT_APPARMOR.to_owned() } else { String::new() };
    let Some(asked) = security.apparmor.as_ref().filter(|_| !security.privileged) else {
        return Ok(if security.privileged { String::new() } else { default() });
    };
    match asked.profile_type() {
        ProfileType::Unconfined => Ok(String::new()),
        ProfileType::RuntimeDefault => Ok(default()),
        ProfileType::Localhost => match asked.localhost_ref.trim_start_matches("localhost/") {
            name if is_loaded(name) => Ok(name.to_owned()),
            name => Err(format!("AppArmor profile {name:?} is not loaded on this node")),
        },
    }
}

fn profile(daemon: &Daemon, security: &cri::LinuxContainerSecurityContext, held: &[String]) -> Result<Value> {
    use cri::security_profile::ProfileType;
    let Some(wanted) = security.seccomp.as_ref().filter(|_| !security.privileged) else { return Ok(Value::Null) };
    match wanted.profile_type() {
        ProfileType::Unconfined => Ok(Value::Null),
        ProfileType::RuntimeDefault => Ok(seccomp::default_profile(held)),
        ProfileType::Localhost => {
            let path =
                daemon.settings().seccomp_profile_root.join(wanted.localhost_ref.trim_start_matches("localhost/"));
            let text = fs::read(&path).map_err(Error::failed(format!("seccomp profile {}", path.display())))?;
            serde_json::from_slice(&text)
                .map_err(|e| Error::Invalid(format!("seccomp profile {}: {e}", path.display())))
        }
    }
}

/// Device nodes of a request; a privileged container gets all of the host's.
fn devices(asked: &[cri::Device], privileged: bool) -> Result<Vec<Value>> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let mut all = Vec::new();
    let mut node = |host: &Path, inside: &str, access: &str| -> std::io::Result<()> {
        let meta = fs::metadata(host)?;
        let kind = match meta.file_type() {
            t if t.is_char_device() => "c",
            t if t.is_block_device() => "b",
            _ => return Ok(()),
        };
        let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
        all.push(json!({"path": inside, "type": kind, "major": major, "minor": minor,
            "fileMode": meta.mode() & 0o7777, "access": access}));
        Ok(())
    };
    for device in asked {
        let host = Path::new(&device.host_path);
        let folder = host.is_dir();
        let entries = if folder {
            fs::read_dir(host)
                .into_iter()
                .flatten()
                .flatten()
                .map(|e| (e.path(), format!("{}/{}", device.container_path, e.file_name().display())))
                .collect()
        } else {
            vec![(host.to_path_buf(), device.container_path.clone())]
        };
        for (host, inside) in entries {
            use std::io::{Error as IoError, ErrorKind};
            // What else a folder has is passed over; what was named has to be one.
            if !folder && fs::metadata(&host).is_ok_and(|m| m.is_file()) {
                let error = IoError::new(ErrorKind::InvalidInput, "it is a regular file");
                return Err(Error::failed(format!("device {}", host.display()))(error));
            }
            node(&host, &inside, &device.permissions).map_err(Error::failed(format!("device {}", host.display())))?;
        }
    }
    if privileged {
        let skip = ["pts", "shm", "mqueue", "console", "ptmx", "null", "zero", "full", "random", "urandom", "tty"];
        for entry in fs::read_dir("/dev").into_iter().flatten().flatten() {
            let name = entry.file_name();
            if !skip.iter().any(|s| name == **s) && !asked.iter().any(|d| Path::new(&d.container_path) == entry.path())
            {
                let _ = node(&entry.path(), &entry.path().to_string_lossy(), "rwm");
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cri::security_profile::ProfileType;

    #[test]
    fn a_profile_of_apparmor_must_be_loaded_and_the_default_is_taken_where_it_is() {
        let loaded = "gantry-default (enforce)\nmine (complain)\n";
        let ask = |kind: Option<ProfileType>, name: &str, privileged: bool, loaded: &str| {
            let apparmor =
                kind.map(|k| cri::SecurityProfile { profile_type: k as i32, localhost_ref: name.to_owned() });
            choose_apparmor(&cri::LinuxContainerSecurityContext { apparmor, privileged, ..Default::default() }, loaded)
        };
        assert_eq!(ask(None, "", false, loaded).unwrap(), "gantry-default");
        assert_eq!(ask(None, "", false, "").unwrap(), "");
        assert_eq!(ask(None, "", true, loaded).unwrap(), "");
        assert_eq!(ask(Some(ProfileType::RuntimeDefault), "", false, loaded).unwrap(), "gantry-default");
        assert_eq!(ask(Some(ProfileType::Unconfined), "", false, loaded).unwrap(), "");
        assert_eq!(ask(Some(ProfileType::Localhost), "localhost/mine", false, loaded).unwrap(), "mine");
        assert!(ask(Some(ProfileType::Localhost), "min", false, loaded).unwrap_err().contains("not loaded"));
    }
}
