//! Images for the tests, made from what is on the machine: the demo program, and Debian's busybox.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::command::run;

/// The reference of the demo image that nodes under test hold.
pub const DEMO: &str = "gantry.local/demo:latest";
/// The reference of the busybox image that nodes under test hold.
pub const BUSYBOX: &str = "gantry.local/busybox:latest";

/// An image archive and the same image unpacked as an OCI layout.
pub struct Image {
    /// The archive's path.
    pub archive: PathBuf,
    /// The layout's folder.
    pub layout: PathBuf,
}

/// Packs the demo image below `folder`.
///
/// # Errors
/// `gantry-cri image build` fails.
pub fn demo(programs: &Path, folder: &Path) -> Result<Image> {
    let rootfs = folder.join("demo-rootfs");
    for dir in ["bin", "tmp", "srv"] {
        fs::create_dir_all(rootfs.join(dir))?;
    }
    fs::set_permissions(rootfs.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::copy(programs.join("gantry-demo"), rootfs.join("bin/gantry-demo"))?;
    build(programs, folder, &rootfs, DEMO, &["--entrypoint", "/bin/gantry-demo", "--env", "PATH=/bin"])
}

/// Packs a busybox image below `folder`: all applets, passwd and group.
///
/// # Errors
/// busybox-static is not installed, or `gantry-cri image build` fails.
pub fn busybox(programs: &Path, folder: &Path) -> Result<Image> {
    let rootfs = folder.join("busybox-rootfs");
    for dir in ["bin", "etc", "tmp", "root", "home", "var", "usr/bin"] {
        fs::create_dir_all(rootfs.join(dir))?;
    }
    fs::set_permissions(rootfs.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::copy("/bin/busybox", rootfs.join("bin/busybox")).context("copy /bin/busybox (package busybox-static)")?;
    let applets = run(Command::new("/bin/busybox").arg("--list"), "", Duration::from_secs(5))?.ok()?;
    for applet in applets.lines().filter(|a| *a != "busybox") {
        symlink("busybox", rootfs.join("bin").join(applet))?;
    }
    fs::write(rootfs.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home:/bin/sh\n")?;
    fs::write(rootfs.join("etc/group"), "root:x:0:\nuser:x:1000:\nextra:x:2000:user\n")?;
    build(programs, folder, &rootfs, BUSYBOX, &["--cmd", "/bin/sh", "--env", "PATH=/bin:/usr/bin"])
}

/// Packs an image below `folder` whose one file, 300 KB that do not compress, is like no other image's.
///
/// # Errors
/// `gantry-cri image build` fails.
pub fn noise(programs: &Path, folder: &Path) -> Result<Image> {
    let rootfs = folder.join("noise-rootfs");
    fs::create_dir_all(&rootfs)?;
    let mut bytes = vec![0; 300_000];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    fs::write(rootfs.join("noise"), bytes)?;
    build(programs, folder, &rootfs, "gantry.local/noise:latest", &["--cmd", "/noise"])
}

/// Packs an image whose program holds a pod's namespaces, for runtimes that need one.
///
/// # Errors
/// `gantry-cri image build` fails.
pub fn pause(programs: &Path, folder: &Path) -> Result<Image> {
    let rootfs = folder.join("pause-rootfs");
    fs::create_dir_all(rootfs.join("bin"))?;
    fs::copy(programs.join("gantry-demo"), rootfs.join("bin/pause"))?;
    let words = ["--entrypoint", "/bin/pause", "--cmd", "sleep", "--cmd", "1000000000"];
    build(programs, folder, &rootfs, "gantry.local/pause:1", &words)
}

fn build(programs: &Path, folder: &Path, rootfs: &Path, name: &str, words: &[&str]) -> Result<Image> {
    let short = name.rsplit('/').next().unwrap_or(name).split(':').next().unwrap_or(name);
    let archive = folder.join(format!("{short}.tar"));
    let mut command = Command::new(programs.join("gantry-cri"));
    command.args(["image", "build", "--name", name]).arg(rootfs).arg("--output").arg(&archive).args(words);
    run(&mut command, "", Duration::from_secs(60))?.ok().with_context(|| format!("build {name}"))?;
    let layout = folder.join(format!("{short}-layout"));
    fs::create_dir_all(&layout)?;
    let mut tar = Command::new("tar");
    tar.arg("-xf").arg(&archive).arg("-C").arg(&layout);
    run(&mut tar, "", Duration::from_secs(60))?.ok()?;
    Ok(Image { archive, layout })
}
