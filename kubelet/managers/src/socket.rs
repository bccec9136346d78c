//! Unix sockets that the kubelet serves gRPC on.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;

/// Removes sockets from a folder; everything else stays.
pub(crate) fn remove_all(folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_socket() {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Listens on a socket that only root can reach, in place of one that an earlier kubelet left.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    gantry_files::remove(path)?;
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves in a task of its own until `stop`.
pub(crate) fn serve(listener: UnixListener, router: tonic::transport::server::Router, stop: CancellationToken) {
    tokio::spawn(async move {
        let incoming = UnixListenerStream::new(listener);
        if let Err(e) = router.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await {
            tracing::error!(error = %e, "socket not served any more");
        }
    });
}
