//! The driver's registration socket, which a kubelet finds.

use std::path::Path;

use proto::registration::registration_server::{Registration, RegistrationServer};
use proto::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::{Driver, listen};

struct Registrar(Driver);

pub(crate) async fn serve(driver: &Driver, registry: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let listener = listen(&registry.join(format!("{}-reg.sock", driver.name)))?;
    Server::builder()
        .add_service(RegistrationServer::new(Registrar(driver.clone())))
        .serve_with_incoming(UnixListenerStream::new(listener))
        .await?;
    Ok(())
}

#[tonic::async_trait]
impl Registration for Registrar {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".into(),
            name: self.0.name.clone(),
            endpoint: self.0.socket().display().to_string(),
            supported_versions: vec!["1.0.0".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        self.0.enter("Registered", &[&status.plugin_registered.to_string(), &status.error])?;
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
