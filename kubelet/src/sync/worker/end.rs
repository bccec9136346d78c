//! The end of a pod.

use std::time::Duration;

use jiff::Timestamp;

use super::{RETRY, Worker};
use crate::pod;
use crate::sync::observe::observe;
use crate::sync::stop;

impl Worker {
    /// Stops the pod, reports its end, frees what it holds and has it deleted.
    pub(super) async fn terminate(&mut self) {
        for task in self.probes.values() {
            task.abort();
        }
        self.probes.clear();
        let begin = Timestamp::now();
        let mut wait = Duration::from_secs(1);
        loop {
            let desired = self.desired.borrow_and_update().clone();
            let pod = desired.pod.clone();
            let uid = pod::uid(&pod).to_owned();
            let observed = match observe(&self.shared.cri, &uid, &mut self.ended).await {
                Ok(observed) => observed,
                Err(e) => {
                    tracing::warn!(pod = %pod::key(&pod), error = %e, "pod cannot be stopped yet");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY);
                    continue;
                }
            };
            self.publish(&pod, &observed, false, true, Timestamp::now()).await;
            let spent = Timestamp::now().duration_since(begin).as_secs();
            let grace = self.grace(&pod);
            let left = (grace - spent).max(grace.min(1));
            let mut watch = self.desired.clone();
            let (shared, known) = (self.shared.clone(), self.kill.clone());
            let order = shared.kills.wait(&uid, known.as_ref());
            let shorter = async {
                // A later request may cut the grace period, never lengthen it.
                let cut = watch.wait_for(|d| pod::grace(&d.pod) < grace).await.is_ok();
                if !cut {
                    std::future::pending::<()>().await;
                }
            };
            let stopped = tokio::select! {
                stopped = stop::everything(&self.shared, &pod, &observed, left) => stopped,
                () = shorter => continue,
                kill = order => {
                    self.obey(kill);
                    continue;
                }
            };
            let freed = match stopped {
                Ok(()) => {
                    if let Ok(last) = observe(&self.shared.cri, &uid, &mut self.ended).await {
                        self.publish(&pod, &last, false, true, Timestamp::now()).await;
                    }
                    stop::free(&self.shared, &uid).await
                }
                Err(e) => Err(e),
            };
            match freed {
                Ok(()) => {
                    tracing::info!(pod = %pod::key(&pod), "pod stopped and freed");
                    self.shared.kills.forget(&uid);
                    if desired.gone || pod::is_static(&pod) {
                        self.shared.statuses.forget(&uid);
                    } else {
                        self.shared.statuses.delete(&uid);
                    }
                    return;
                }
                Err(e) => {
                    self.shared.events.pod(&pod, None, true, "FailedKillPod", format!("error killing pod: {e}"));
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY);
                }
            }
        }
    }
}
