//! Logging, metrics, readiness notification and build information for the daemons.
