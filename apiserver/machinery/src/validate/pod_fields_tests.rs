use super::*;
use serde_json::json;

/// What is wrong with a container `c` with these fields more.
fn container(more: Value) -> Value {
    let mut container = json!({"name": "c", "image": "i"});
    for (key, value) in more.as_object().unwrap() {
        container[key] = value.clone();
    }
    json!({"containers": [container]})
}

fn fields(spec: &Value) -> Vec<String> {
    let mut out = Errors::new();
    check(spec, "spec", &mut out);
    out.into_iter().map(|e| e.field).collect()
}

#[test]
fn each_wrong_field_is_named_and_nothing_else() {
    let http = |header: &str| json!({"httpGet": {"path": "/", "port": 1, "httpHeaders": [{"name": header}]}});
    let searches: Vec<String> = (0..33).map(|n| format!("a{n}")).collect();
    for (spec, want) in [
        (json!({"preemptionPolicy": "Sometimes"}), "spec.preemptionPolicy"),
        (json!({"os": {"name": "plan9"}}), "spec.os.name"),
        (json!({"readinessGates": [{"conditionType": "a b"}]}), "spec.readinessGates[0].conditionType"),
        (json!({"dnsConfig": {"searches": ["ok.", "not ok"]}}), "spec.dnsConfig.searches[1]"),
        (json!({"dnsConfig": {"searches": searches}}), "spec.dnsConfig.searches"),
        (json!({"dnsConfig": {"options": [{"value": "1"}]}}), "spec.dnsConfig.options[0]"),
        (json!({"hostUsers": false, "hostPID": true}), "spec.hostPID"),
        (json!({"hostUsers": false, "hostNetwork": true}), "spec.hostNetwork"),
        (json!({"overhead": {"cpu": "-1"}}), "spec.overhead[cpu]"),
        (json!({"overhead": {"cpu": "much"}}), "spec.overhead[cpu]"),
        (json!({"resources": {"limits": {"cpu": "-1"}}}), "spec.resources.limits[cpu]"),
        (
            json!({"topologySpreadConstraints": [{"maxSkew": 0, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule"}]}),
            "spec.topologySpreadConstraints[0].maxSkew",
        ),
        (
            json!({"topologySpreadConstraints": [{"maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule"}]}),
            "spec.topologySpreadConstraints[0].topologyKey",
        ),
        (
            json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "Wait"}]}),
            "spec.topologySpreadConstraints[0].whenUnsatisfiable",
        ),
        (json!({"securityContext": {"sysctls": [{"name": "kernel/../x"}]}}), "spec.securityContext.sysctls[0].name"),
        (json!({"volumes": [{"name": "v", "emptyDir": {"sizeLimit": "-1"}}]}), "spec.volumes[0].emptyDir.sizeLimit"),
        (json!({"volumes": [{"name": "v", "image": {"pullPolicy": "Now"}}]}), "spec.volumes[0].image.pullPolicy"),
        (json!({"volumes": [{"name": "v", "ephemeral": {}}]}), "spec.volumes[0].ephemeral.volumeClaimTemplate"),
        (
            json!({"volumes": [{"name": "v", "ephemeral": {"volumeClaimTemplate": {"spec":
                {"resources": {"requests": {"storage": "1Gi"}}}}}}]}),
            "spec.volumes[0].ephemeral.volumeClaimTemplate.spec.accessModes",
        ),
        (container(json!({"ports": [{"containerPort": 1, "hostIP": "here"}]})), "spec.containers[0].ports[0].hostIP"),
        (
            container(json!({"resizePolicy": [{"resourceName": "gpu", "restartPolicy": "NotRequired"}]})),
            "spec.containers[0].resizePolicy[0].resourceName",
        ),
        (
            container(json!({"resizePolicy": [{"resourceName": "cpu", "restartPolicy": "Maybe"}]})),
            "spec.containers[0].resizePolicy[0].restartPolicy",
        ),
        (container(json!({"restartPolicy": "Often"})), "spec.containers[0].restartPolicy"),
        (
            container(json!({"restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In"}}]})),
            "spec.containers[0].restartPolicy",
        ),
        (
            container(json!({"restartPolicy": "Never", "restartPolicyRules": [{"action": "Restart"}]})),
            "spec.containers[0].restartPolicyRules[0].exitCodes",
        ),
        (
            container(json!({"restartPolicy": "Never",
                "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "Near"}}]})),
            "spec.containers[0].restartPolicyRules[0].exitCodes.operator",
        ),
        (
            container(json!({"readinessProbe": {"terminationGracePeriodSeconds": 5}})),
            "spec.containers[0].readinessProbe.terminationGracePeriodSeconds",
        ),
        (
            container(json!({"livenessProbe": {"terminationGracePeriodSeconds": 0}})),
            "spec.containers[0].livenessProbe.terminationGracePeriodSeconds",
        ),
        (
            container(json!({"startupProbe": http("a b")})),
            "spec.containers[0].startupProbe.httpGet.httpHeaders[0].name",
        ),
        (
            container(json!({"lifecycle": {"preStop": http("")}})),
            "spec.containers[0].lifecycle.preStop.httpGet.httpHeaders[0].name",
        ),
        (
            container(json!({"lifecycle": {"preStop": {"sleep": {"seconds": -1}}}})),
            "spec.containers[0].lifecycle.preStop.sleep",
        ),
        (
            container(json!({"volumeDevices": [{"name": "v", "devicePath": "/dev/x"}]})),
            "spec.containers[0].volumeDevices[0].name",
        ),
        (
            json!({"containers": [{"name": "c"}], "ephemeralContainers": [{"name": "e", "targetContainerName": "d"}]}),
            "spec.ephemeralContainers[0].targetContainerName",
        ),
        (
            json!({"ephemeralContainers": [{"name": "e", "ports": [{"containerPort": 1}]}]}),
            "spec.ephemeralContainers[0].ports",
        ),
    ] {
        assert_eq!(fields(&spec), [want], "{spec}");
    }
    let claim = json!({"name": "v", "persistentVolumeClaim": {"claimName": "v"}});
    for (place, want) in [("", "Path"), ("/a/../b", "Path"), ("/m", "Path")] {
        let mut spec = container(json!({"volumeDevices": [{"name": "v", "devicePath": place}],
            "volumeMounts": [{"name": "w", "mountPath": "/m"}]}));
        spec["volumes"] = json!([claim]);
        assert_eq!(fields(&spec), [format!("spec.containers[0].volumeDevices[0].device{want}")], "{place}");
    }
}

#[test]
fn what_is_right_passes() {
    let spec = json!({
        "preemptionPolicy": "Never", "os": {"name": "linux"}, "hostUsers": false, "overhead": {"cpu": "100m"},
        "readinessGates": [{"conditionType": "example.com/up"}],
        "dnsConfig": {"searches": ["a.b.", ".", "_tcp.x"], "options": [{"name": "ndots", "value": "2"}]},
        "resources": {"limits": {"cpu": "1", "memory": "1Gi", "hugepages-2Mi": "2Mi"}},
        "securityContext": {"sysctls": [{"name": "net.ipv4.ip_local_port_range"}, {"name": "net/ipv4/conf/eth0.1/rp_filter"}]},
        "volumes": [{"name": "e", "emptyDir": {"sizeLimit": "1Gi"}}, {"name": "i", "image": {"reference": "x"}},
            {"name": "p", "persistentVolumeClaim": {"claimName": "p"}}],
        "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 1, "hostIP": "::1"}],
            "resizePolicy": [{"resourceName": "cpu", "restartPolicy": "NotRequired"}],
            "restartPolicy": "Never",
            "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}],
            "livenessProbe": {"terminationGracePeriodSeconds": 1, "httpGet": {"port": 1, "httpHeaders": [{"name": "X-A"}]}},
            "lifecycle": {"preStop": {"sleep": {"seconds": 0}}},
            "volumeDevices": [{"name": "p", "devicePath": "/dev/x"}]}],
        "ephemeralContainers": [{"name": "e", "targetContainerName": "c", "resources": {}}],
    });
    assert_eq!(fields(&spec), Vec::<String>::new());
}
