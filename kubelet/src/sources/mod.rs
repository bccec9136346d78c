//! Where pods come from; all sources speak one language.

pub(crate) mod api;
pub(crate) mod manifest;
pub(crate) mod mirror;
pub(crate) mod node;
mod references;
pub(crate) mod static_pods;
pub(crate) mod url;

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use crate::pod;

/// What a source has to say.
#[derive(Clone, Debug)]
pub(crate) enum Update {
    /// All pods of the source; others that it named before are gone.
    All(Source, Vec<Arc<Pod>>),
    /// A pod is new or has changed.
    Set(Arc<Pod>),
    /// A pod is gone.
    Gone(Arc<Pod>),
}

/// The sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    /// The manifest folder.
    File,
    /// A manifest on a web server.
    Url,
    /// The apiserver.
    Api,
}

impl Source {
    /// Whether the pod is from here, by its annotation.
    pub(crate) fn has(self, pod: &Pod) -> bool {
        match self {
            Self::File => pod::annotation(pod, pod::SOURCE) == Some("file"),
            Self::Url => pod::annotation(pod, pod::SOURCE) == Some("http"),
            Self::Api => !pod::is_static(pod),
        }
    }
}
