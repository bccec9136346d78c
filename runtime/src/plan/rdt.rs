//! What `linux.intelRdt` asks for: which group of resctrl, and the lines of its schemata.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::fail;
use crate::spec::IntelRdt;

/// A container's group of resctrl.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Its folder below the file system's root; empty for the root itself.
    pub(crate) group: PathBuf,
    /// Whether the group has the container's own name, so that nobody else uses it.
    pub(crate) own: bool,
    /// Whether the group must be there already, since nothing says what it allows.
    pub(crate) must_exist: bool,
    /// Lines that a group which is there already must have.
    pub(crate) fixed: Vec<String>,
    /// Lines that are written last, whatever the group has.
    pub(crate) last: Vec<String>,
    /// Whether the container is counted by itself.
    pub(crate) monitored: bool,
}

/// Sorts what a (checked) configuration asks for.
pub(crate) fn plan(asked: &IntelRdt, id: &str) -> Plan {
    let fixed = lines(asked.l3_cache_schema.as_deref(), asked.mem_bw_schema.as_deref());
    let clos = asked.clos_id.as_deref().filter(|clos| !clos.is_empty());
    Plan {
        group: Path::new(clos.unwrap_or(id)).strip_prefix("/").unwrap_or(Path::new(clos.unwrap_or(id))).to_owned(),
        own: clos.is_none(),
        must_exist: clos.is_some() && fixed.is_empty() && asked.schemata.is_empty(),
        fixed,
        last: asked.schemata.clone(),
        monitored: asked.enable_monitoring,
    }
}

/// The lines of both schemas; memory bandwidth has its own, where it is given.
pub(crate) fn lines(l3: Option<&str>, bandwidth: Option<&str>) -> Vec<String> {
    let bandwidth = bandwidth.filter(|schema| !schema.is_empty());
    let l3 = l3.unwrap_or_default().lines().filter(|line| !line.is_empty());
    let l3 = l3.filter(|line| bandwidth.is_none() || !line.starts_with("MB:"));
    l3.chain(bandwidth).map(str::to_owned).collect()
}

/// A line of a schemata file, `L3:0=ff;1=f`: the resource, and what each domain may use of it.
type Line<'a> = (&'a str, BTreeMap<u32, u64>);

/// Reads a line.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn line(text: &str) -> Result<Line<'_>> {
    let Some((resource, domains)) = text.trim().split_once(':') else { fail!("{text:?} is no line like L3:0=ff;1=f") };
    if resource.is_empty() || !resource.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        fail!("{resource:?} is no name of a resource");
    }
    // Shares of bandwidth are numbers, parts of caches are masks.
    let radix = if resource.ends_with("MBA") || resource.starts_with("MB") { 10 } else { 16 };
    let mut parsed = BTreeMap::new();
    for domain in domains.split(';') {
        let Some((id, value)) = domain.split_once('=') else { fail!("{domain:?} is no share like 0=ff") };
        let Ok(id) = id.trim().parse() else { fail!("{id:?} is no number of a domain") };
        let value = value.trim();
        let digits = value.strip_prefix("0x").filter(|_| radix == 16).unwrap_or(value);
        let Some(value) = u64::from_str_radix(digits, radix).ok().filter(|_| !digits.starts_with('+')) else {
            fail!("{value:?} is no {}", if radix == 10 { "number" } else { "mask" })
        };
        if parsed.insert(id, value).is_some() {
            fail!("domain {id} is there twice");
        }
    }
    Ok((resource, parsed))
}

/// Which of the lines asked for is not what a group has, if any. Bandwidth is compared as the kernel keeps it: in steps.
///
/// # Errors
/// A line is wrong.
pub(crate) fn mismatch<'a>(asked: &'a [String], schemata: &str, step: u64) -> Result<Option<&'a str>> {
    let there: BTreeMap<&str, BTreeMap<u32, u64>> = schemata.lines().filter_map(|l| line(l).ok()).collect();
    let step = step.max(1);
    for text in asked {
        let (resource, domains) = line(text)?;
        let round = |value: u64| if resource == "MB" { value.div_ceil(step) * step } else { value };
        let has = there.get(resource);
        let same = |id: &u32, value: u64| has.and_then(|h| h.get(id)).is_some_and(|h| *h == round(value));
        if !domains.iter().all(|(id, value)| same(id, *value)) {
            return Ok(Some(text));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidth_has_its_own_line() {
        assert_eq!(lines(Some("L3:0=f\nMB:0=10"), Some("MB:0=20")), ["L3:0=f", "MB:0=20"]);
        assert_eq!(lines(Some("L3:0=f\nMB:0=10"), None), ["L3:0=f", "MB:0=10"]);
        assert_eq!(lines(None, None), [""; 0]);
    }

    #[test]
    fn groups_are_shared_by_name_or_the_container_s_own() {
        let plan = |clos: Option<&str>, l3: Option<&str>| {
            let asked = IntelRdt {
                clos_id: clos.map(str::to_owned),
                l3_cache_schema: l3.map(str::to_owned),
                ..IntelRdt::default()
            };
            let p = plan(&asked, "id");
            (p.group.to_str().unwrap().to_owned(), p.own, p.must_exist)
        };
        assert_eq!(plan(None, None), ("id".to_owned(), true, false));
        assert_eq!(plan(Some("gold"), None), ("gold".to_owned(), false, true));
        assert_eq!(plan(Some("gold"), Some("L3:0=f")), ("gold".to_owned(), false, false));
        assert_eq!(plan(Some("/"), None), (String::new(), false, true));
    }

    #[test]
    fn lines_are_read_as_the_kernel_reads_them() {
        assert_eq!(line("    L3:0=00ff;1=f").unwrap(), ("L3", BTreeMap::from([(0, 255), (1, 15)])));
        assert_eq!(line("MB:0=20").unwrap(), ("MB", BTreeMap::from([(0, 20)])));
        for wrong in
            ["", "L3", "L3:", "L3:0", "L3:0=", "L3:0=xyz", "MB:0=ff", "L3:a=f", "L3:0=f;0=f", ":0=f", "L3:0=+f"]
        {
            assert!(line(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_group_that_is_there_must_allow_the_same() {
        let there = "    MB:0=  40;1= 100\n    L3:0=00ff;1=7ff\n";
        let check = |asked: &str| mismatch(&[asked.to_owned()], there, 10).unwrap().map(str::to_owned);
        for same in ["L3:0=ff", "L3:1=7ff;0=0ff", "MB:0=40", "MB:0=35;1=100"] {
            assert_eq!(check(same), None, "{same}");
        }
        for other in ["L3:0=f", "L3:2=ff", "MB:0=45", "L2:0=f"] {
            assert_eq!(check(other).as_deref(), Some(other));
        }
    }
}
