//! Where pods come from; all sources speak one language.

pub(crate) mod api;
pub(crate) mod manifest;
pub(crate) mod mirror;
pub(crate) mod node;
pub(crate) mod static_pods;

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

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
    /// The apiserver.
    Api,
}
