//! Whether overlayfs works in the store's folder: it does not on overlayfs itself, on some network and FUSE file systems, and in
//! kernels without it.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat, setxattr};

use super::overlay::{Overlay, detach};
use super::trash::Trash;
use crate::config::Snapshotter;
use crate::error::{Error, Result};
use crate::unpack::tree::{Form, OPAQUE_XATTR};

/// The form of layers and snapshots of a store, told to the operator with the reason.
pub(crate) fn choose(asked: Snapshotter, root: &Path, trash: &Trash) -> Result<Form> {
    let (form, why) = match asked {
        Snapshotter::Overlayfs => (Form::Overlay, "the configuration says so".to_owned()),
        Snapshotter::Native => (Form::Plain, "the configuration says so".to_owned()),
        // Who is not root can mount neither.
        Snapshotter::Auto if !rustix::process::geteuid().is_root() => {
            (Form::Overlay, "it is not tried without root".into())
        }
        Snapshotter::Auto => match try_out(&root.join("probe"), trash)? {
            Ok(()) => (Form::Overlay, "it works in the store's folder".to_owned()),
            Err(e) => (Form::Plain, format!("overlayfs does not work in the store's folder: {e}")),
        },
    };
    let snapshotter = if form == Form::Overlay { "overlayfs" } else { "native" };
    tracing::info!(snapshotter, store = %root.display(), "snapshotter chosen: {why}");
    Ok(form)
}

/// Does once, small, what unpacking and containers do. The inner result is the answer; what a crash left of an earlier try is taken
/// away first.
fn try_out(dir: &Path, trash: &Trash) -> Result<io::Result<()>> {
    let clear = || -> Result<()> {
        while detach(&dir.join("all"))? {}
        trash.take(dir)
    };
    clear()?;
    fs::create_dir(dir).map_err(|e| Error::io("create", dir, e))?;
    let answer = work(dir);
    clear()?;
    trash.empty_soon();
    Ok(answer)
}

fn work(dir: &Path) -> io::Result<()> {
    let named = |what: &'static str| move |e: io::Error| io::Error::new(e.kind(), format!("{what}: {e}"));
    let folder = |name: &str| fs::create_dir(dir.join(name)).map(|()| dir.join(name));
    let (lower, upper, inner, all) = (folder("lower")?, folder("upper")?, folder("work")?, folder("all")?);
    for name in ["kept", "gone"] {
        fs::create_dir(lower.join(name))?;
    }
    let made = mknodat(CWD, lower.join("hidden"), FileType::CharacterDevice, Mode::empty(), 0);
    made.map_err(io::Error::from).map_err(named("make a whiteout"))?;
    let set = setxattr(lower.join("kept"), OPAQUE_XATTR, b"y", XattrFlags::empty());
    set.map_err(io::Error::from).map_err(named("set trusted.overlay.opaque"))?;
    let overlay = Overlay {
        source: "gantry-probe".to_owned(),
        lower: vec![lower],
        upper: Some((upper.clone(), inner)),
        read_only: false,
        label: String::new(),
        users: None,
    };
    overlay.mount(&all).map_err(io::Error::other)?;
    fs::remove_dir(all.join("gone")).map_err(named("remove what a layer has"))?;
    fs::write(all.join("kept/file"), "written").map_err(named("write to a layer's folder"))?;
    let right = !all.join("hidden").exists()
        && !all.join("gone").exists()
        && fs::symlink_metadata(upper.join("gone"))?.file_type().is_char_device()
        && fs::read(upper.join("kept/file"))? == b"written";
    if right { Ok(()) } else { Err(io::Error::other("what is shown is not what the layers hold")) }
}
