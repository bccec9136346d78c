//! A CSI driver for tests. Its volumes are folders below its own, which it bind-mounts where the kubelet wants them, so a
//! test sees real mounts, real files and a real socket. It writes every call into a journal, and fails on demand.

mod node;
mod registration;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proto::csi::identity_server::{Identity, IdentityServer};
use proto::csi::node_server::NodeServer;
use proto::csi::*;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// The driver's folder on disk: `volumes/<id>` are its volumes, `calls` is its journal, `csi.sock` its socket. A file
/// `fail-<Call>` makes that call fail with the file's text.
#[derive(Clone, Debug)]
pub struct Driver {
    /// Its name.
    pub name: String,
    /// Its folder.
    pub folder: Arc<Path>,
}

impl Driver {
    /// A driver in a folder, which is made.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn new(name: &str, folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder.join("volumes"))?;
        Ok(Self { name: name.to_owned(), folder: folder.into() })
    }

    /// Where it listens for the kubelet.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("csi.sock")
    }

    /// The files of a volume.
    pub fn volume(&self, id: &str) -> PathBuf {
        self.folder.join("volumes").join(id)
    }

    /// The calls so far: the call's name, the volume's id and what is worth knowing, by spaces.
    pub fn calls(&self) -> Vec<String> {
        fs::read_to_string(self.folder.join("calls")).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// Makes a call fail from now on, or no longer.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn fail(&self, call: &str, text: Option<&str>) -> io::Result<()> {
        let file = self.folder.join(format!("fail-{call}"));
        match text {
            Some(text) => fs::write(file, text),
            None => fs::remove_file(file),
        }
    }

    /// Makes a volume ill, in these words, or well again; without a call nothing is said of its health.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn sicken(&self, id: &str, text: &str) -> io::Result<()> {
        fs::write(self.folder.join(format!("condition-{id}")), text)
    }

    /// Notes a call, and fails if it shall.
    fn enter(&self, call: &str, words: &[&str]) -> Result<(), Status> {
        let journal = || -> io::Result<()> {
            let mut file = fs::OpenOptions::new().append(true).create(true).open(self.folder.join("calls"))?;
            file.write_all(format!("{call} {}\n", words.join(" ")).as_bytes())
        };
        journal().map_err(|e| Status::internal(format!("write the journal: {e}")))?;
        match fs::read_to_string(self.folder.join(format!("fail-{call}"))) {
            Ok(text) => Err(Status::internal(text)),
            Err(_) => Ok(()),
        }
    }

    /// Serves the driver's own socket until the task is dropped.
    ///
    /// # Errors
    /// It cannot listen.
    pub async fn serve(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let listener = listen(&self.socket())?;
        Server::builder()
            .add_service(NodeServer::new(self.clone()))
            .add_service(IdentityServer::new(self.clone()))
            .serve_with_incoming(UnixListenerStream::new(listener))
            .await?;
        Ok(())
    }

    /// Serves the driver, and makes it known by a socket in a kubelet's folder of plugins.
    ///
    /// # Errors
    /// It cannot listen.
    pub async fn serve_registered(&self, registry: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        tokio::try_join!(self.serve(), registration::serve(self, registry)).map(drop)
    }
}

/// A socket of a driver that was killed is in the way of the next.
fn listen(socket: &Path) -> io::Result<UnixListener> {
    let _ = fs::remove_file(socket);
    UnixListener::bind(socket)
}

#[tonic::async_trait]
impl Identity for Driver {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        let (name, vendor_version) = (self.name.clone(), "1".to_owned());
        Ok(Response::new(GetPluginInfoResponse { name, vendor_version, ..Default::default() }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        Ok(Response::new(GetPluginCapabilitiesResponse::default()))
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        Ok(Response::new(ProbeResponse { ready: Some(true) }))
    }
}

/// The program: `csi-driver NAME FOLDER REGISTRY`.
///
/// # Errors
/// It cannot listen, or the words are not three.
pub fn main(words: &[String]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let [name, folder, registry] = words else { return Err("usage: csi-driver NAME FOLDER REGISTRY".into()) };
    let driver = Driver::new(name, Path::new(folder))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(driver.serve_registered(Path::new(registry)))
}
