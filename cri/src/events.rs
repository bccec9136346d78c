//! Container events for GetContainerEvents: each carries the pod's whole state.
//!
//! Every listener hears all events in one order, and a container's start before its end, however soon that comes. The API has no
//! place where a listener could say what it heard last; what happens while nobody listens (as between a daemon's start, which
//! learns of ends that came before it, and the kubelet's call) is kept for whoever listens first.

use std::collections::VecDeque;
use std::sync::Mutex;

use proto::cri;
use proto::cri::ContainerEventType as Kind;
use tokio::sync::broadcast;

use crate::daemon::{Daemon, lock, now};

/// Events that one listener may be behind before it is cut off.
const BEHIND: usize = 1024;
/// Most events that are kept while nobody listens; the newest.
const KEPT: usize = 256;

/// Who listens, and what nobody has heard.
pub struct Events {
    listeners: broadcast::Sender<cri::ContainerEventResponse>,
    unheard: Mutex<VecDeque<Unheard>>,
}

/// An event without the state that goes with it: that is the one when it is told.
struct Unheard {
    container: String,
    sandbox: String,
    kind: Kind,
    at: i64,
}

impl Default for Events {
    fn default() -> Self {
        Self { listeners: broadcast::channel(BEHIND).0, unheard: Mutex::default() }
    }
}

impl Events {
    /// How many listen.
    pub fn listeners(&self) -> usize {
        self.listeners.receiver_count()
    }
}

/// A new listener: what nobody has heard yet, and what comes from now on.
pub fn listen(daemon: &Daemon) -> (Vec<cri::ContainerEventResponse>, broadcast::Receiver<cri::ContainerEventResponse>) {
    let mut unheard = lock(&daemon.events.unheard);
    let receiver = daemon.events.listeners.subscribe();
    let past = unheard.drain(..).map(|e| response(daemon, &e)).collect();
    unheard.shrink_to_fit();
    (past, receiver)
}

/// Tells all who listen.
pub fn emit(daemon: &Daemon, container: &str, sandbox: &str, kind: Kind) {
    let found = daemon.containers.read().ok().and_then(|all| all.get(container).cloned());
    if let (Some(found), Kind::ContainerStartedEvent | Kind::ContainerStoppedEvent) = (found, kind) {
        // One that ends at once may be heard of before the call that starts it has gone on.
        let mut told = lock(&found.told_start);
        let never_ran = found.with(|r| r.started_at == 0 || r.reason == "StartError");
        if !*told && !never_ran {
            tell(daemon, container, sandbox, Kind::ContainerStartedEvent);
        }
        *told = true;
        if kind == Kind::ContainerStoppedEvent {
            tell(daemon, container, sandbox, kind);
        }
        return;
    }
    tell(daemon, container, sandbox, kind);
}

fn tell(daemon: &Daemon, container: &str, sandbox: &str, kind: Kind) {
    let event = Unheard { container: container.to_owned(), sandbox: sandbox.to_owned(), kind, at: now() };
    let mut unheard = lock(&daemon.events.unheard);
    if daemon.events.listeners() > 0 {
        let _ = daemon.events.listeners.send(response(daemon, &event));
        return;
    }
    if kind == Kind::ContainerDeletedEvent {
        // How it lived interests nobody any more.
        unheard.retain(|e| e.container != event.container);
    }
    if unheard.len() == KEPT {
        unheard.pop_front();
    }
    unheard.push_back(event);
}

fn response(daemon: &Daemon, event: &Unheard) -> cri::ContainerEventResponse {
    cri::ContainerEventResponse {
        container_id: event.container.clone(),
        container_event_type: event.kind.into(),
        created_at: event.at,
        pod_sandbox_status: daemon.sandbox(&event.sandbox).ok().map(|s| crate::sandbox::status(&s)),
        containers_statuses: daemon.containers_of(&event.sandbox).iter().map(|c| crate::container::status(c)).collect(),
    }
}
