//! logind's side: the lock that holds a shutdown up, the time that it may, and word of shutdowns to come.
//!
//! D-Bus is spoken in a thread of its own: it waits for signals most of the time.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gantry_dbus::{Call, Connection, Encoder, Error, Result};
use gantry_files::{Access, Outlives};
use tokio::sync::mpsc;

const NAME: &str = "org.freedesktop.login1";
const OBJECT: &str = "/org/freedesktop/login1";
const MANAGER: &str = "org.freedesktop.login1.Manager";
const BUS: &str = "org.freedesktop.DBus";
const PATIENCE: Duration = Duration::from_secs(30);
/// Between tries to reach a bus that is not there.
const RETRY: Duration = Duration::from_secs(10);
/// How long a wait for signals lasts before it begins again.
const WATCH: Duration = Duration::from_secs(3600);

/// Where things are; tests have their own.
#[derive(Clone, Debug)]
pub(super) struct Places {
    /// The bus.
    pub(super) bus: PathBuf,
    /// logind's folder of settings.
    pub(super) conf: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        // The address that every program looks at first.
        let address = std::env::var("DBUS_SYSTEM_BUS_ADDRESS").unwrap_or_default();
        let path = address.split([';', ',']).find_map(|part| part.strip_prefix("unix:path="));
        Self { bus: path.unwrap_or("/run/dbus/system_bus_socket").into(), conf: "/etc/systemd/logind.conf.d".into() }
    }
}

/// What logind tells.
#[derive(Debug)]
pub(super) enum Word {
    /// The kubelet can hold shutdowns up; the lock does it until it is dropped.
    Ready(OwnedFd),
    /// The machine is about to go down (or a shutdown was called off). The lock lets it.
    Shutdown(bool),
}

struct Logind {
    bus: Connection,
}

impl Logind {
    fn connect(path: &Path) -> Result<Self> {
        let mut bus = Connection::open(path, "the system bus", PATIENCE)?;
        bus.hello()?;
        bus.subscribe(&format!("type='signal',interface='{MANAGER}',member='PrepareForShutdown',path='{OBJECT}'"))?;
        // A lock does not outlive the logind that gave it out, whatever becomes of the bus.
        bus.subscribe(&format!(
            "type='signal',sender='{BUS}',interface='{BUS}',member='NameOwnerChanged',arg0='{NAME}'"
        ))?;
        Ok(Self { bus })
    }

    fn property(&mut self, name: &str) -> Result<u64> {
        let mut body = Encoder::default();
        body.text(MANAGER);
        body.text(name);
        let interface = "org.freedesktop.DBus.Properties";
        let call = Call { destination: NAME, path: OBJECT, interface, member: "Get", signature: "ss" };
        let answer = self.bus.call(&call, &body)?;
        answer.number(0).ok_or_else(|| Error::Connection(format!("logind does not tell {name}")))
    }

    /// How long logind lets a shutdown be held up.
    fn delay(&mut self) -> Result<Duration> {
        self.property("InhibitDelayMaxUSec").map(Duration::from_micros)
    }

    fn inhibit(&mut self) -> Result<OwnedFd> {
        let mut body = Encoder::default();
        for text in ["shutdown", "kubelet", "Kubelet needs time to handle node shutdown", "delay"] {
            body.text(text);
        }
        let call = Call { destination: NAME, path: OBJECT, interface: MANAGER, member: "Inhibit", signature: "ssss" };
        let mut answer = self.bus.call(&call, &body)?;
        answer.fds.pop().ok_or_else(|| Error::Connection("logind gives no lock".into()))
    }

    /// Has logind read its settings again.
    fn reload(&mut self) -> Result<()> {
        let mut body = Encoder::default();
        body.text("systemd-logind.service");
        body.text("all");
        body.u32(u32::try_from(nix::sys::signal::Signal::SIGHUP as i32).unwrap_or(1));
        let (name, path) = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1");
        let interface = "org.freedesktop.systemd1.Manager";
        let call = Call { destination: name, path, interface, member: "KillUnit", signature: "ssi" };
        self.bus.call(&call, &body).map(drop)
    }

    /// Sees to it that a shutdown can be held up for `need`.
    fn ensure(&mut self, need: Duration, conf: &Path) -> Result<()> {
        if self.delay()? >= need {
            return Ok(());
        }
        let seconds = need.as_secs() + u64::from(need.subsec_nanos() > 0);
        let file = conf.join("99-kubelet.conf");
        let text = format!("# Kubelet logind override\n[Login]\nInhibitDelayMaxSec={seconds}\n");
        let written = std::fs::create_dir_all(conf)
            .and_then(|()| gantry_files::replace(&file, text.as_bytes(), Access::Umask, Outlives::Program));
        written.map_err(|e| Error::Connection(format!("write {}: {e}", file.display())))?;
        self.reload()?;
        // logind takes its time after the signal.
        for _ in 0..50 {
            if self.delay()? >= need {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let now = self.delay()?;
        Err(Error::Connection(format!(
            "logind lets a shutdown be held up for {} s only, although {} asks for {seconds} s",
            now.as_secs(),
            file.display()
        )))
    }

    /// Takes a lock from a logind that was not asked before. `going_down` is what was told last: nobody calls the shutdown off
    /// that a logind was about to do which is no more.
    fn begin(&mut self, words: &mpsc::Sender<Word>, going_down: &mut bool) -> Result<()> {
        let lost = |_| Error::Connection("the kubelet ends".into());
        if *going_down && self.property("PreparingForShutdown")? == 0 {
            words.blocking_send(Word::Shutdown(false)).map_err(lost)?;
            *going_down = false;
        }
        if !*going_down {
            words.blocking_send(Word::Ready(self.inhibit()?)).map_err(lost)?;
        }
        Ok(())
    }

    /// Holds the lock and passes words on until the bus goes away.
    fn watch(&mut self, words: &mpsc::Sender<Word>, going_down: &mut bool) -> Result<()> {
        let lost = |_| Error::Connection("the kubelet ends".into());
        self.begin(words, going_down)?;
        loop {
            let signal = match self.bus.signal(WATCH) {
                Ok(signal) => signal,
                Err(Error::Late(_)) if !words.is_closed() => continue,
                Err(e) => return Err(e),
            };
            if signal.member == "NameOwnerChanged" && signal.interface == BUS {
                if signal.text(0) != NAME || signal.text(2).is_empty() {
                    continue;
                }
                tracing::info!("logind has begun anew: it is asked for a new lock");
                self.begin(words, going_down)?;
                continue;
            }
            if signal.member != "PrepareForShutdown" || signal.interface != MANAGER {
                continue;
            }
            *going_down = signal.number(0) == Some(1);
            words.blocking_send(Word::Shutdown(*going_down)).map_err(lost)?;
            if !*going_down {
                // The lock of before was given back; the next shutdown needs a new one.
                words.blocking_send(Word::Ready(self.inhibit()?)).map_err(lost)?;
            }
        }
    }
}

/// Listens to logind in a thread until nobody reads the words any more.
pub(super) fn listen(places: Places, need: Duration) -> mpsc::Receiver<Word> {
    let (words, heard) = mpsc::channel(8);
    let work = move || {
        let (mut told, mut going_down) = (None, false);
        while !words.is_closed() {
            let ended = Logind::connect(&places.bus).and_then(|mut logind| {
                logind.ensure(need, &places.conf)?;
                told = None;
                logind.watch(&words, &mut going_down)
            });
            if let Err(e) = ended
                && told.as_ref() != Some(&e)
            {
                tracing::warn!(error = %e, "shutdowns of the machine cannot be held up; will try again");
                told = Some(e);
            }
            std::thread::sleep(RETRY);
        }
    };
    if let Err(e) = std::thread::Builder::new().name("logind".into()).spawn(work) {
        tracing::error!(error = %e, "shutdowns of the machine cannot be held up");
    }
    heard
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::process::{Child, Command, Stdio};
    use std::sync::mpsc as std_mpsc;
    use std::time::Instant;

    const LIMIT: Duration = Duration::from_secs(60);

    struct Daemon(Child);

    impl Drop for Daemon {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// A bus of our own; nothing where dbus-daemon is not installed.
    fn bus(folder: &Path) -> Option<(Daemon, PathBuf)> {
        let socket = folder.join("bus");
        let conf = folder.join("bus.conf");
        let text = format!(
            "<busconfig><type>session</type><listen>unix:path={}</listen><auth>EXTERNAL</auth>\
             <policy context=\"default\"><allow send_destination=\"*\"/><allow eavesdrop=\"true\"/><allow own=\"*\"/>\
             <allow user=\"*\"/></policy></busconfig>",
            socket.display()
        );
        std::fs::write(&conf, text).unwrap();
        let mut command = Command::new("dbus-daemon");
        command.arg("--nofork").arg(format!("--config-file={}", conf.display())).stdout(Stdio::null());
        let Ok(child) = command.spawn() else {
            println!("skipped: no dbus-daemon (package dbus)");
            return None;
        };
        let daemon = Daemon(child);
        let end = Instant::now() + LIMIT;
        while Connection::open(&socket, "the test's bus", PATIENCE).is_err() {
            assert!(Instant::now() < end, "dbus-daemon does not come up");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some((daemon, socket))
    }

    fn connection(socket: &Path) -> Connection {
        let mut new = Connection::open(socket, "the test's bus", PATIENCE).unwrap();
        new.hello().unwrap();
        new
    }

    /// logind and systemd in one: answers until `stop`, raises the delay when its settings are read again, and tells the
    /// far ends of the locks that it has given out.
    fn fake(socket: &Path, conf: PathBuf, shutdowns: std_mpsc::Receiver<bool>, locks: std_mpsc::Sender<OwnedFd>) {
        let mut bus = connection(socket);
        // What others call it by comes last: a call that comes while a name is asked for would be lost.
        for name in ["org.freedesktop.systemd1", NAME] {
            let end = Instant::now() + LIMIT;
            // One that was there before may still be on its way out.
            while let Err(e) = bus.own(name) {
                assert!(Instant::now() < end, "{e}");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let mut delay = 5_000_000;
        std::thread::spawn(move || {
            loop {
                match shutdowns.try_recv() {
                    Ok(active) => {
                        let mut body = Encoder::default();
                        body.bool(active);
                        let names = Call {
                            destination: "",
                            path: OBJECT,
                            interface: MANAGER,
                            member: "PrepareForShutdown",
                            signature: "b",
                        };
                        bus.emit(&names, &body).unwrap();
                    }
                    Err(std_mpsc::TryRecvError::Disconnected) => return,
                    Err(std_mpsc::TryRecvError::Empty) => {}
                }
                let call = match bus.called(Duration::from_millis(50)) {
                    Ok(call) => call,
                    Err(Error::Late(_)) => continue,
                    Err(_) => return,
                };
                let mut body = Encoder::default();
                match call.member.as_str() {
                    "Get" => {
                        body.number_variant(if call.text(1) == "PreparingForShutdown" { 0 } else { delay });
                        bus.answer(&call, "v", &body, &[]).unwrap();
                    }
                    "KillUnit" => {
                        let text = std::fs::read_to_string(conf.join("99-kubelet.conf")).unwrap();
                        let line = text.lines().find_map(|l| l.strip_prefix("InhibitDelayMaxSec=")).unwrap();
                        delay = line.parse::<u64>().unwrap() * 1_000_000;
                        bus.answer(&call, "", &body, &[]).unwrap();
                    }
                    "Inhibit" => {
                        assert_eq!((call.text(0), call.text(3)), ("shutdown", "delay"));
                        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
                        body.u32(0);
                        bus.answer(&call, "h", &body, &[near.as_fd()]).unwrap();
                        let _ = locks.send(far.into());
                    }
                    other => panic!("unexpected call {other}"),
                }
            }
        });
    }

    /// Whether the other end of a lock is closed, within the limit.
    fn released(far: &OwnedFd) -> bool {
        let mut fds = [nix::poll::PollFd::new(far.as_fd(), nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut fds, nix::poll::PollTimeout::try_from(LIMIT).unwrap()).unwrap();
        fds[0].revents().is_some_and(|r| r.contains(nix::poll::PollFlags::POLLHUP))
    }

    async fn word(heard: &mut mpsc::Receiver<Word>) -> Word {
        tokio::time::timeout(LIMIT, heard.recv()).await.expect("logind's word in time").unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_shutdown_is_held_up_until_the_lock_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let Some((_daemon, socket)) = bus(dir.path()) else { return };
        let conf = dir.path().join("logind.conf.d");
        let (shutdown, shutdowns) = std_mpsc::channel();
        let (give, locks) = std_mpsc::channel();
        fake(&socket, conf.clone(), shutdowns, give);
        let mut heard = listen(Places { bus: socket, conf: conf.clone() }, Duration::from_secs(40));
        let Word::Ready(lock) = word(&mut heard).await else { panic!("the lock comes first") };
        let far = locks.recv_timeout(LIMIT).unwrap();
        let text = std::fs::read_to_string(conf.join("99-kubelet.conf")).unwrap();
        assert!(text.contains("InhibitDelayMaxSec=40"), "{text}");
        shutdown.send(true).unwrap();
        assert!(matches!(word(&mut heard).await, Word::Shutdown(true)));
        drop(lock);
        assert!(released(&far));
        shutdown.send(false).unwrap();
        assert!(matches!(word(&mut heard).await, Word::Shutdown(false)));
        assert!(matches!(word(&mut heard).await, Word::Ready(_)), "a new lock for the next one");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_logind_that_begins_anew_is_asked_for_a_new_lock() {
        let dir = tempfile::tempdir().unwrap();
        let Some((_daemon, socket)) = bus(dir.path()) else { return };
        let conf = dir.path().join("logind.conf.d");
        let begin = || {
            let (shutdown, shutdowns) = std_mpsc::channel();
            let (give, locks) = std_mpsc::channel();
            fake(&socket, conf.clone(), shutdowns, give);
            (shutdown, locks)
        };
        let (first, _locks) = begin();
        let mut heard = listen(Places { bus: socket.clone(), conf: conf.clone() }, Duration::from_secs(2));
        assert!(matches!(word(&mut heard).await, Word::Ready(_)));
        // It goes while a shutdown is held up, and so cannot call it off.
        first.send(true).unwrap();
        assert!(matches!(word(&mut heard).await, Word::Shutdown(true)));
        drop(first);
        let (_second, locks) = begin();
        assert!(matches!(word(&mut heard).await, Word::Shutdown(false)), "the new one knows of no shutdown");
        let Word::Ready(lock) = word(&mut heard).await else { panic!("a new lock") };
        let far = locks.recv_timeout(LIMIT).unwrap();
        drop(lock);
        assert!(released(&far), "the lock is the new logind's");
    }
}
