//! Orders to end pods that their sources still want: from eviction, from a shutdown of the node, for room for a critical
//! pod. The pod's worker carries them out.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

/// How a pod is to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kill {
    /// `status.reason`: `Evicted`, `Terminated`, `Preempting`.
    pub(crate) reason: String,
    /// `status.message`
    pub(crate) message: String,
    /// Seconds until SIGKILL, if not those of the pod.
    pub(crate) grace: Option<i64>,
    /// Reason of the condition `DisruptionTarget`, if the pod gets one.
    pub(crate) disruption: Option<&'static str>,
}

#[derive(Debug, Default)]
struct Order {
    kill: Option<Kill>,
    done: bool,
}

/// The orders by uid.
#[derive(Debug, Default)]
pub(crate) struct Kills {
    orders: Mutex<HashMap<String, Order>>,
    changes: watch::Sender<u64>,
}

impl Kills {
    fn orders(&self) -> MutexGuard<'_, HashMap<String, Order>> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|n| *n += 1);
    }

    /// Orders a pod's end. The first order counts; a later one only shortens its grace period.
    pub(crate) fn order(&self, uid: &str, kill: Kill) {
        let mut orders = self.orders();
        let order = orders.entry(uid.to_owned()).or_default();
        match &mut order.kill {
            Some(known) => {
                if let (Some(new), old) = (kill.grace, &mut known.grace) {
                    *old = Some(old.map_or(new, |old| old.min(new)));
                }
            }
            none => *none = Some(kill),
        }
        drop(orders);
        self.changed();
    }

    /// The order for a pod.
    pub(crate) fn get(&self, uid: &str) -> Option<Kill> {
        self.orders().get(uid)?.kill.clone()
    }

    /// Waits for an order for a pod, or for one that differs from `known`.
    pub(crate) async fn wait(&self, uid: &str, known: Option<&Kill>) -> Kill {
        let mut changes = self.changes.subscribe();
        loop {
            changes.mark_unchanged();
            if let Some(kill) = self.get(uid).filter(|k| Some(k) != known) {
                return kill;
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Nothing of the pod runs any more.
    pub(crate) fn done(&self, uid: &str) {
        if let Some(order) = self.orders().get_mut(uid).filter(|o| !o.done) {
            order.done = true;
        } else {
            return;
        }
        self.changed();
    }

    /// The pod is gone from the node.
    pub(crate) fn forget(&self, uid: &str) {
        if self.orders().remove(uid).is_some() {
            self.changed();
        }
    }

    /// Waits until nothing of a pod with an order runs; tells whether that came true within `limit`.
    pub(crate) async fn ended(&self, uid: &str, limit: Duration) -> bool {
        let mut changes = self.changes.subscribe();
        let wait = async {
            loop {
                changes.mark_unchanged();
                if self.orders().get(uid).is_none_or(|o| o.done) || changes.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(limit, wait).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kill(grace: Option<i64>) -> Kill {
        Kill { reason: "Evicted".into(), message: String::new(), grace, disruption: None }
    }

    #[tokio::test]
    async fn a_later_order_only_shortens_the_grace_period() {
        let kills = Kills::default();
        kills.order("u", kill(None));
        kills.order("u", kill(Some(30)));
        kills.order("u", kill(Some(60)));
        assert_eq!(kills.wait("u", None).await.grace, Some(30));
        assert_eq!(kills.get("other"), None);
    }

    #[tokio::test]
    async fn the_one_who_ordered_hears_of_the_end() {
        let kills = std::sync::Arc::new(Kills::default());
        kills.order("u", kill(Some(0)));
        assert!(!kills.ended("u", Duration::from_millis(1)).await);
        let other = kills.clone();
        let waits = tokio::spawn(async move { other.ended("u", Duration::from_secs(30)).await });
        kills.done("u");
        assert!(waits.await.unwrap());
    }
}
