//! What a mount's options mean.

use gantry_sys::mount::{self as m, Attributes};

use crate::spec::Mount;

/// What kind of mount to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// The same tree in another place.
    Bind {
        /// With the mounts below it.
        recursive: bool,
    },
    /// The container's own part of the host's cgroup file systems.
    Cgroup,
    /// A new file system of this type.
    New(String),
}

/// Words that change no mount: what they ask for is so anyway, or belongs to a file system as a whole.
const WITHOUT_EFFECT: [&str; 12] = [
    "async",
    "dirsync",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noiversion",
    "nolazytime",
    "nomand",
    "remount",
    "silent",
    "sync",
];

/// All words that options may be, beside those of the file systems.
pub(crate) fn words() -> Vec<String> {
    let plain = ATTRIBUTES.iter().map(|(word, ..)| (*word).to_owned());
    let recursive = ATTRIBUTES.iter().filter(|(word, ..)| *word != "defaults").map(|(word, ..)| format!("r{word}"));
    let spread = ["shared", "slave", "private", "unbindable"].map(|word| [word.to_owned(), format!("r{word}")]);
    let others = ["bind", "rbind", "tmpcopyup", "idmap", "ridmap"].into_iter().chain(WITHOUT_EFFECT).map(str::to_owned);
    let mut words: Vec<String> = plain.chain(recursive).chain(spread.into_iter().flatten()).chain(others).collect();
    words.sort();
    words
}

/// A mount in the terms of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// What to mount.
    pub(crate) what: What,
    /// Attributes of the mount itself.
    pub(crate) attributes: Attributes,
    /// Attributes of everything below too.
    pub(crate) recursive: Attributes,
    /// Propagation flags, in order (`MS_SHARED`, ... with or without `MS_REC`).
    pub(crate) propagation: Vec<u64>,
    /// Options of the file system: key, and value where it has one.
    pub(crate) data: Vec<(String, Option<String>)>,
    /// Start a tmpfs with what is in the folder below it.
    pub(crate) copy_up: bool,
    /// Map ids, and of everything below too.
    pub(crate) idmap: Option<bool>,
}

/// (name, bits to set, bits to clear) of plain mount attributes.
const ATTRIBUTES: [(&str, u64, u64); 19] = [
    ("ro", m::RDONLY, 0),
    ("rw", 0, m::RDONLY),
    ("nosuid", m::NOSUID, 0),
    ("suid", 0, m::NOSUID),
    ("nodev", m::NODEV, 0),
    ("dev", 0, m::NODEV),
    ("noexec", m::NOEXEC, 0),
    ("exec", 0, m::NOEXEC),
    ("noatime", m::NOATIME, m::ATIME_MASK),
    ("atime", 0, m::ATIME_MASK),
    ("relatime", 0, m::ATIME_MASK),
    ("norelatime", m::STRICTATIME, m::ATIME_MASK),
    ("strictatime", m::STRICTATIME, m::ATIME_MASK),
    ("nostrictatime", 0, m::ATIME_MASK),
    ("nodiratime", m::NODIRATIME, 0),
    ("diratime", 0, m::NODIRATIME),
    ("nosymfollow", m::NOSYMFOLLOW, 0),
    ("symfollow", 0, m::NOSYMFOLLOW),
    ("defaults", 0, 0),
];

/// The flags of a propagation word.
pub(crate) fn propagation_of(word: &str) -> Option<u64> {
    let (word, recursive) = match word.strip_prefix('r') {
        Some(rest) => (rest, libc::MS_REC),
        None => (word, 0),
    };
    let flag = match word {
        "shared" => libc::MS_SHARED,
        "slave" => libc::MS_SLAVE,
        "private" => libc::MS_PRIVATE,
        "unbindable" => libc::MS_UNBINDABLE,
        _ => return None,
    };
    Some(flag | recursive)
}

/// Reads the options of a mount. What is no known word is an option of the file system.
pub(crate) fn plan(mount: &Mount) -> Plan {
    let kind = mount.kind.as_deref().unwrap_or("bind");
    let mut plan = Plan {
        what: match kind {
            "bind" | "none" | "" => What::Bind { recursive: false },
            "cgroup" | "cgroup2" => What::Cgroup,
            kind => What::New(kind.to_owned()),
        },
        attributes: Attributes::default(),
        recursive: Attributes::default(),
        propagation: Vec::new(),
        data: Vec::new(),
        copy_up: false,
        idmap: None,
    };
    for option in &mount.options {
        let plain = |name: &str| ATTRIBUTES.iter().find(|(n, _, _)| *n == name);
        if let Some((_, set, clear)) = plain(option) {
            merge(&mut plan.attributes, *set, *clear);
        } else if let Some((_, set, clear)) = option.strip_prefix('r').and_then(plain) {
            merge(&mut plan.recursive, *set, *clear);
        } else if let Some(flags) = propagation_of(option) {
            plan.propagation.push(flags);
        } else {
            match option.as_str() {
                "bind" => plan.what = What::Bind { recursive: false },
                "rbind" => plan.what = What::Bind { recursive: true },
                "tmpcopyup" => plan.copy_up = true,
                "idmap" => plan.idmap = Some(false),
                "ridmap" => plan.idmap = Some(true),
                word if WITHOUT_EFFECT.contains(&word) => {}
                other => plan.data.push(match other.split_once('=') {
                    Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                    None => (other.to_owned(), None),
                }),
            }
        }
    }
    if let What::New(_) = plan.what {
        // The kernel knows these of every file system, as options of it.
        let general = mount.options.iter().filter(|o| matches!(o.as_str(), "sync" | "dirsync" | "lazytime"));
        plan.data.extend(general.map(|o| (o.clone(), None)));
    }
    if plan.idmap.is_none() && !mount.uid_mappings.is_empty() {
        plan.idmap = Some(false);
    }
    plan
}

/// A later word overrides an earlier one about the same attribute.
fn merge(attributes: &mut Attributes, set: u64, clear: u64) {
    attributes.set = attributes.set & !clear | set;
    attributes.clear = attributes.clear & !set | clear;
    if clear & m::ATIME_MASK != 0 || set & m::ATIME_MASK != 0 {
        // The kernel takes the access-time modes only as a whole: clear the mask, then set one.
        attributes.clear |= m::ATIME_MASK;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(kind: &str, options: &[&str]) -> Plan {
        plan(&Mount {
            kind: Some(kind.to_owned()),
            options: options.iter().map(|s| (*s).to_owned()).collect(),
            ..Mount::default()
        })
    }

    #[test]
    fn options_mean_what_fstab_says() {
        let p = planned("tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k", "noswap"]);
        assert_eq!(p.what, What::New("tmpfs".to_owned()));
        assert_eq!(p.attributes.set, m::NOSUID | m::STRICTATIME);
        let data = [("mode", Some("755")), ("size", Some("65536k")), ("noswap", None)];
        assert_eq!(p.data, data.map(|(k, v)| (k.to_owned(), v.map(str::to_owned))));
        let p = planned("bind", &["rbind", "rro", "rprivate", "ro", "rw"]);
        assert_eq!(p.what, What::Bind { recursive: true });
        assert_eq!((p.attributes.set, p.attributes.clear), (0, m::RDONLY));
        assert_eq!(p.recursive.set, m::RDONLY);
        assert_eq!(p.propagation, [libc::MS_PRIVATE | libc::MS_REC]);
        assert_eq!(planned("", &["bind"]).what, What::Bind { recursive: false });
        assert_eq!(planned("cgroup2", &["ro"]).what, What::Cgroup);
    }

    #[test]
    fn all_words_are_known() {
        for word in words() {
            assert_eq!(planned("bind", &[&word]).data, [], "{word}");
        }
    }

    #[test]
    fn recursive_words_are_not_taken_for_others() {
        let p = planned("bind", &["rnosuid", "rslave", "relatime", "rw"]);
        assert_eq!(p.recursive.set, m::NOSUID);
        assert_eq!(p.propagation, [libc::MS_SLAVE | libc::MS_REC]);
        assert_eq!(p.attributes.set, 0);
        assert!(p.data.is_empty());
    }
}
