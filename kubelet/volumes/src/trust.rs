//! What clusterTrustBundle projections contain: the certificates of the selected bundles, each once, in an order that does
//! not change while they do not.

use std::collections::BTreeSet;

use gantry_kube::pki;
use gantry_kube::selector::Selector;
use k8s_openapi::api::certificates::v1beta1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::ClusterTrustBundleProjection;

use crate::atomic::Payload;
use crate::{Objects, payload};

/// The file of a projection.
pub(crate) async fn of_projection(
    objects: &dyn Objects,
    source: &ClusterTrustBundleProjection,
    mode: i32,
) -> Result<Payload, String> {
    let optional = source.optional == Some(true);
    let bundles = match (source.name.as_deref(), source.signer_name.as_deref()) {
        (Some(name), None) => match objects.trust_bundle(name).await.map_err(|e| e.to_string())? {
            Some(bundle) => vec![bundle],
            None if optional => Vec::new(),
            None => return Err(format!("clustertrustbundle {name:?} not found")),
        },
        (None, Some(signer)) => {
            let of_signer = objects.trust_bundles(signer).await.map_err(|e| e.to_string())?;
            let found = select(of_signer, source)?;
            if found.is_empty() && !optional {
                return Err(format!(
                    "combination of signerName {signer:?} and labelSelector matched zero ClusterTrustBundles"
                ));
            }
            found
        }
        _ => return Err("clusterTrustBundle needs either name or signerName".to_owned()),
    };
    let mut out = Payload::new();
    payload::put(&mut out, &source.path, anchors(&bundles)?.as_bytes(), mode)?;
    Ok(out)
}

/// No selector selects nothing, an empty one everything.
fn select(
    bundles: Vec<ClusterTrustBundle>,
    source: &ClusterTrustBundleProjection,
) -> Result<Vec<ClusterTrustBundle>, String> {
    let selector = serde_json::to_value(&source.label_selector).map_err(|e| e.to_string())?;
    let selector = Selector::from_object(&selector).map_err(|e| format!("labelSelector: {e}"))?;
    let Some(selector) = selector else { return Ok(Vec::new()) };
    let labels = |b: &ClusterTrustBundle| b.metadata.labels.clone().unwrap_or_default();
    Ok(bundles.into_iter().filter(|b| selector.matches_map(&labels(b))).collect())
}

fn anchors(bundles: &[ClusterTrustBundle]) -> Result<String, String> {
    let mut found = BTreeSet::new();
    for bundle in bundles {
        let name = bundle.metadata.name.as_deref().unwrap_or_default();
        let blocks = pki::blocks(&bundle.spec.trust_bundle).map_err(|e| format!("clustertrustbundle {name:?}: {e}"))?;
        found.extend(blocks);
    }
    Ok(found.iter().map(|der| pki::certificate_block(der)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeObjects;
    use serde_json::json;

    fn ca(name: &str) -> String {
        pki::new_ca(name).unwrap().cert
    }

    fn bundle(name: &str, signer: &str, label: &str, text: &str) -> ClusterTrustBundle {
        serde_json::from_value(json!({"metadata": {"name": name, "labels": {"tier": label}},
            "spec": {"signerName": signer, "trustBundle": text}}))
        .unwrap()
    }

    #[tokio::test]
    async fn bundles_are_found_by_name_or_by_signer_and_labels() {
        let (one, two) = (ca("one"), ca("two"));
        let objects = FakeObjects::new()
            .bundle(bundle("plain", "", "", &format!("words\n{one}")))
            .bundle(bundle("s.io:a:1", "s.io/a", "live", &format!("{one}{two}")))
            .bundle(bundle("s.io:a:2", "s.io/a", "live", &two))
            .bundle(bundle("s.io:a:3", "s.io/a", "old", &ca("three")))
            .bundle(bundle("s.io:b:1", "s.io/b", "live", &ca("four")));
        for (source, want) in [
            (json!({"name": "plain"}), Ok(1)),
            (json!({"name": "gone"}), Err("clustertrustbundle \"gone\" not found")),
            (json!({"name": "gone", "optional": true}), Ok(0)),
            (json!({"signerName": "s.io/a", "labelSelector": {"matchLabels": {"tier": "live"}}}), Ok(2)),
            (json!({"signerName": "s.io/a", "labelSelector": {}}), Ok(3)),
            (json!({"signerName": "s.io/a"}), Err("matched zero")),
            (json!({"signerName": "s.io/a", "optional": true}), Ok(0)),
            (json!({"signerName": "s.io/c", "labelSelector": {}}), Err("matched zero")),
            (
                json!({"signerName": "s.io/a", "labelSelector": {"matchExpressions": [{"key": "tier", "operator": "Near"}]}}),
                Err("labelSelector"),
            ),
            (json!({"name": "plain", "signerName": "s.io/a"}), Err("either name or signerName")),
        ] {
            let mut given = source.clone();
            given["path"] = json!("ca.pem");
            let given = serde_json::from_value(given).unwrap();
            match (of_projection(&objects, &given, 0o644).await, want) {
                (Ok(files), Ok(count)) => {
                    let text = String::from_utf8(files["ca.pem"].data.clone()).unwrap();
                    assert_eq!(text.matches("BEGIN CERTIFICATE").count(), count, "{source}");
                    assert!(!text.contains("words"), "{source}");
                }
                (Err(got), Err(part)) => assert!(got.contains(part), "{source}: {got}"),
                (got, want) => panic!("{source}: {got:?}, not {want:?}"),
            }
        }
    }
}
