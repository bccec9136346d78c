//! The kubelet: pods from their sources to the Container Runtime Interface and back.
