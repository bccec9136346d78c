//! Objects that pods refer to, each watched while somebody asks for it: a change is known at once, and what is known stays
//! known while the apiserver is away.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How long an object is watched after it was asked for last. Volumes ask more often.
const KEEP: Duration = Duration::from_secs(120);
/// How long somebody waits for the first answer.
const LIMIT: Duration = Duration::from_secs(10);

/// What is known of one object.
#[derive(Clone)]
struct Known<T> {
    /// The object, or that there is none; the outer `None` means that nothing was heard yet.
    value: Option<Option<T>>,
    /// Why nothing was heard.
    error: Option<String>,
}

struct Entry<T> {
    known: watch::Receiver<Known<T>>,
    used: Instant,
    task: JoinHandle<()>,
}

impl<T> Drop for Entry<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Objects of one kind by namespace and name.
pub(crate) struct Watched<T> {
    entries: Mutex<HashMap<String, Entry<T>>>,
    immutable: fn(&T) -> bool,
    /// Hears the key of what has changed, so that nobody has to ask again and again.
    changed: Arc<dyn Fn(&str) + Send + Sync>,
}

impl<T: Clone + Send + Sync + 'static> Watched<T> {
    /// `immutable` tells of an object that it never changes: it is not watched any more then.
    /// `changed` hears of each change of what is watched.
    pub(crate) fn new(immutable: fn(&T) -> bool, changed: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self { entries: Mutex::default(), immutable, changed: Arc::new(changed) }
    }

    /// The object as it is now; `follow` begins to watch it.
    ///
    /// # Errors
    /// Nothing was ever heard of it; the text is the apiserver's.
    pub(crate) async fn get<S>(&self, key: &str, follow: impl FnOnce() -> S) -> Result<Option<T>, String>
    where
        S: Stream<Item = Result<Option<T>, String>> + Send + 'static,
    {
        let mut known = {
            let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
            entries.retain(|_, entry| entry.used.elapsed() < KEEP);
            let entry = entries.entry(key.to_owned()).or_insert_with(|| self.begin(key, follow()));
            entry.used = Instant::now();
            entry.known.clone()
        };
        let heard = known.wait_for(|k| k.value.is_some() || k.error.is_some());
        let heard = match tokio::time::timeout(LIMIT, heard).await {
            Ok(Ok(known)) => known.clone(),
            Ok(Err(_)) => Known { value: None, error: Some("the watch ended".to_owned()) },
            Err(_) => Known { value: None, error: Some("timed out waiting for the apiserver".to_owned()) },
        };
        match heard {
            Known { value: Some(value), .. } => Ok(value),
            Known { value: None, error } => {
                // The next one who asks begins anew, without the wait that failures make longer and longer.
                self.entries.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
                Err(error.unwrap_or_default())
            }
        }
    }

    fn begin(&self, key: &str, events: impl Stream<Item = Result<Option<T>, String>> + Send + 'static) -> Entry<T> {
        let (sender, known) = watch::channel(Known { value: None, error: None });
        let (immutable, changed, key) = (self.immutable, self.changed.clone(), key.to_owned());
        let task = tokio::spawn(async move {
            let mut events = std::pin::pin!(events);
            while let Some(event) = events.next().await {
                match event {
                    Ok(value) => {
                        let last = value.as_ref().is_some_and(immutable);
                        let before = sender.send_replace(Known { value: Some(value), error: None });
                        if before.value.is_some() {
                            changed(&key);
                        }
                        if last {
                            return;
                        }
                    }
                    Err(error) => sender.send_modify(|known| known.error = Some(error)),
                }
            }
        });
        Entry { known, used: Instant::now(), task }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::channel::mpsc;
    use std::sync::atomic::{AtomicU32, Ordering};

    type Event = Result<Option<u32>, String>;

    #[tokio::test]
    async fn what_is_watched_is_asked_for_once_and_changes_are_seen() {
        let (events, stream) = mpsc::unbounded::<Event>();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ears = heard.clone();
        let watched = Watched::new(|_| false, move |key| ears.lock().unwrap().push(key.to_owned()));
        let asked = AtomicU32::new(0);
        let mut stream = Some(stream);
        events.unbounded_send(Ok(None)).unwrap();
        let mut get = async || {
            watched
                .get("n/a", || {
                    asked.fetch_add(1, Ordering::Relaxed);
                    stream.take().unwrap()
                })
                .await
        };
        assert_eq!(get().await, Ok(None), "it does not exist yet");
        events.unbounded_send(Ok(Some(1))).unwrap();
        while get().await == Ok(None) {
            tokio::task::yield_now().await;
        }
        // The apiserver goes away: what is known stays.
        events.unbounded_send(Err("gone".into())).unwrap();
        for _ in 0..10 {
            tokio::task::yield_now().await;
            assert_eq!(get().await, Ok(Some(1)));
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        assert_eq!(*heard.lock().unwrap(), ["n/a"], "told of the change, not of the first answer");
    }

    #[tokio::test]
    async fn what_never_changes_is_not_watched_and_a_failure_is_not_kept() {
        let watched = Watched::new(|n| *n == 7, |_| {});
        let refused = || futures::stream::iter([Err::<Option<u32>, String>("forbidden".into())]);
        assert_eq!(watched.get("n/a", refused).await, Err("forbidden".to_owned()));
        let (events, stream) = mpsc::unbounded::<Event>();
        events.unbounded_send(Ok(Some(7))).unwrap();
        assert_eq!(watched.get("n/a", || stream).await, Ok(Some(7)));
        while !events.is_closed() {
            tokio::task::yield_now().await;
        }
        assert_eq!(watched.get("n/a", futures::stream::pending::<Event>).await, Ok(Some(7)));
    }
}
