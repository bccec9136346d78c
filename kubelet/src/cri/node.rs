//! Calls about what the node has: file systems, images and limits.

use proto::cri::{
    ImageFsInfoRequest, ImageFsInfoResponse, LinuxContainerResources, RemoveImageRequest,
    UpdateContainerResourcesRequest,
};

use super::{Cri, CriError, bounded, gone_is_fine, image_spec};

impl Cri {
    /// Where images and writable layers are, and what they take.
    pub(crate) async fn file_systems(&self) -> Result<ImageFsInfoResponse, CriError> {
        let mut c = self.images.clone();
        bounded("ImageFsInfo", self.limit, c.image_fs_info(ImageFsInfoRequest {})).await
    }

    /// Removes an image by id or name; one that is gone is fine.
    pub(crate) async fn remove_image(&self, image: &str) -> Result<(), CriError> {
        let mut c = self.images.clone();
        let request = RemoveImageRequest { image: Some(image_spec(image)) };
        gone_is_fine(bounded("RemoveImage", self.limit, c.remove_image(request)).await)
    }

    /// Changes limits of a container that exists.
    pub(crate) async fn update_resources(&self, id: &str, linux: LinuxContainerResources) -> Result<(), CriError> {
        let mut c = self.runtime.clone();
        let request =
            UpdateContainerResourcesRequest { container_id: id.to_owned(), linux: Some(linux), ..Default::default() };
        bounded("UpdateContainerResources", self.limit, c.update_container_resources(request)).await.map(drop)
    }
}
