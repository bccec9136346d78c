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

#[test]
fn a_full_disk_refuses_writes_only_as_long_as_it_is_full() {
    struct Small(tempfile::TempDir);
    impl Drop for Small {
        fn drop(&mut self) {
            // The store's writer may just be ending, and commands of other tests may still hold its files.
            let _ = std::process::Command::new("umount").arg("--lazy").arg(self.0.path()).status();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=6m", "tmpfs"])
        .arg(dir.path())
        .output()
        .is_ok_and(|o| o.status.success());
    if !mounted {
        println!("skipped: cannot mount a small file system");
        return;
    }
    let small = Small(dir);
    let dir = small.0.path();
    let told = runtime().block_on(async {
        let store = Store::open(&dir.join("db")).unwrap();
        store.create("/kept", json!({"metadata": {}})).await.unwrap();
        let (_, mut watch) = store.watch("/", 0).unwrap();
        std::fs::write(dir.join("ballast"), vec![1; 3 << 20]).unwrap();
        let big = json!({"metadata": {}, "data": "x".repeat(200_000)});
        let mut made = Vec::new();
        let mut full = false;
        for n in 0..40 {
            match store.create(&format!("/big/{n}"), big.clone()).await {
                Ok(_) => made.push(n),
                Err(StoreError::Disk(_)) => full = true,
                Err(error) => panic!("{error}"),
            }
        }
        assert!(full, "the disk was not full: {made:?}");
        // What is there can be read meanwhile.
        assert!(store.get("/kept").is_some());
        std::fs::remove_file(dir.join("ballast")).unwrap();
        let after = store.create("/after", json!({"metadata": {}})).await.unwrap();
        assert_eq!(store.revision(), after.revision);
        let told =
            std::iter::from_fn(|| watch.try_recv().ok()).map(|e| (e.key.clone(), e.entry.revision)).collect::<Vec<_>>();
        let mut there: Vec<_> =
            store.range("/", "", 0, 0).unwrap().items.into_iter().map(|(k, e)| (k, e.revision)).collect();
        there.retain(|(key, _)| key != "/kept");
        there.sort_by_key(|(_, revision)| *revision);
        assert_eq!(told, there, "a watcher sees exactly what is stored, failed writes that reached the disk too");
        drop(store);
        let again = loop {
            if let Ok(store) = Store::open(&dir.join("db")) {
                break store;
            }
        };
        assert_eq!(again.revision(), after.revision);
        told
    });
    assert!(told.iter().any(|(key, _)| key == "/after"));
}
