//! What stands in the tables, once more on disk: `nft flush ruleset`, which a restart of the host's firewall does, takes the
//! elements of all pods with it, and nobody would tell them again. Kept below /run by the namespace's cookie, which no other
//! namespace gets until the next boot, when both are gone.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use gantry_files::{Access, Outlives};
use gantry_net::nft::Element;
use serde::{Deserialize, Serialize};

use super::layout::{GROUPS, Group};
use super::{Chain, Part, Wanted, group_of};

const FOLDER: &str = "/run/gantry/cni";
const PARTS: [(Part, &str); 4] = [
    (Part::Masquerade, "masquerade"),
    (Part::Ports, "ports"),
    (Part::Firewall, "firewall"),
    (Part::Spoofing, "spoofing"),
];

#[derive(Serialize, Deserialize)]
struct Kept {
    owner: String,
    admin: Option<String>,
    elements: Vec<KeptElement>,
    /// There were rules with conditions, too.
    #[serde(default)]
    conditional: bool,
    #[serde(default)]
    place: Option<Place>,
}

/// Where the container's network namespace was found.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Place {
    path: PathBuf,
    /// In which mount namespace.
    mounts: u64,
}

impl Place {
    /// Of a path that stays for as long as the namespace: below /proc it ends with one of its processes.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let mounts = own_mounts().filter(|_| !path.starts_with("/proc"))?;
        Some(Self { path: path.to_owned(), mounts })
    }

    /// The runtime has removed it, as only this mount namespace can tell.
    fn vanished(&self) -> bool {
        let gone = fs::symlink_metadata(&self.path).is_err_and(|e| e.kind() == ErrorKind::NotFound);
        gone && own_mounts() == Some(self.mounts)
    }
}

fn own_mounts() -> Option<u64> {
    fs::metadata("/proc/self/ns/mnt").map(|m| m.ino()).ok()
}

impl Kept {
    /// Adds the elements to what is wanted, each with its owner.
    fn add_to(self, all: &mut Wanted) {
        for e in self.elements {
            let Some((group, set)) = place(&e.set) else { continue };
            if let Some(chain) = e.jump.as_deref().and_then(Chain::parse) {
                all.chains.push((group_of(&chain), chain));
            }
            let element =
                Element { key: e.key, key_end: None, value: e.value, jump: e.jump, comment: self.owner.clone() };
            all.elements.push((group, set, element));
        }
    }
}

#[derive(Serialize, Deserialize)]
struct KeptElement {
    set: String,
    key: Vec<u8>,
    value: Option<Vec<u8>>,
    jump: Option<String>,
}

/// Where this network namespace's are.
pub(super) fn folder() -> Option<PathBuf> {
    let cookie = gantry_sys::namespaces::network_cookie().ok()?;
    Some(Path::new(FOLDER).join(cookie.to_string()))
}

/// The records of this network namespace; none where the kernel does not tell its cookie.
pub(super) struct Records {
    folder: PathBuf,
}

impl Records {
    pub(super) fn here() -> Option<Self> {
        folder().map(|folder| Self { folder })
    }

    fn file(&self, part: &str, owner: &str) -> PathBuf {
        let hash =
            owner.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        self.folder.join(part).join(format!("{hash:016x}"))
    }

    /// Remembers what an owner gets. Rules with conditions are not remembered.
    pub(super) fn keep(&self, owner: &str, place: Option<&Place>, wanted: &Wanted) -> io::Result<()> {
        for (part, name) in PARTS {
            let of = wanted.elements.iter().filter(|(_, set, _)| part.has(set));
            let elements: Vec<_> = of
                .map(|(_, set, e)| KeptElement {
                    set: (*set).to_owned(),
                    key: e.key.clone(),
                    value: e.value.clone(),
                    jump: e.jump.clone(),
                })
                .collect();
            if elements.is_empty() {
                continue;
            }
            let conditional = part == Part::Ports && !wanted.rules.is_empty();
            let (admin, place) = (wanted.admin.clone(), place.cloned());
            let kept = Kept { owner: owner.to_owned(), admin, elements, conditional, place };
            let path = self.file(name, owner);
            let text = serde_json::to_vec(&kept)?;
            let write = || gantry_files::replace(&path, &text, Access::Umask, Outlives::Program);
            match write() {
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    fs::create_dir_all(self.folder.join(name))?;
                    write()?;
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// Whether anything is remembered of an owner.
    pub(super) fn has(&self, part: Part, owner: &str) -> bool {
        PARTS.iter().any(|(p, name)| *p == part && self.file(name, owner).exists())
    }

    /// Owners whose containers ended without a DEL: their namespaces are gone.
    pub(super) fn vanished(&self) -> Vec<String> {
        let all = PARTS.iter().flat_map(|(_, name)| self.read(name)).filter_map(|(_, kept)| kept);
        all.filter(|kept| kept.place.as_ref().is_some_and(Place::vanished)).map(|kept| kept.owner).collect()
    }

    /// What one owner had; none when it is not remembered whole.
    pub(super) fn of(&self, part: Part, owner: &str) -> Option<Wanted> {
        let (_, name) = PARTS.iter().find(|(p, _)| *p == part)?;
        let kept: Kept = serde_json::from_slice(&fs::read(self.file(name, owner)).ok()?).ok()?;
        let mut wanted = Wanted::default();
        (kept.owner == owner && !kept.conditional).then(|| kept.add_to(&mut wanted))?;
        Some(wanted)
    }

    /// Forgets what one owner had.
    pub(super) fn forget(&self, part: Part, owner: &str) {
        for (_, name) in PARTS.iter().filter(|(p, _)| *p == part) {
            if fs::remove_file(self.file(name, owner)).is_ok() {
                self.tidy(name);
            }
        }
    }

    /// Forgets owners that are not to be kept.
    pub(super) fn retain(&self, part: Part, keep: impl Fn(&str) -> bool) {
        for (_, name) in PARTS.iter().filter(|(p, _)| *p == part) {
            for (path, kept) in self.read(name) {
                if kept.is_none_or(|k| !keep(&k.owner)) {
                    let _ = fs::remove_file(path);
                }
            }
            self.tidy(name);
        }
    }

    /// The folders go with their last file.
    fn tidy(&self, part: &str) {
        if fs::remove_dir(self.folder.join(part)).is_ok() {
            let _ = fs::remove_dir(&self.folder);
        }
    }

    fn read(&self, part: &str) -> Vec<(PathBuf, Option<Kept>)> {
        let files = fs::read_dir(self.folder.join(part)).into_iter().flatten().flatten().map(|e| e.path());
        files
            .map(|path| {
                let kept = fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
                (path, kept)
            })
            .collect()
    }

    /// Everything that is remembered, each element with its owner.
    pub(super) fn all(&self) -> Wanted {
        let mut all = Wanted::default();
        for (_, name) in PARTS {
            for mut kept in self.read(name).into_iter().filter_map(|(_, kept)| kept) {
                all.admin = all.admin.or(kept.admin.take());
                kept.add_to(&mut all);
            }
        }
        all
    }
}

/// A set by its name.
fn place(name: &str) -> Option<(Group, &'static str)> {
    GROUPS.into_iter().find_map(|group| {
        let set = group.sets().into_iter().map(|s| s.name).find(|n| *n == name);
        set.map(|set| (group, set))
    })
}
