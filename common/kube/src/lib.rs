//! Single Kubernetes ideas that several programs share: quantities, selectors, certificates.
