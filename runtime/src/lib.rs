//! gantry-run: an OCI runtime with runc's command line.
