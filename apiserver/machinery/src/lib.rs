//! API machinery as pure functions: resources, defaults, validation, patches, OpenAPI, tables.
