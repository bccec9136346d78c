//! Pulls for CRI clients: whoever asks again for what is being pulled joins that pull, and a pull that nobody waits for any more
//! goes on for a while, because a client whose patience ended asks again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cri_images::Auth;
use tokio::sync::watch;
use tonic::Status;

use crate::daemon::{Daemon, lock};
use crate::error::Error;

/// How long a pull goes on that nobody waits for.
const PATIENCE: Duration = Duration::from_secs(60);

type Outcome = Option<Result<String, Status>>;

/// Pulls that are going on, by name and login: who shows another login has to prove it.
#[derive(Default)]
pub struct Pulls(Mutex<HashMap<Vec<String>, Arc<watch::Sender<Outcome>>>>);

/// Takes a pull off the list, however it ends.
struct Listed(Arc<Daemon>, Vec<String>);

impl Drop for Listed {
    fn drop(&mut self) {
        lock(&self.0.pulls.0).remove(&self.1);
    }
}

fn key(name: &str, auth: Option<&Auth>) -> Vec<String> {
    let mut key = vec![name.to_owned()];
    if let Some(a) = auth {
        let parts = [&a.username, &a.password, &a.auth, &a.server_address, &a.identity_token, &a.registry_token];
        key.extend(parts.map(Clone::clone));
    }
    key
}

/// Pulls an image, or waits for the pull of it that is going on. Answers its id.
///
/// # Errors
/// The pull's.
pub async fn pull(daemon: &Arc<Daemon>, name: String, auth: Option<Auth>) -> Result<String, Status> {
    let key = key(&name, auth.as_ref());
    let mut outcome = {
        let mut pulls = lock(&daemon.pulls.0);
        if let Some(going_on) = pulls.get(&key) {
            going_on.subscribe()
        } else {
            let (sender, receiver) = watch::channel(None);
            let sender = Arc::new(sender);
            pulls.insert(key.clone(), sender.clone());
            let listed = Listed(daemon.clone(), key);
            tokio::spawn(async move {
                let outcome = work(&listed.0, &name, auth, &sender).await;
                drop(listed);
                sender.send_replace(Some(outcome));
            });
            receiver
        }
    };
    let ended = outcome.wait_for(Option::is_some).await.ok().and_then(|o| o.clone());
    ended.unwrap_or_else(|| Err(Status::internal("the pull was cut off")))
}

async fn work(
    daemon: &Arc<Daemon>,
    name: &str,
    auth: Option<Auth>,
    waiting: &watch::Sender<Outcome>,
) -> Result<String, Status> {
    let pull = daemon.images.pull(name, auth, None);
    tokio::select! {
        done = pull => done.map(|image| image.id).map_err(|e| Error::from(e).into()),
        () = left_alone(waiting) => {
            tracing::info!(image = name, "a pull is given up: nobody waits for it any more");
            Err(Status::cancelled(format!("pull {name}: nobody waited for it any more")))
        }
    }
}

/// Returns when nobody has waited for as long as [`PATIENCE`].
async fn left_alone(waiting: &watch::Sender<Outcome>) {
    loop {
        waiting.closed().await;
        tokio::time::sleep(PATIENCE).await;
        if waiting.is_closed() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pull_is_given_up_when_nobody_comes_back() {
        let (sender, receiver) = watch::channel(None);
        let alone = left_alone(&sender);
        tokio::pin!(alone);
        let soon = Duration::from_secs(50);
        assert!(tokio::time::timeout(soon, &mut alone).await.is_err(), "somebody waits");
        drop(receiver);
        assert!(tokio::time::timeout(soon, &mut alone).await.is_err(), "it is too early");
        let back = sender.subscribe();
        assert!(tokio::time::timeout(soon, &mut alone).await.is_err(), "somebody came back");
        drop(back);
        assert!(tokio::time::timeout(PATIENCE * 3, alone).await.is_ok());
    }

    #[test]
    fn another_login_is_another_pull() {
        let login = |password: &str| Auth { username: "u".into(), password: password.into(), ..Auth::default() };
        assert_ne!(key("a", None), key("b", None));
        assert_ne!(key("a", Some(&login("x"))), key("a", Some(&login("y"))));
        assert_ne!(key("a", Some(&Auth::default())), key("a", None));
        assert_eq!(key("a", Some(&login("x"))), key("a", Some(&login("x"))));
    }
}
