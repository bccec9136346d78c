//! The end of a pod.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::{RETRY, Worker};
use crate::pod;
use crate::sync::observe::observe;
use crate::sync::stop;

/// How long the volumes of a pod that is over may take before others are told that it has ended.
const RELEASE: Duration = Duration::from_secs(20);
/// How long a look at a pod that is being stopped may hold up the stopping.
const LOOK: Duration = Duration::from_secs(2);

impl Worker {
    /// Frees the volumes of a pod that is over although nobody has deleted it yet: its files in memory and on disk may be
    /// why it had to go, and the node is as short as before while they stay.
    pub(super) async fn release_volumes(&mut self, pod: &Pod) {
        if self.released {
            return;
        }
        match tokio::time::timeout(RELEASE, self.shared.volumes.release(pod::uid(pod))).await {
            Ok(Ok(())) => self.released = true,
            Ok(Err(faults)) => {
                for error in faults {
                    tracing::warn!(pod = %pod::key(pod), %error, "volume of a pod that is over not freed, will try again");
                }
            }
            Err(_) => {
                tracing::warn!(pod = %pod::key(pod), seconds = RELEASE.as_secs(), "volumes of a pod that is over are not freed in time, will try again");
            }
        }
    }

    /// Stops the pod, reports its end, frees what it holds and has it deleted.
    pub(super) async fn terminate(&mut self) {
        let begin = Instant::now();
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
            self.tend_probes(&pod, &observed, true);
            self.publish(&pod, &observed, false, true, Timestamp::now()).await;
            let spent = i64::try_from(begin.elapsed().as_secs()).unwrap_or(i64::MAX);
            let grace = self.grace(&pod);
            let left = grace.saturating_sub(spent).max(grace.min(1));
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
            let work = stop::everything(&shared, &pod, &observed, left);
            tokio::pin!(work, shorter, order);
            let stopped = loop {
                tokio::select! {
                    stopped = &mut work => break Some(stopped),
                    () = &mut shorter => break None,
                    kill = &mut order => {
                        self.obey(kill);
                        break None;
                    }
                    Some(report) = self.reports.1.recv() => self.note(&report),
                    // What has ended is not probed any more.
                    () = self.poke.notified(), if !self.probes.is_empty() => {}
                }
                let look = tokio::time::timeout(LOOK, observe(&shared.cri, &uid, &mut self.ended)).await;
                if let Ok(Ok(now)) = look {
                    self.tend_probes(&pod, &now, true);
                    self.publish(&pod, &now, false, true, Timestamp::now()).await;
                }
            };
            let Some(stopped) = stopped else { continue };
            for (_, probe) in self.probes.drain() {
                probe.abort();
            }
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
