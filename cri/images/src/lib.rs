//! Images: registries, content store, unpacking, snapshots.
