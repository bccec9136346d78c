//! Volumes, environment and files that a pod's containers see.
