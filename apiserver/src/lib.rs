//! gantry-apiserver: the Kubernetes API over an embedded store.
