use serde_json::{Value, json};

use super::*;
use crate::testing::FakeObjects;

fn source(kind: &str) -> PodCertificateProjection {
    serde_json::from_value(json!({"signerName": "s.io/a", "keyType": kind, "maxExpirationSeconds": 3600,
        "userAnnotations": {"s.io/x": "y"}, "credentialBundlePath": "bundle.pem"}))
    .unwrap()
}

fn pod() -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "a", "namespace": "n", "uid": "u"}})).unwrap()
}

fn answer(objects: &FakeObjects, index: usize, condition: &str, more: Value) {
    let mut status = more;
    status["conditions"] = json!([{"type": condition, "status": "True", "reason": "Because", "message": "so",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
    objects.requests.lock().unwrap()[index].status = Some(serde_json::from_value(status).unwrap());
}

fn chain(name: &str) -> String {
    format!("between\n{}", pki::new_ca(name).unwrap().cert)
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_asked_for_once_and_renewed_when_due() {
    let (objects, all, pod, source) = (FakeObjects::new(), Certificates::default(), pod(), source("ECDSAP256"));
    let get = || all.get(&objects, &pod, ("v", 0), &source);
    let error = get().await.unwrap_err();
    assert!(error.contains("not issued yet") && error.contains("req-0"), "{error}");
    assert!(get().await.is_err(), "it is still the same request");
    {
        let requests = objects.requests.lock().unwrap();
        assert_eq!(requests.len(), 1);
        let spec = &requests[0].spec;
        csr::check_der(&spec.stub_pkc_s10_request.0).unwrap();
        assert_eq!((spec.signer_name.as_str(), spec.max_expiration_seconds), ("s.io/a", Some(3600)));
        assert_eq!(spec.unverified_user_annotations.as_ref().unwrap()["s.io/x"], "y");
    }
    answer(&objects, 0, "Issued", json!({"certificateChain": chain("one"), "beginRefreshAt": "2026-01-01T00:00:00Z"}));
    let first = get().await.unwrap();
    assert!(first.key.contains("PRIVATE KEY") && first.chain.starts_with("-----BEGIN"), "{first:?}");
    let now = Timestamp::now();
    assert_eq!(all.states(now)[&("s.io/a".to_owned(), "overdue_for_refresh")], 1);
    assert_eq!(all.states("2026-01-01T00:09:00Z".parse().unwrap()).keys().next().unwrap().1, "fresh");
    // It is due already: asked for anew, and the old one serves meanwhile.
    assert_eq!(get().await.unwrap(), first);
    assert_eq!(objects.requests.lock().unwrap().len(), 2);
    assert_eq!(get().await.unwrap(), first);
    let told: Vec<_> = all.notes.take("u").into_iter().map(|n| n.reason).collect();
    assert_eq!(told, ["CertificateOverdueForRefresh"], "once");
    let times = json!({"certificateChain": chain("two"), "beginRefreshAt": "2999-01-01T00:00:00Z", "notAfter": "2999-01-02T00:00:00Z"});
    answer(&objects, 1, "Issued", times);
    let second = get().await.unwrap();
    assert!(second.key != first.key && second.chain != first.chain);
    assert_eq!(get().await.unwrap(), second);
    assert_eq!(objects.requests.lock().unwrap().len(), 2);
    assert_eq!(all.states(now).into_keys().map(|(_, s)| s).collect::<Vec<_>>(), ["fresh"]);
    assert_eq!(all.states("2999-01-03T00:00:00Z".parse().unwrap()).into_keys().next().unwrap().1, "expired");
    all.forget("u");
    assert!(get().await.is_err());
    assert!(all.states(now).is_empty(), "nothing is issued yet");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_for_good_and_told() {
    for (condition, word) in [("Denied", "permanently denied"), ("Failed", "permanently failed")] {
        let (objects, all, pod, source) = (FakeObjects::new(), Certificates::default(), pod(), source("ED25519"));
        assert!(all.get(&objects, &pod, ("v", 0), &source).await.is_err());
        answer(&objects, 0, condition, json!({}));
        for _ in 0..2 {
            let error = all.get(&objects, &pod, ("v", 0), &source).await.unwrap_err();
            assert!(error.contains(word) && error.contains("reason=\"Because\" message=\"so\""), "{error}");
        }
        assert_eq!(objects.requests.lock().unwrap().len(), 1);
        let notes = all.notes.take("u");
        assert!(notes.len() == 1 && notes[0].warning && notes[0].reason == condition, "{notes:?}");
        assert_eq!(all.states(Timestamp::now()).into_keys().next().unwrap().1, condition.to_lowercase());
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_used_is_an_error_that_says_so() {
    let (objects, all, pod) = (FakeObjects::new(), Certificates::default(), pod());
    let error = all.get(&objects, &pod, ("v", 0), &source("ECDSAP521")).await.unwrap_err();
    assert!(error.contains("ECDSAP521"), "{error}");
    assert!(all.get(&objects, &pod, ("v", 0), &source("ECDSAP384")).await.is_err());
    answer(&objects, 0, "Issued", json!({"certificateChain": "nothing"}));
    let error = all.get(&objects, &pod, ("v", 0), &source("ECDSAP384")).await.unwrap_err();
    assert!(error.contains("empty"), "{error}");
}
