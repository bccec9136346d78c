//! gantry-monitor: the parent of one pod's containers, and the protocol that gantry-cri speaks with it.
