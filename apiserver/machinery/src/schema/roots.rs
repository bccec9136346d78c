//! Collects the JSON Schema of every served kind from k8s-openapi, once, and turns it into the dialect of OpenAPI.

use std::collections::BTreeMap;

use k8s_openapi::api as k;
use k8s_openapi::api::{
    apps::v1 as apps, batch::v1 as batch, core::v1 as core, rbac::v1 as rbac, storage::v1 as storage,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value};

const PREFIX: &str = "#/components/schemas/";

macro_rules! add {
    ($generator:expr; $($type:ty),* $(,)?) => { $( $generator.subschema_for::<$type>(); )* };
}

/// Every definition by its full name (`io.k8s.api.core.v1.Pod`), with `$ref`s in the style of OpenAPI v3.
pub(crate) fn definitions() -> BTreeMap<String, Value> {
    let mut settings = SchemaSettings::openapi3();
    settings.definitions_path = PREFIX.trim_start_matches('#').trim_end_matches('/').into();
    settings.meta_schema = None;
    let mut generator = SchemaGenerator::new(settings);
    add!(generator; core::Binding, core::ConfigMap, core::Endpoints, core::Event, core::LimitRange, core::Namespace,
        core::Node, core::PersistentVolumeClaim, core::PersistentVolume, core::Pod, core::PodTemplate,
        core::ReplicationController, core::ResourceQuota, core::Secret, core::ServiceAccount, core::Service,
        apps::ControllerRevision, apps::DaemonSet, apps::Deployment, apps::ReplicaSet, apps::StatefulSet,
        batch::CronJob, batch::Job, rbac::ClusterRole, rbac::ClusterRoleBinding, rbac::Role, rbac::RoleBinding,
        storage::CSIDriver, storage::CSINode, storage::StorageClass, storage::VolumeAttachment,
        k::authentication::v1::SelfSubjectReview, k::authentication::v1::TokenReview,
        k::authentication::v1::TokenRequest, k::authorization::v1::LocalSubjectAccessReview,
        k::authorization::v1::SelfSubjectAccessReview, k::authorization::v1::SelfSubjectRulesReview,
        k::authorization::v1::SubjectAccessReview, k::autoscaling::v1::Scale,
        k::certificates::v1::CertificateSigningRequest, k::certificates::v1beta1::ClusterTrustBundle,
        k::certificates::v1beta1::PodCertificateRequest, k::coordination::v1::Lease, k::discovery::v1::EndpointSlice,
        k::events::v1::Event, k::networking::v1::Ingress, k::networking::v1::IngressClass,
        k::networking::v1::NetworkPolicy, k::node::v1::RuntimeClass, k::policy::v1::Eviction,
        k::policy::v1::PodDisruptionBudget, k::scheduling::v1::PriorityClass,
        meta::DeleteOptions, meta::Status, meta::ListMeta);
    let mut out = BTreeMap::new();
    for (name, mut definition) in generator.take_definitions(false) {
        tidy(&name, &mut definition);
        out.insert(name, definition);
    }
    out
}

fn tidy(name: &str, definition: &mut Value) {
    let Value::Object(object) = definition else {
        return;
    };
    if let Some(Value::Array(required)) = object.get_mut("required") {
        // k8s-openapi requires what its Rust types always have; upstream requires no metadata.
        required.retain(|field| field != "metadata");
        if required.is_empty() {
            object.remove("required");
        }
    }
    if let Some(Value::Object(properties)) = object.get_mut("properties") {
        for property in properties.values_mut() {
            tidy_property(property);
        }
    }
    if name.ends_with("IntOrString") || name.ends_with("api.resource.Quantity") {
        object.insert("type".into(), "string".into());
        if name.ends_with("IntOrString") {
            object.insert("format".into(), "int-or-string".into());
        }
        object.remove("x-kubernetes-int-or-string");
    }
}

/// A reference with siblings becomes `allOf`, as upstream writes it; items and values are tidied too.
fn tidy_property(property: &mut Value) {
    let Value::Object(object) = property else {
        return;
    };
    if let Some(reference) = object.remove("$ref") {
        if object.is_empty() {
            object.insert("$ref".into(), reference);
        } else {
            let mut target = Map::new();
            target.insert("$ref".into(), reference);
            object.insert("allOf".into(), Value::Array(vec![Value::Object(target)]));
        }
    }
    object.remove("nullable");
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = object.get_mut(key) {
            tidy_property(inner);
        }
    }
}
