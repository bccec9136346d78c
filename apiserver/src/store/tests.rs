//! The store against a plain map: what a watch tells is what happened, and nothing is lost by reopening.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn a_watch_is_the_replay_of_history(steps in prop::collection::vec((0_u8..6, 0_u8..3), 1..30), from in 0_u64..10) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        runtime().block_on(async {
            let store = Store::open(&path).unwrap();
            let mut states = vec![BTreeMap::new()];
            for (key, action) in steps {
                let key = format!("/pods/{key}");
                let now = store.get(&key);
                let mut model: BTreeMap<String, u64> = states.last().unwrap().clone();
                match (action, now) {
                    (2, Some(entry)) => { store.delete(&key, entry.revision).await.unwrap(); model.remove(&key); }
                    (_, Some(entry)) => { let new = store.replace(&key, entry.revision, json!({"metadata": {}})).await.unwrap(); model.insert(key, new.revision); }
                    (_, None) => { let new = store.create(&key, json!({"metadata": {}})).await.unwrap(); model.insert(key, new.revision); }
                }
                states.push(model);
            }
            drop(store);
            let store = loop { if let Ok(store) = Store::open(&path) { break store; } };
            let from = from.min(store.revision());
            let (events, _live) = store.watch("/pods/", from).unwrap();
            let mut model = states[usize::try_from(from).unwrap()].clone();
            let at: BTreeMap<String, u64> = store.range("/pods/", "", 0, from.max(1)).unwrap().items.into_iter().map(|(k, e)| (k, e.revision)).collect();
            assert_eq!(at, states[usize::try_from(from.max(1)).unwrap()]);
            for event in events {
                match event.kind { EventKind::Deleted => { model.remove(&event.key); } _ => { model.insert(event.key.clone(), event.entry.revision); } }
                assert_eq!(&model, &states[usize::try_from(event.entry.revision).unwrap()]);
            }
            assert_eq!(&model, states.last().unwrap());
        });
    }
}

#[test]
fn stale_writes_are_refused_and_compacted_watches_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let store = Store::open(&dir.path().join("db")).unwrap();
        let first = store.create("/a", json!({"metadata": {}})).await.unwrap();
        assert!(matches!(store.create("/a", json!({})).await, Err(StoreError::Exists)));
        store.replace("/a", first.revision, json!({"metadata": {"x": 1}})).await.unwrap();
        assert!(matches!(store.replace("/a", first.revision, json!({})).await, Err(StoreError::Changed)));
        store.compact(2).await.unwrap();
        assert!(matches!(store.watch("/", 1), Err(StoreError::Compacted { .. })));
        assert!(store.watch("/", 2).unwrap().0.is_empty());
    });
}
