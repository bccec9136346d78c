//! ImageService.

use cri_images::Auth;
use proto::cri;
use proto::cri::image_service_server::ImageService;
use tonic::{Request, Response, Status};

use super::{Service, Streaming, once};
use crate::error::Error;

fn encode(image: cri_images::Image) -> cri::Image {
    let user = image.config.user.split(':').next().unwrap_or_default();
    let uid = user.parse().ok().map(|value| cri::Int64Value { value });
    let username = if uid.is_none() { user.to_owned() } else { String::new() };
    cri::Image {
        spec: Some(cri::ImageSpec { image: image.id.clone(), ..Default::default() }),
        id: image.id,
        repo_tags: image.repo_tags,
        repo_digests: image.repo_digests,
        size: image.size,
        uid,
        username,
        pinned: image.pinned,
    }
}

impl Service {
    fn images(&self, filter: Option<cri::ImageFilter>) -> Vec<cri::Image> {
        let wanted = filter.and_then(|f| f.image).map(|i| i.image).filter(|i| !i.is_empty());
        let images = match wanted {
            Some(name) => self.daemon.images.get(&name).into_iter().collect(),
            None => self.daemon.images.list(),
        };
        images.into_iter().map(encode).collect()
    }
}

#[tonic::async_trait]
impl ImageService for Service {
    type StreamImagesStream = Streaming<cri::StreamImagesResponse>;

    async fn list_images(
        &self,
        r: Request<cri::ListImagesRequest>,
    ) -> Result<Response<cri::ListImagesResponse>, Status> {
        Ok(Response::new(cri::ListImagesResponse { images: self.images(r.into_inner().filter) }))
    }

    async fn stream_images(
        &self,
        r: Request<cri::StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        Ok(once(cri::StreamImagesResponse { images: self.images(r.into_inner().filter) }))
    }

    async fn image_status(
        &self,
        r: Request<cri::ImageStatusRequest>,
    ) -> Result<Response<cri::ImageStatusResponse>, Status> {
        let r = r.into_inner();
        let found = self.daemon.images.get(&r.image.unwrap_or_default().image);
        let mut info = std::collections::HashMap::new();
        if let (true, Some(image)) = (r.verbose, &found) {
            info.insert(
                "info".to_owned(),
                serde_json::json!({"config": image.config, "diffIds": image.diff_ids}).to_string(),
            );
        }
        Ok(Response::new(cri::ImageStatusResponse { image: found.map(encode), info }))
    }

    async fn pull_image(&self, r: Request<cri::PullImageRequest>) -> Result<Response<cri::PullImageResponse>, Status> {
        let r = r.into_inner();
        let auth = r.auth.map(|a| Auth {
            username: a.username,
            password: a.password,
            auth: a.auth,
            server_address: a.server_address,
            identity_token: a.identity_token,
            registry_token: a.registry_token,
        });
        let name = r.image.unwrap_or_default().image;
        let pulled = crate::pulls::pull(&self.daemon, name, auth).await;
        self.daemon.worked.notify_one();
        Ok(Response::new(cri::PullImageResponse { image_ref: pulled? }))
    }

    async fn remove_image(
        &self,
        r: Request<cri::RemoveImageRequest>,
    ) -> Result<Response<cri::RemoveImageResponse>, Status> {
        let name = r.into_inner().image.unwrap_or_default().image;
        self.daemon.images.remove(&name).await.map_err(Error::from)?;
        Ok(Response::new(cri::RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _: Request<cri::ImageFsInfoRequest>,
    ) -> Result<Response<cri::ImageFsInfoResponse>, Status> {
        let usage = self.daemon.images.fs_usage();
        let usage = cri::FilesystemUsage {
            timestamp: usage.timestamp,
            fs_id: Some(cri::FilesystemIdentifier { mountpoint: usage.mountpoint.display().to_string() }),
            used_bytes: Some(cri::UInt64Value { value: usage.bytes }),
            inodes_used: Some(cri::UInt64Value { value: usage.inodes }),
        };
        let response =
            cri::ImageFsInfoResponse { image_filesystems: vec![usage.clone()], container_filesystems: vec![usage] };
        Ok(Response::new(response))
    }
}
