//! gantry-cri: the Container Runtime Interface daemon.
