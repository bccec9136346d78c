//! Wire formats of the standards that Gantry's programs speak.
//!
//! Each module is generated from one .proto file in `proto/`; this crate knows nothing else.

/// The Container Runtime Interface, version 1, as of Kubernetes 1.36 (package `runtime.v1`).
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod cri {
    tonic::include_proto!("runtime.v1");
}

/// The Container Storage Interface, version 1 (package `csi.v1`): a driver's identity and its node plugin.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod csi {
    tonic::include_proto!("csi.v1");
}

/// The registration of a kubelet's plugins, version 1 (package `pluginregistration`).
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod registration {
    tonic::include_proto!("pluginregistration");
}

/// Device plugins, version 1beta1 (package `v1beta1`): how a program offers devices of the node to pods.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod deviceplugin {
    tonic::include_proto!("v1beta1");
}

/// Pod resources, version 1 (package `v1`): what the kubelet tells of devices, CPUs and memory of pods.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod podresources {
    tonic::include_proto!("v1");
}

/// NRI, the node resource interface, plugin API 0.12 (package `nri.pkg.api.v1alpha1`): the messages, which go over ttrpc.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod nri {
    tonic::include_proto!("nri.pkg.api.v1alpha1");
}

/// The envelopes of ttrpc.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod ttrpc {
    tonic::include_proto!("ttrpc");
}
