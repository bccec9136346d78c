//! Changes that plugins make to a container's OCI configuration. Pure.
//!
//! Two plugins must not decide the same thing: who sets a field, a mount or a variable owns it. A plugin may remove what
//! another one has set (a name that begins with `-`) and own it from then on.

use std::collections::{BTreeMap, HashMap};

use proto::nri;
use proto::nri::Field;
use serde_json::{Value, json};

/// Which plugin owns which part of a container.
#[derive(Debug, Default)]
pub(super) struct Owners(BTreeMap<(i32, String), String>);

impl Owners {
    fn claim(&mut self, field: Field, key: &str, plugin: &str) -> Result<(), String> {
        match self.0.insert((field.into(), key.to_owned()), plugin.to_owned()) {
            Some(other) if other != plugin => {
                let what = if key.is_empty() {
                    field.as_str_name().to_owned()
                } else {
                    format!("{} {key:?}", field.as_str_name())
                };
                Err(format!("NRI plugins {other} and {plugin} both set {what}"))
            }
            _ => Ok(()),
        }
    }

    fn release(&mut self, field: Field, key: &str) {
        self.0.remove(&(field.into(), key.to_owned()));
    }

    /// As plugins that validate want it.
    pub(super) fn for_validation(&self, container: &str) -> nri::OwningPlugins {
        let mut fields = nri::FieldOwners::default();
        for ((field, key), plugin) in &self.0 {
            if key.is_empty() {
                fields.simple.insert(*field, plugin.clone());
            } else {
                let compound = fields.compound.entry(*field).or_default();
                compound.owners.insert(key.clone(), plugin.clone());
            }
        }
        nri::OwningPlugins { owners: HashMap::from([(container.to_owned(), fields)]) }
    }
}

/// The name without the mark of removal, if it has that.
fn removed(name: &str) -> Option<&str> {
    name.strip_prefix('-')
}

/// The array at `place` of an object, made where there is none.
fn array<'a>(object: &'a mut Value, place: &str) -> &'a mut Vec<Value> {
    if !object[place].is_array() {
        object[place] = json!([]);
    }
    match &mut object[place] {
        Value::Array(all) => all,
        _ => unreachable!("it was made an array just now"),
    }
}

/// Removes marked names from an array of objects with `key`, then adds the others in place of what has their name.
fn replace<T>(
    all: &mut Vec<Value>,
    key: &str,
    (field, plugin, owners): (Field, &str, &mut Owners),
    wanted: &[T],
    name: impl Fn(&T) -> &str,
    value: impl Fn(&T) -> Value,
) -> Result<(), String> {
    for gone in wanted.iter().filter_map(|w| removed(name(w))) {
        all.retain(|v| v[key] != json!(gone));
        owners.release(field, gone);
    }
    for one in wanted.iter().filter(|w| removed(name(w)).is_none()) {
        owners.claim(field, name(one), plugin)?;
        all.retain(|v| v[key] != json!(name(one)));
        all.push(value(one));
    }
    Ok(())
}

/// Removes marked names from an object, then sets the others.
fn set_map(
    object: &mut Value,
    (field, plugin, owners): (Field, &str, &mut Owners),
    wanted: &HashMap<String, String>,
) -> Result<(), String> {
    if wanted.is_empty() {
        return Ok(());
    }
    if !object.is_object() {
        *object = json!({});
    }
    for gone in wanted.keys().filter_map(|k| removed(k)) {
        if let Some(all) = object.as_object_mut() {
            all.remove(gone);
        }
        owners.release(field, gone);
    }
    for (key, value) in wanted.iter().filter(|(k, _)| removed(k).is_none()) {
        owners.claim(field, key, plugin)?;
        object[key] = json!(value);
    }
    Ok(())
}

/// Applies what one plugin wants. CDI devices are the caller's to add.
///
/// # Errors
/// Another plugin owns a part of it, or it cannot be done here (named).
pub(super) fn apply(
    oci: &mut Value,
    a: &nri::ContainerAdjustment,
    plugin: &str,
    owners: &mut Owners,
) -> Result<(), String> {
    set_map(&mut oci["annotations"], (Field::Annotations, plugin, owners), &a.annotations)?;
    environment(oci, &a.env, plugin, owners)?;
    if !a.args.is_empty() {
        owners.claim(Field::Args, "", plugin)?;
        // An empty first word says that another plugin's line may be replaced; it is no word of the line.
        let words = if a.args[0].is_empty() { &a.args[1..] } else { &a.args[..] };
        oci["process"]["args"] = json!(words);
    }
    if let Some(hooks) = &a.hooks {
        add_hooks(oci, hooks);
    }
    for limit in &a.rlimits {
        owners.claim(Field::Rlimits, &limit.r#type, plugin)?;
        let all = array(&mut oci["process"], "rlimits");
        all.retain(|l| l["type"] != json!(limit.r#type));
        all.push(json!({"type": limit.r#type, "hard": limit.hard, "soft": limit.soft}));
    }
    for device in &a.cdi_devices {
        owners.claim(Field::CdiDevices, &device.name, plugin)?;
    }
    if !a.mounts.is_empty() {
        let value = |m: &nri::Mount| json!({"destination": m.destination, "type": m.r#type, "source": m.source, "options": m.options});
        let all = array(oci, "mounts");
        replace(all, "destination", (Field::Mounts, plugin, owners), &a.mounts, |m| &m.destination, value)?;
        // A mount hides what is mounted below its place before it.
        all.sort_by_key(|m| m["destination"].as_str().unwrap_or_default().trim_end_matches('/').matches('/').count());
        if a.mounts.iter().any(|m| m.options.iter().any(|o| o == "rshared" || o == "shared")) {
            oci["linux"]["rootfsPropagation"] = json!("rshared");
        } else if a.mounts.iter().any(|m| m.options.iter().any(|o| o == "rslave" || o == "slave"))
            && oci["linux"]["rootfsPropagation"] != "rshared"
        {
            oci["linux"]["rootfsPropagation"] = json!("rslave");
        }
    }
    match &a.linux {
        Some(linux) => kernel(oci, linux, plugin, owners),
        None => Ok(()),
    }
}

fn environment(oci: &mut Value, wanted: &[nri::KeyValue], plugin: &str, owners: &mut Owners) -> Result<(), String> {
    if wanted.is_empty() {
        return Ok(());
    }
    let all = array(&mut oci["process"], "env");
    let is = |v: &Value, name: &str| v.as_str().and_then(|v| v.split_once('=')).is_some_and(|(n, _)| n == name);
    for gone in wanted.iter().filter_map(|e| removed(&e.key)) {
        all.retain(|v| !is(v, gone));
        owners.release(Field::Env, gone);
    }
    for one in wanted.iter().filter(|e| removed(&e.key).is_none()) {
        owners.claim(Field::Env, &one.key, plugin)?;
        let line = json!(format!("{}={}", one.key, one.value));
        match all.iter_mut().find(|v| is(v, &one.key)) {
            Some(old) => *old = line,
            None => all.push(line),
        }
    }
    Ok(())
}

fn add_hooks(oci: &mut Value, hooks: &nri::Hooks) {
    let kinds = [
        ("prestart", &hooks.prestart),
        ("createRuntime", &hooks.create_runtime),
        ("createContainer", &hooks.create_container),
        ("startContainer", &hooks.start_container),
        ("poststart", &hooks.poststart),
        ("poststop", &hooks.poststop),
    ];
    for (kind, more) in kinds.into_iter().filter(|(_, more)| !more.is_empty()) {
        for hook in more {
            let mut value = json!({"path": hook.path, "args": hook.args, "env": hook.env});
            if let Some(timeout) = &hook.timeout {
                value["timeout"] = json!(timeout.value);
            }
            array(&mut oci["hooks"], kind).push(value);
        }
    }
}

fn kernel(oci: &mut Value, l: &nri::LinuxContainerAdjustment, plugin: &str, owners: &mut Owners) -> Result<(), String> {
    let device = |d: &nri::LinuxDevice| {
        let mut value = json!({"path": d.path, "type": d.r#type, "major": d.major, "minor": d.minor});
        let more = [
            ("fileMode", d.file_mode.map(|v| v.value)),
            ("uid", d.uid.map(|v| v.value)),
            ("gid", d.gid.map(|v| v.value)),
        ];
        for (key, number) in more.into_iter().filter_map(|(k, v)| Some((k, v?))) {
            value[key] = json!(number);
        }
        value
    };
    if !l.devices.is_empty() {
        let all = array(&mut oci["linux"], "devices");
        replace(all, "path", (Field::Devices, plugin, owners), &l.devices, |d| &d.path, device)?;
        for d in l.devices.iter().filter(|d| removed(&d.path).is_none()) {
            let rule = json!({"allow": true, "type": d.r#type, "major": d.major, "minor": d.minor, "access": "rwm"});
            array(&mut oci["linux"]["resources"], "devices").push(rule);
        }
    }
    if let Some(resources) = &l.resources {
        set_resources(&mut oci["linux"]["resources"], resources, plugin, owners)?;
    }
    if !l.cgroups_path.is_empty() {
        owners.claim(Field::CgroupsPath, "", plugin)?;
        oci["linux"]["cgroupsPath"] = json!(l.cgroups_path);
    }
    if let Some(score) = &l.oom_score_adj {
        owners.claim(Field::OomScoreAdj, "", plugin)?;
        oci["process"]["oomScoreAdj"] = json!(score.value);
    }
    if let Some(priority) = &l.io_priority {
        owners.claim(Field::IoPriority, "", plugin)?;
        oci["process"]["ioPriority"] = match priority.class() {
            nri::IoPrioClass::IoprioClassNone => Value::Null,
            class => json!({"class": class.as_str_name(), "priority": priority.priority}),
        };
    }
    if let Some(policy) = &l.seccomp_policy {
        owners.claim(Field::SeccompPolicy, "", plugin)?;
        oci["linux"]["seccomp"] = seccomp(policy);
    }
    if !l.namespaces.is_empty() {
        let value = |n: &nri::LinuxNamespace| match n.path.as_str() {
            "" => json!({"type": n.r#type}),
            path => json!({"type": n.r#type, "path": path}),
        };
        let all = array(&mut oci["linux"], "namespaces");
        replace(all, "type", (Field::Namespace, plugin, owners), &l.namespaces, |n| &n.r#type, value)?;
    }
    set_map(&mut oci["linux"]["sysctl"], (Field::Sysctl, plugin, owners), &l.sysctl)?;
    for (host, inside) in &l.net_devices {
        match removed(host) {
            Some(gone) => {
                if let Some(all) = oci["linux"]["netDevices"].as_object_mut() {
                    all.remove(gone);
                }
                owners.release(Field::LinuxNetDevices, gone);
            }
            None => {
                owners.claim(Field::LinuxNetDevices, host, plugin)?;
                oci["linux"]["netDevices"][host] = json!({"name": inside.name});
            }
        }
    }
    if let Some(s) = &l.scheduler {
        owners.claim(Field::LinuxSched, "", plugin)?;
        let flags: Vec<&str> = s.flags().map(|f| f.as_str_name()).collect();
        oci["process"]["scheduler"] = match s.policy() {
            nri::LinuxSchedulerPolicy::SchedNone => Value::Null,
            policy => json!({"policy": policy.as_str_name(), "nice": s.nice, "priority": s.priority, "flags": flags,
                "runtime": s.runtime, "deadline": s.deadline, "period": s.period}),
        };
    }
    if let Some(rdt) = &l.rdt {
        set_rdt(oci, rdt, plugin, owners)?;
    }
    if let Some(policy) = &l.memory_policy {
        owners.claim(Field::MemoryPolicy, "", plugin)?;
        let flags: Vec<&str> = policy.flags().map(|f| f.as_str_name()).collect();
        oci["linux"]["memoryPolicy"] =
            json!({"mode": policy.mode().as_str_name(), "nodes": policy.nodes, "flags": flags});
    }
    drop_nulls(&mut oci["process"]);
    drop_nulls(&mut oci["linux"]);
    Ok(())
}

/// Looking for a key makes it, and an OCI runtime refuses what is there without a value.
fn drop_nulls(object: &mut Value) {
    if let Some(all) = object.as_object_mut() {
        all.retain(|_, v| !v.is_null());
    }
}

fn set_rdt(oci: &mut Value, rdt: &nri::LinuxRdt, plugin: &str, owners: &mut Owners) -> Result<(), String> {
    if rdt.remove {
        oci["linux"]["intelRdt"] = Value::Null;
    }
    let id = rdt.clos_id.as_ref().map(|v| (Field::RdtClosId, "closID", json!(v.value)));
    let schemata = rdt.schemata.as_ref().map(|v| (Field::RdtSchemata, "schemata", json!(v.value)));
    let monitored = rdt.enable_monitoring.map(|v| (Field::RdtEnableMonitoring, "enableMonitoring", json!(v.value)));
    for (field, key, value) in [id, schemata, monitored].into_iter().flatten() {
        owners.claim(field, "", plugin)?;
        oci["linux"]["intelRdt"][key] = value;
    }
    Ok(())
}

fn seccomp(p: &nri::LinuxSeccomp) -> Value {
    let call = |s: &nri::LinuxSyscall| {
        let args: Vec<Value> = s
            .args
            .iter()
            .map(|a| json!({"index": a.index, "value": a.value, "valueTwo": a.value_two, "op": a.op}))
            .collect();
        let mut value = json!({"names": s.names, "action": s.action, "args": args});
        if let Some(errno) = &s.errno_ret {
            value["errnoRet"] = json!(errno.value);
        }
        value
    };
    let calls: Vec<Value> = p.syscalls.iter().map(call).collect();
    let mut value = json!({"defaultAction": p.default_action, "architectures": p.architectures, "flags": p.flags, "syscalls": calls});
    if let Some(errno) = &p.default_errno {
        value["defaultErrnoRet"] = json!(errno.value);
    }
    for (key, text) in [("listenerPath", &p.listener_path), ("listenerMetadata", &p.listener_metadata)] {
        if !text.is_empty() {
            value[key] = json!(text);
        }
    }
    value
}

fn set_resources(to: &mut Value, r: &nri::LinuxResources, plugin: &str, owners: &mut Owners) -> Result<(), String> {
    for (what, class) in [("blockio_class", &r.blockio_class), ("rdt_class", &r.rdt_class)] {
        if let Some(class) = class.as_ref().filter(|c| !c.value.is_empty()) {
            return Err(format!(
                "NRI plugin {plugin}: {what} {:?}: no classes are configured on this node",
                class.value
            ));
        }
    }
    let mut set = |field: Field, group: &str, key: &str, value: Option<Value>| -> Result<(), String> {
        if let Some(value) = value {
            owners.claim(field, "", plugin)?;
            to[group][key] = value;
        }
        Ok(())
    };
    if let Some(m) = &r.memory {
        let n = |v: Option<nri::OptionalInt64>| v.map(|v| json!(v.value));
        set(Field::MemLimit, "memory", "limit", n(m.limit))?;
        set(Field::MemReservation, "memory", "reservation", n(m.reservation))?;
        // A lower limit of memory with a higher one of memory and swap would be undone by swapping.
        set(Field::MemSwapLimit, "memory", "swap", n(m.swap.or(m.limit)))?;
        set(Field::MemKernelLimit, "memory", "kernel", n(m.kernel))?;
        set(Field::MemTcpLimit, "memory", "kernelTCP", n(m.kernel_tcp))?;
        set(Field::MemSwappiness, "memory", "swappiness", m.swappiness.map(|v| json!(v.value)))?;
        set(Field::MemDisableOomKiller, "memory", "disableOOMKiller", m.disable_oom_killer.map(|v| json!(v.value)))?;
        set(Field::MemUseHierarchy, "memory", "useHierarchy", m.use_hierarchy.map(|v| json!(v.value)))?;
    }
    if let Some(c) = &r.cpu {
        let u = |v: Option<nri::OptionalUInt64>| v.map(|v| json!(v.value));
        let n = |v: Option<nri::OptionalInt64>| v.map(|v| json!(v.value));
        let s = |v: &str| (!v.is_empty()).then(|| json!(v));
        set(Field::CpuShares, "cpu", "shares", u(c.shares))?;
        set(Field::CpuQuota, "cpu", "quota", n(c.quota))?;
        set(Field::CpuPeriod, "cpu", "period", u(c.period))?;
        set(Field::CpuRealtimeRuntime, "cpu", "realtimeRuntime", n(c.realtime_runtime))?;
        set(Field::CpuRealtimePeriod, "cpu", "realtimePeriod", u(c.realtime_period))?;
        set(Field::CpuSetCpUs, "cpu", "cpus", s(&c.cpus))?;
        set(Field::CpuSetMems, "cpu", "mems", s(&c.mems))?;
    }
    set(Field::PidsLimit, "pids", "limit", r.pids.map(|p| json!(p.limit)))?;
    for limit in &r.hugepage_limits {
        owners.claim(Field::HugepageLimits, &limit.page_size, plugin)?;
        let all = array(to, "hugepageLimits");
        all.retain(|l| l["pageSize"] != json!(limit.page_size));
        all.push(json!({"pageSize": limit.page_size, "limit": limit.limit}));
    }
    for (key, value) in &r.unified {
        owners.claim(Field::CgroupsUnified, key, plugin)?;
        to["unified"][key] = json!(value);
    }
    for d in &r.devices {
        let mut rule = json!({"allow": d.allow, "access": d.access});
        if !d.r#type.is_empty() {
            rule["type"] = json!(d.r#type);
        }
        for (key, number) in [("major", d.major), ("minor", d.minor)] {
            if let Some(number) = number {
                rule[key] = json!(number.value);
            }
        }
        array(to, "devices").push(rule);
    }
    Ok(())
}
