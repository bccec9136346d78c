//! One plugin: registered, configured, synchronised, then asked about what happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use prost::Message;
use proto::nri;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};

use super::wire::{CallError, Connection, Incoming, UNIMPLEMENTED, decoded};

/// How long a plugin may take to register.
pub(super) const REGISTRATION: Duration = Duration::from_secs(5);
/// How long a plugin may take for one request.
pub(super) const REQUEST: Duration = Duration::from_secs(2);
/// Version of the plugin API.
const VERSION: &str = "0.12.0";
const PLUGIN: &str = "nri.pkg.api.v1alpha1.Plugin";
/// Every event that there is.
const ALL: i32 = (1 << (nri::Event::Last as i32 - 1)) - 1;
/// Pods and containers in one message of a synchronisation, at most; halved until they fit.
const AT_ONCE: usize = 1000;
const INVALID: i32 = 3;

/// A plugin that registered.
pub(super) struct Plugin {
    /// Two digits that say when it is asked, before or after others.
    pub(super) index: String,
    /// Its own name.
    pub(super) base: String,
    events: i32,
    connection: Arc<Connection>,
    /// It has been told what there is.
    ready: watch::Sender<bool>,
    /// Events that it is being asked about.
    asked: AtomicUsize,
}

/// Who a plugin says it is. Pure.
fn identity(r: &nri::RegisterPluginRequest) -> Result<(String, String), String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if r.plugin_idx.len() != 2 || !r.plugin_idx.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("plugin index {:?} is not two digits", r.plugin_idx));
    }
    if r.plugin_name.is_empty() || r.plugin_name.len() > 200 || !r.plugin_name.chars().all(good) {
        return Err(format!("plugin name {:?} is none", r.plugin_name));
    }
    Ok((r.plugin_idx.clone(), r.plugin_name.clone()))
}

/// What a plugin that is launched from a folder is called there: `10-name`. Pure.
pub(super) fn file_identity(name: &str) -> Option<(String, String)> {
    let (index, base) = name.split_once('-')?;
    let request =
        nri::RegisterPluginRequest { plugin_idx: index.to_owned(), plugin_name: base.to_owned(), ..Default::default() };
    identity(&request).ok()
}

/// An answer that is expected, counted as long as this lives.
struct Expected<'a>(&'a AtomicUsize);

impl<'a> Expected<'a> {
    fn of(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Plugin {
    /// Waits for a plugin's registration and configures it. `launched` names one that was started from a folder, `config` finds
    /// its configuration.
    ///
    /// # Errors
    /// It does not register in time, registers what is none, or refuses its configuration; the connection is closed then.
    pub(super) async fn accept(
        stream: UnixStream,
        launched: Option<(String, String)>,
        config: impl FnOnce(&str, &str) -> String,
    ) -> Result<(Self, mpsc::Receiver<Incoming>), String> {
        let (connection, mut incoming) = Connection::start(stream);
        let made = Self::configured(&connection, &mut incoming, launched, config).await;
        if made.is_err() {
            connection.close();
        }
        made.map(|plugin| (plugin, incoming))
    }

    async fn configured(
        connection: &Arc<Connection>,
        incoming: &mut mpsc::Receiver<Incoming>,
        launched: Option<(String, String)>,
        config: impl FnOnce(&str, &str) -> String,
    ) -> Result<Self, String> {
        let first = tokio::time::timeout(REGISTRATION, incoming.recv()).await;
        let first = first.map_err(|_| format!("no registration after {} s", REGISTRATION.as_secs()))?;
        let first = first.ok_or("the connection was closed before a registration")?;
        if first.method != "RegisterPlugin" {
            let why = format!("{} before RegisterPlugin", first.method);
            connection.answer(&first, Err((INVALID, why.clone()))).await;
            return Err(why);
        }
        let asked: Result<nri::RegisterPluginRequest, _> = decoded(&first.payload);
        let who = asked.map_err(|(_, why)| why).and_then(|r| launched.map_or_else(|| identity(&r), Ok));
        let (index, base) = match who {
            Ok(who) => who,
            Err(why) => {
                connection.answer(&first, Err((INVALID, why.clone()))).await;
                return Err(why);
            }
        };
        connection.answer(&first, Ok(Vec::new())).await;
        let milliseconds = |d: Duration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX);
        let request = nri::ConfigureRequest {
            config: config(&index, &base),
            runtime_name: "gantry-cri".to_owned(),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
            registration_timeout: milliseconds(REGISTRATION),
            request_timeout: milliseconds(REQUEST),
            nri_version: VERSION.to_owned(),
        };
        let answer: nri::ConfigureResponse = connection
            .call(PLUGIN, "Configure", &request, REQUEST)
            .await
            .map_err(|e| format!("plugin {index}-{base}: Configure: {e}"))?;
        let events = if answer.events == 0 { ALL } else { answer.events };
        if events & !ALL != 0 {
            return Err(format!("plugin {index}-{base} wants events that do not exist: {events:#x}"));
        }
        Ok(Self {
            index,
            base,
            events,
            connection: connection.clone(),
            ready: watch::Sender::new(false),
            asked: AtomicUsize::new(0),
        })
    }

    /// Its name for people, and for what it owns.
    pub(super) fn name(&self) -> String {
        format!("{}-{}", self.index, self.base)
    }

    /// Whether it wants to hear of this.
    pub(super) fn wants(&self, event: nri::Event) -> bool {
        self.events & (1 << (event as i32 - 1)) != 0
    }

    /// Whether an answer about an event is expected of it.
    pub(super) fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed) > 0
    }

    /// Whether its connection is gone.
    pub(super) fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }

    /// Ends the connection.
    pub(super) fn close(&self) {
        self.connection.close();
    }

    /// Returns when its connection is gone.
    pub(super) async fn closed(&self) {
        self.connection.closed().await;
    }

    /// Answers one of its requests.
    pub(super) async fn answer(&self, to: &Incoming, answer: Result<Vec<u8>, (i32, String)>) {
        self.connection.answer(to, answer).await;
    }

    /// Tells it what there is; only afterwards it hears of events. Answers the changes that it wants.
    ///
    /// # Errors
    /// It fails or does not answer in time; the connection is closed then.
    pub(super) async fn synchronize(
        &self,
        pods: Vec<nri::PodSandbox>,
        containers: Vec<nri::Container>,
    ) -> Result<Vec<nri::ContainerUpdate>, String> {
        let done = self.send_all(pods, containers).await;
        if done.is_err() {
            self.close();
        }
        self.ready.send_replace(true);
        done.map_err(|e| format!("plugin {}: Synchronize: {e}", self.name()))
    }

    async fn send_all(
        &self,
        mut pods: Vec<nri::PodSandbox>,
        mut containers: Vec<nri::Container>,
    ) -> Result<Vec<nri::ContainerUpdate>, String> {
        let mut size = AT_ONCE;
        loop {
            let now = pods.len().min(size);
            let then = containers.len().min(size);
            let request = nri::SynchronizeRequest {
                pods: pods[..now].to_vec(),
                containers: containers[..then].to_vec(),
                more: pods.len() > now || containers.len() > then,
            };
            if request.encoded_len() > super::wire::LONGEST - 1024 && size > 1 {
                size /= 2;
                continue;
            }
            let answer: nri::SynchronizeResponse =
                self.connection.call(PLUGIN, "Synchronize", &request, REQUEST).await.map_err(|e| e.to_string())?;
            if !request.more {
                return Ok(answer.update);
            }
            if !answer.more || !answer.update.is_empty() {
                return Err("it does not take what there is in several messages".to_owned());
            }
            pods.drain(..now);
            containers.drain(..then);
        }
    }

    /// Asks about an event. None when it does not want it, or has not answered in time or gone (it is closed then: a broken
    /// plugin must not stop the node).
    ///
    /// # Errors
    /// The plugin's own refusal.
    pub(super) async fn ask<T: Message + Default>(
        &self,
        event: nri::Event,
        method: &str,
        request: &impl Message,
        change: Option<nri::StateChangeEvent>,
    ) -> Result<Option<T>, String> {
        if !self.wants(event) || self.is_closed() {
            return Ok(None);
        }
        // One that connects just now is told what there is first.
        let _ = tokio::time::timeout(REQUEST * 4, self.ready.subscribe().wait_for(|r| *r)).await;
        let expected = Expected::of(&self.asked);
        let mut answer = self.connection.call(PLUGIN, method, request, REQUEST).await;
        // Plugins of older API versions hear of events without an answer by one call for all.
        if let (Err(CallError::Refused { code: UNIMPLEMENTED, .. }), Some(change)) = (&answer, change) {
            let told: Result<nri::Empty, _> = self.connection.call(PLUGIN, "StateChange", &change, REQUEST).await;
            answer = told.map(|_| T::default());
        }
        drop(expected);
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(CallError::Refused { code: UNIMPLEMENTED, .. }) => Ok(None),
            Err(CallError::Refused { message, .. }) => Err(format!("NRI plugin {}: {message}", self.name())),
            Err(error) => {
                tracing::warn!(plugin = self.name(), method, %error, "an NRI plugin is dropped");
                self.close();
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_have_two_digits_and_a_name() {
        assert_eq!(file_identity("10-topology"), Some(("10".to_owned(), "topology".to_owned())));
        assert_eq!(file_identity("05-a-b"), Some(("05".to_owned(), "a-b".to_owned())));
        for bad in ["topology", "1-x", "100-x", "ab-x", "10-", "10-a b", "10-a/b"] {
            assert_eq!(file_identity(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_mask_holds_every_event() {
        assert_eq!(ALL, 0x3fff);
    }
}
