//! Defaults as a table.

use super::*;
use crate::resource::Gvk;
use proptest::prelude::*;

const POD: Gvk<'static> = Gvk { group: "", version: "v1", kind: "Pod" };

#[test]
fn a_small_pod_becomes_a_whole_one() {
    let mut pod = json!({"metadata": {"name": "a"}, "spec": {
        "containers": [{"name": "c", "image": "busybox", "ports": [{"containerPort": 80}],
            "resources": {"limits": {"cpu": "1"}}, "readinessProbe": {"httpGet": {"port": 80}},
            "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}],
        "volumes": [{"name": "v"}, {"name": "m", "configMap": {"name": "x"}}, {"name": "h", "hostPath": {"path": "/"}}]}});
    apply(POD, &mut pod);
    assert_eq!(
        pod["spec"],
        json!({
        "containers": [{"name": "c", "image": "busybox", "ports": [{"containerPort": 80, "protocol": "TCP"}],
            "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}},
            "readinessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1,
                "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
            "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name", "apiVersion": "v1"}}}],
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            "imagePullPolicy": "Always"}],
        "volumes": [{"name": "v", "emptyDir": {}}, {"name": "m", "configMap": {"name": "x", "defaultMode": 420}},
            {"name": "h", "hostPath": {"path": "/", "type": ""}}],
        "enableServiceLinks": true, "restartPolicy": "Always", "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst", "securityContext": {}, "schedulerName": "default-scheduler"})
    );
}

#[test]
fn secrets_services_and_workloads_get_theirs() {
    let mut secret = json!({"stringData": {"a": "b"}, "data": {"c": "ZA=="}});
    apply(Gvk::new("", "v1", "Secret"), &mut secret);
    assert_eq!(secret, json!({"data": {"c": "ZA==", "a": "Yg=="}, "type": "Opaque"}));
    let mut service = json!({"spec": {"ports": [{"port": 80}]}});
    apply(Gvk::new("", "v1", "Service"), &mut service);
    assert_eq!(service["spec"]["ports"][0], json!({"port": 80, "protocol": "TCP", "targetPort": 80}));
    assert_eq!(service["spec"]["type"], "ClusterIP");
    let mut deployment = json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "image": "b:1"}]}}}});
    apply(Gvk::new("apps", "v1", "Deployment"), &mut deployment);
    assert_eq!(deployment["spec"]["strategy"]["rollingUpdate"]["maxSurge"], "25%");
    assert_eq!(deployment["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"], "IfNotPresent");
    let mut namespace = json!({"metadata": {"name": "n"}});
    apply(Gvk::new("", "v1", "Namespace"), &mut namespace);
    assert_eq!(namespace["status"]["phase"], "Active");
    assert_eq!(namespace["metadata"]["labels"]["kubernetes.io/metadata.name"], "n");
}

proptest! {
    #[test]
    fn defaults_are_idempotent(kind in 0..crate::resource::Resource::all().len(), image in "[a-z]{1,3}(:[a-z0-9]{1,3})?", port in 1..9i64) {
        let gvk = crate::resource::Resource::all()[kind].gvk();
        let pod = json!({"containers": [{"name": "c", "image": image, "ports": [{"containerPort": port}]}], "volumes": [{"name": "v"}]});
        let mut object = json!({"metadata": {"name": "a"}, "spec": pod});
        object["spec"]["template"] = json!({"spec": pod});
        object["spec"]["ports"] = json!([{"port": port}]);
        apply(gvk, &mut object);
        let once = object.clone();
        apply(gvk, &mut object);
        prop_assert_eq!(once, object);
    }
}

/// A default with a misspelt name or a wrong type would be pruned or refused.
#[test]
fn defaults_are_fields_of_their_kinds() {
    let container = json!({"name": "c", "image": "i", "ports": [{"containerPort": 1}], "livenessProbe": {"httpGet": {"port": 1}},
        "env": [{"name": "a", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}],
        "lifecycle": {"preStop": {"httpGet": {"port": 1}}}, "resources": {"limits": {"cpu": "1"}}});
    let pod_spec = json!({"containers": [container], "serviceAccount": "x", "volumes": [{"name": "a"},
        {"name": "b", "secret": {}}, {"name": "c", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}},
        {"downwardAPI": {"items": [{"path": "p", "fieldRef": {"fieldPath": "metadata.name"}}]}}]}},
        {"name": "d", "hostPath": {"path": "/"}}, {"name": "e", "image": {"reference": "r"}}]});
    let spec = json!({"template": {"spec": pod_spec}});
    for resource in crate::resource::Resource::all() {
        let gvk = resource.gvk();
        let mut object = json!({"metadata": {"name": "a"}});
        let has_spec = crate::schema::find(gvk).unwrap().get().fields.contains_key("spec");
        match resource.kind {
            "Pod" => object["spec"] = pod_spec.clone(),
            "Deployment" | "ReplicaSet" | "DaemonSet" | "StatefulSet" | "Job" | "ReplicationController" => {
                object["spec"] = spec.clone()
            }
            "CronJob" => object["spec"] = json!({"jobTemplate": {"spec": spec}}),
            "PodTemplate" => object["template"] = spec["template"].clone(),
            "Service" => {
                object["spec"] = json!({"type": "LoadBalancer", "sessionAffinity": "ClientIP", "ports": [{"port": 1}]})
            }
            _ if has_spec => object["spec"] = json!({}),
            _ => {}
        }
        apply(gvk, &mut object);
        crate::strategy::prepare_create(resource, &mut object);
        assert_eq!(crate::schema::unknown_fields(gvk, &object), Vec::<String>::new(), "{gvk}");
        assert_eq!(crate::schema::type_errors(gvk, &object), Vec::<String>::new(), "{gvk}");
    }
}
