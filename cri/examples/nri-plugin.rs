//! A plugin for the tests of NRI: a process of its own with its own ttrpc, that writes down what it is told and adjusts what it
//! is told to adjust.
//!
//! usage: nri-plugin SOCKET INDEX NAME LOG [WORD...], or from the plugin folder, with LOG and words in its configuration.
//! Words: `env=NAME` sets NAME=INDEX-NAME, `shares=N` CPU shares, `mount=DIR` binds DIR to /nri, `refuse=NAME` refuses a
//! container, `reject` validates and rejects, `slow` sleeps in CreateContainer, `update=N` gives each container that starts N shares,
//! `evict` wants the end of each that is about to start, and other shares, and waits for the answer before it gives its own.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use prost::Message;
use proto::{nri, ttrpc};

struct Plugin {
    stream: UnixStream,
    name: String,
    log: String,
    words: Vec<String>,
    next: u32,
    /// What has come on the two connections and is not read yet: requests, and answers to ours.
    buffers: [Vec<u8>; 2],
}

fn take<const N: usize>(stream: &mut UnixStream) -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

impl Plugin {
    fn send(&mut self, connection: u32, stream: u32, kind: u8, body: &[u8]) -> std::io::Result<()> {
        let mut message = (body.len() as u32).to_be_bytes().to_vec();
        message.extend(stream.to_be_bytes());
        message.extend([kind, 0]);
        message.extend(body);
        // In pieces, as any peer may send them.
        for part in message.chunks(7000) {
            self.stream.write_all(&connection.to_be_bytes())?;
            self.stream.write_all(&(part.len() as u32).to_be_bytes())?;
            self.stream.write_all(part)?;
        }
        Ok(())
    }

    fn call(&mut self, method: &str, request: &impl Message) -> std::io::Result<()> {
        let envelope = ttrpc::Request {
            service: "nri.pkg.api.v1alpha1.Runtime".to_owned(),
            method: method.to_owned(),
            payload: request.encode_to_vec(),
            ..Default::default()
        };
        self.next += 2;
        self.send(2, self.next, 1, &envelope.encode_to_vec())
    }

    fn say(&self, line: &str) {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&self.log);
        if let Ok(mut file) = file {
            let _ = file.write_all(format!("{} {line}\n", self.name).as_bytes());
        }
    }

    fn word(&self, key: &str) -> Option<&str> {
        self.words.iter().find_map(|w| w.strip_prefix(key)?.strip_prefix('='))
    }

    fn adjustment(&self) -> nri::ContainerAdjustment {
        let mut adjust = nri::ContainerAdjustment::default();
        if let Some(name) = self.word("env") {
            adjust.env.push(nri::KeyValue { key: name.to_owned(), value: self.name.clone() });
        }
        if let Some(dir) = self.word("mount") {
            adjust.mounts.push(nri::Mount {
                destination: "/nri".to_owned(),
                r#type: "bind".to_owned(),
                source: dir.to_owned(),
                options: vec!["rbind".to_owned(), "ro".to_owned()],
            });
        }
        if let Some(shares) = self.word("shares").and_then(|n| n.parse().ok()) {
            adjust.linux =
                Some(nri::LinuxContainerAdjustment { resources: Some(with_shares(shares)), ..Default::default() });
        }
        adjust
    }

    /// The answer to one call, in its encoded form, or the refusal.
    fn answer(&mut self, method: &str, payload: &[u8]) -> Result<Vec<u8>, String> {
        fn read<T: Message + Default>(payload: &[u8]) -> Result<T, String> {
            T::decode(payload).map_err(|e| e.to_string())
        }
        match method {
            "Configure" => {
                let r: nri::ConfigureRequest = read(payload)?;
                let mut words = r.config.split_whitespace();
                if let Some(log) = words.next() {
                    log.clone_into(&mut self.log);
                    self.words.extend(words.map(str::to_owned));
                }
                self.say(&format!("configure {} {}", r.runtime_name, r.nri_version));
                let all = (1 << (nri::Event::Last as i32 - 1)) - 1;
                let validate = 1 << (nri::Event::ValidateContainerAdjustment as i32 - 1);
                let events = if self.words.iter().any(|w| w == "reject") { all } else { all & !validate };
                Ok(nri::ConfigureResponse { events }.encode_to_vec())
            }
            "Synchronize" => {
                let r: nri::SynchronizeRequest = read(payload)?;
                r.pods.iter().for_each(|p| self.say(&format!("has-pod {}", p.name)));
                r.containers.iter().for_each(|c| self.say(&format!("has {} {}", c.name, c.id)));
                self.say("synchronized");
                Ok(nri::SynchronizeResponse { update: Vec::new(), more: r.more }.encode_to_vec())
            }
            "CreateContainer" => {
                let r: nri::CreateContainerRequest = read(payload)?;
                let container = r.container.unwrap_or_default();
                self.say(&format!("create {} {}", container.name, container.id));
                if self.words.iter().any(|w| w == "slow") {
                    std::thread::sleep(Duration::from_millis(300));
                }
                if self.word("refuse") == Some(&container.name) {
                    return Err(format!("{} is not welcome", container.name));
                }
                let adjust = Some(self.adjustment());
                Ok(nri::CreateContainerResponse { adjust, ..Default::default() }.encode_to_vec())
            }
            "ValidateContainerAdjustment" => {
                let r: nri::ValidateContainerAdjustmentRequest = read(payload)?;
                let owners = r.owners.unwrap_or_default().owners.into_values().next().unwrap_or_default();
                let owner = owners.compound.get(&(nri::Field::Env as i32)).and_then(|o| o.owners.get("REJECTED"));
                let reason = owner.map_or_else(String::new, |o| format!("{o} must not set REJECTED"));
                Ok(nri::ValidateContainerAdjustmentResponse { reject: owner.is_some(), reason }.encode_to_vec())
            }
            "PostStartContainer" => {
                let r: nri::PostStartContainerRequest = read(payload)?;
                let container = r.container.unwrap_or_default();
                self.say(&format!("started {} {}", container.name, container.pid));
                if let Some(shares) = self.word("update").and_then(|n| n.parse().ok()) {
                    let linux = nri::LinuxContainerUpdate { resources: Some(with_shares(shares)) };
                    let update =
                        nri::ContainerUpdate { container_id: container.id, linux: Some(linux), ignore_failure: false };
                    let request = nri::UpdateContainersRequest { update: vec![update], evict: Vec::new() };
                    self.call("UpdateContainers", &request).map_err(|e| e.to_string())?;
                }
                Ok(Vec::new())
            }
            "StartContainer" if self.words.iter().any(|w| w == "evict") => {
                let r: nri::StartContainerRequest = read(payload)?;
                let id = r.container.unwrap_or_default().id;
                let linux = nri::LinuxContainerUpdate { resources: Some(with_shares(555)) };
                let update =
                    nri::ContainerUpdate { container_id: id.clone(), linux: Some(linux), ignore_failure: false };
                let evict = vec![nri::ContainerEviction { container_id: id, reason: "not wanted".to_owned() }];
                self.call("UpdateContainers", &nri::UpdateContainersRequest { update: vec![update], evict })
                    .and_then(|()| self.wait())
                    .map_err(|e| e.to_string())?;
                self.say("StartContainer goes on");
                Ok(Vec::new())
            }
            "StateChange" => Ok(Vec::new()),
            _ => {
                // The first two fields of every other request are the pod and, for containers, the container.
                let r: nri::StopContainerRequest = read(payload)?;
                match (r.container, r.pod) {
                    (Some(c), _) if method.contains("Container") => {
                        self.say(&format!("{method} {} {}", c.name, c.exit_code))
                    }
                    (_, Some(p)) => self.say(&format!("{method} {}", p.name)),
                    _ => self.say(method),
                }
                Ok(Vec::new())
            }
        }
    }

    /// Reads one piece of whatever comes next.
    fn fill(&mut self) -> std::io::Result<()> {
        let connection = u32::from_be_bytes(take(&mut self.stream)?);
        let mut bytes = vec![0; u32::from_be_bytes(take(&mut self.stream)?) as usize];
        self.stream.read_exact(&mut bytes)?;
        self.buffers[usize::from(connection != 1)].extend(bytes);
        Ok(())
    }

    /// The next whole message among requests or answers, with its stream.
    fn message(&mut self, of: usize) -> Option<(u32, Vec<u8>)> {
        let buffer = &mut self.buffers[of];
        let number = |at: usize| Some(u32::from_be_bytes(buffer.get(at..at + 4)?.try_into().ok()?));
        let (length, stream) = (number(0)? as usize, number(4)?);
        let body = buffer.get(10..10 + length)?.to_vec();
        buffer.drain(..10 + length);
        Some((stream, body))
    }

    /// Waits for the answer to a request of its own, whatever else comes meanwhile.
    fn wait(&mut self) -> std::io::Result<()> {
        loop {
            if let Some((_, body)) = self.message(1) {
                let answer = ttrpc::Response::decode(&*body).unwrap_or_default();
                self.say(&format!("answered {}", answer.status.unwrap_or_default().code));
                return Ok(());
            }
            self.fill()?;
        }
    }

    fn serve(&mut self) -> std::io::Result<()> {
        loop {
            self.fill()?;
            if !self.buffers[1].is_empty() {
                self.wait()?;
            }
            while let Some((stream, body)) = self.message(0) {
                let request = ttrpc::Request::decode(&*body).unwrap_or_default();
                let response = match self.answer(&request.method, &request.payload) {
                    Ok(payload) => ttrpc::Response { status: None, payload },
                    Err(message) => {
                        ttrpc::Response { status: Some(ttrpc::Status { code: 2, message }), payload: Vec::new() }
                    }
                };
                self.send(1, stream, 2, &response.encode_to_vec())?;
            }
        }
    }
}

fn with_shares(shares: u64) -> nri::LinuxResources {
    let cpu = nri::LinuxCpu { shares: Some(nri::OptionalUInt64 { value: shares }), ..Default::default() };
    nri::LinuxResources { cpu: Some(cpu), ..Default::default() }
}

fn main() -> std::io::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let mut plugin = match words.as_slice() {
        [socket, index, name, log, words @ ..] => Plugin {
            stream: UnixStream::connect(socket)?,
            name: format!("{index}-{name}"),
            log: log.clone(),
            words: words.to_vec(),
            next: 1,
            buffers: Default::default(),
        },
        _ => {
            let var = |name: &str| std::env::var(name).unwrap_or_default();
            let stream = UnixStream::from(gantry_sys::fd::inherited(3)?);
            let name = format!("{}-{}", var("NRI_PLUGIN_IDX"), var("NRI_PLUGIN_NAME"));
            Plugin {
                stream,
                name,
                log: "/dev/null".to_owned(),
                words: Vec::new(),
                next: 1,
                buffers: Default::default(),
            }
        }
    };
    let (index, name) = plugin.name.split_once('-').unwrap_or(("00", "none"));
    let request = nri::RegisterPluginRequest {
        plugin_idx: index.to_owned(),
        plugin_name: name.to_owned(),
        nri_version: "0.12.0".to_owned(),
    };
    plugin.call("RegisterPlugin", &request)?;
    match plugin.serve() {
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(()),
        other => other,
    }
}
