//! Who has which address, on disk: the reference host-local's data folder, so that either can take over from the other.
//!
//! `DIR/NETWORK/<address>` holds `<container>\r\n<device>`; `last_reserved_ip.<set>` where the search goes on; `lock` is
//! locked while anything changes. On top of that, `.owners/<container>.<device>` lists an owner's addresses, so that
//! neither ADD nor DEL reads one file per pod of the node. The owner's file is written before its addresses and removed
//! after them: a crash in between leaves nothing that DEL would not find.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use gantry_files::remove;

const OWNERS: &str = ".owners";

/// The folder of one network, locked.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    _lock: File,
}

/// Whose an address is: container and device.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Owner {
    /// Container id.
    pub container: String,
    /// Device in the container.
    pub ifname: String,
}

impl Owner {
    fn text(&self) -> String {
        format!("{}\r\n{}", self.container, self.ifname)
    }

    /// Older versions wrote the container alone.
    fn wrote(&self, content: &str) -> bool {
        let content = content.trim();
        content == self.text() || content == self.container
    }

    /// Of a file that its list names: it is its own, or a crash left it empty.
    fn may_take(&self, content: &str) -> bool {
        content.is_empty() || self.wrote(content)
    }

    fn read(content: &str) -> Option<Self> {
        let mut lines = content.trim().lines();
        let container = lines.next().filter(|c| !c.is_empty())?.trim().to_owned();
        Some(Self { container, ifname: lines.next().unwrap_or_default().trim().to_owned() })
    }
}

impl Store {
    /// Opens (makes) and locks the folder of a network; waits while another process has it.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(data: &Path, network: &str) -> io::Result<Self> {
        let folder = data.join(network);
        let open = || File::options().write(true).create(true).truncate(false).open(folder.join("lock"));
        let lock = match open() {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                fs::create_dir_all(folder.join(OWNERS))?;
                open()?
            }
            other => other?,
        };
        lock.lock()?;
        Ok(Self { folder, _lock: lock })
    }

    fn file(&self, ip: IpAddr) -> PathBuf {
        self.folder.join(ip.to_string())
    }

    fn owner_file(&self, owner: &Owner) -> PathBuf {
        self.folder.join(OWNERS).join(format!("{}.{}", owner.container, owner.ifname))
    }

    /// Who has an address. A file without an owner is what a crash of the reference plugin leaves: the address is free.
    ///
    /// # Errors
    /// The file system's.
    pub fn owner_of(&self, ip: IpAddr) -> io::Result<Option<Owner>> {
        match fs::read_to_string(self.file(ip)) {
            Ok(content) => Ok(Owner::read(&content)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Where the search of a range set goes on.
    pub fn last(&self, set: usize) -> Option<IpAddr> {
        fs::read_to_string(self.folder.join(format!("last_reserved_ip.{set}"))).ok()?.trim().parse().ok()
    }

    /// The addresses of an owner, by its own file, or by looking at every address (`thorough`, for folders that the
    /// reference plugin wrote).
    ///
    /// # Errors
    /// The file system's.
    pub fn of_owner(&self, owner: &Owner, thorough: bool) -> io::Result<Vec<IpAddr>> {
        match fs::read_to_string(self.owner_file(owner)) {
            // A crash of the machine may have emptied it; then it tells nothing.
            Ok(content) if !content.trim().is_empty() => {
                let mut found = Vec::new();
                for ip in content.lines().filter_map(|l| l.parse().ok()) {
                    if fs::read_to_string(self.file(ip)).is_ok_and(|c| owner.may_take(&c)) {
                        found.push(ip);
                    }
                }
                Ok(found)
            }
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
            _ if thorough => {
                let all = self.all()?.into_iter();
                Ok(all.filter(|(_, content)| owner.wrote(content)).map(|(ip, _)| ip).collect())
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Gives addresses to an owner, each with the number of its range set. They were found free under this lock.
    ///
    /// # Errors
    /// The file system's; nothing is kept then.
    pub fn take(&self, owner: &Owner, ips: &[(usize, IpAddr)]) -> io::Result<()> {
        let taken = self.try_take(owner, ips);
        if taken.is_err() {
            let addresses: Vec<_> = ips.iter().map(|(_, ip)| *ip).collect();
            let _ = self.release(owner, &addresses);
        }
        taken
    }

    fn try_take(&self, owner: &Owner, ips: &[(usize, IpAddr)]) -> io::Result<()> {
        let list: String = ips.iter().map(|(_, ip)| format!("{ip}\n")).collect();
        match fs::write(self.owner_file(owner), &list) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                fs::create_dir_all(self.folder.join(OWNERS))?;
                fs::write(self.owner_file(owner), &list)?;
            }
            other => other?,
        }
        for (set, ip) in ips {
            // A crash leaves it empty: then the address is free, as nobody has been told of it.
            fs::write(self.file(*ip), owner.text())?;
            // Where it is wrong the search begins elsewhere, no more.
            overwrite(&self.folder.join(format!("last_reserved_ip.{set}")), &ip.to_string())?;
        }
        Ok(())
    }

    /// Takes addresses from their owner and forgets it.
    ///
    /// # Errors
    /// The file system's; not there is fine.
    pub fn release(&self, owner: &Owner, ips: &[IpAddr]) -> io::Result<()> {
        for ip in ips {
            if fs::read_to_string(self.file(*ip)).is_ok_and(|c| owner.may_take(&c)) {
                remove(&self.file(*ip))?;
            }
        }
        remove(&self.owner_file(owner))
    }

    /// Frees everything that is not of one of these owners. Returns what was freed.
    ///
    /// # Errors
    /// The file system's.
    pub fn keep_only(&self, valid: &HashSet<Owner>) -> io::Result<Vec<IpAddr>> {
        let mut freed = Vec::new();
        for (ip, content) in self.all()? {
            let keep = Owner::read(&content).is_some_and(|o| {
                valid.contains(&o) || (o.ifname.is_empty() && valid.iter().any(|v| v.container == o.container))
            });
            if !keep {
                remove(&self.file(ip))?;
                freed.push(ip);
            }
        }
        let names: HashSet<_> = valid.iter().map(|o| format!("{}.{}", o.container, o.ifname)).collect();
        for entry in fs::read_dir(self.folder.join(OWNERS)).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_none_or(|n| !names.contains(n)) {
                remove(&entry.path())?;
            }
        }
        Ok(freed)
    }

    /// Every address with its file's content.
    fn all(&self) -> io::Result<Vec<(IpAddr, String)>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if let Some(ip) = entry.file_name().to_str().and_then(|n| n.parse().ok()) {
                all.push((ip, fs::read_to_string(entry.path()).unwrap_or_default()));
            }
        }
        Ok(all)
    }
}

/// Overwrites a file. It is not cut off first: some file systems write one that was to disk when it is closed.
fn overwrite(path: &Path, content: &str) -> io::Result<()> {
    let mut file = File::options().write(true).create(true).truncate(false).open(path)?;
    file.write_all(content.as_bytes())?;
    let length = content.len() as u64;
    if file.metadata()?.len() > length { file.set_len(length) } else { Ok(()) }
}
