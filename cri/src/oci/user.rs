//! Which user and groups a container runs as, from the image's own passwd and group files.

/// Ids of a process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
    /// Home folder, empty when unknown.
    pub home: String,
}

/// What was asked for.
#[derive(Debug, Clone, Default)]
pub struct Wanted<'a> {
    /// By number.
    pub uid: Option<i64>,
    /// By name.
    pub name: &'a str,
    /// Group.
    pub gid: Option<i64>,
    /// `user[:group]` of the image.
    pub image: &'a str,
    /// Further groups.
    pub groups: &'a [i64],
    /// Leave out the groups that the image's group file gives.
    pub strict: bool,
}

/// Resolves; `passwd` and `group` are the files' texts (empty when missing).
///
/// # Errors
/// A name is not in the files, or a number is out of range.
pub fn resolve(wanted: &Wanted<'_>, passwd: &str, group: &str) -> Result<User, String> {
    let (image_user, image_group) = match wanted.image.split_once(':') {
        Some((user, group)) => (user, group),
        None => (wanted.image, ""),
    };
    let number = |n: i64| u32::try_from(n).map_err(|_| format!("id {n} is out of range"));
    let named = match (wanted.uid, wanted.name) {
        (Some(uid), _) => number(uid)?.to_string(),
        (None, "") => image_user.to_owned(),
        (None, name) => name.to_owned(),
    };
    let named = if named.is_empty() { "0" } else { &named };
    let line = entries(passwd).find(|f| f[0] == named).or_else(|| {
        named.parse::<u32>().ok()?;
        entries(passwd).find(|f| f.get(2) == Some(&named))
    });
    let field = |index: usize| line.as_ref().and_then(|f| f.get(index).copied());
    let uid = match named.parse::<u32>() {
        Ok(uid) => uid,
        Err(_) => {
            let text = field(2).ok_or_else(|| format!("user {named:?} is not in the image's /etc/passwd"))?;
            text.parse().map_err(|_| format!("user {named:?} has no usable id in the image's /etc/passwd"))?
        }
    };
    if wanted.gid.is_some() && wanted.uid.is_none() && wanted.name.is_empty() {
        return Err("run_as_group is set without run_as_user or run_as_username".to_owned());
    }
    let from_image = wanted.uid.is_none() && wanted.name.is_empty();
    let gid = match (wanted.gid, image_group) {
        (Some(gid), _) => number(gid)?,
        (None, name) if from_image && !name.is_empty() => match name.parse() {
            Ok(gid) => gid,
            Err(_) => entries(group)
                .find(|f| f[0] == name)
                .and_then(|f| f.get(2)?.parse().ok())
                .ok_or_else(|| format!("group {name:?} is not in the image's /etc/group"))?,
        },
        _ => field(3).and_then(|g| g.parse().ok()).unwrap_or(0),
    };
    let mut groups = wanted.groups.iter().map(|g| number(*g)).collect::<Result<Vec<u32>, _>>()?;
    if let (false, Some(name)) = (wanted.strict, field(0)) {
        let member = |f: &Vec<&str>| f.get(3).is_some_and(|m| m.split(',').any(|u| u == name));
        groups.extend(entries(group).filter(member).filter_map(|f| f.get(2)?.parse::<u32>().ok()));
    }
    // As other runtimes do: file systems that look at the list alone see the main group too.
    groups.push(gid);
    groups.sort_unstable();
    groups.dedup();
    Ok(User { uid, gid, groups, home: field(5).unwrap_or_default().to_owned() })
}

fn entries(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().map(|l| l.split(':').collect::<Vec<_>>()).filter(|f| f.len() > 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nlogs:x:50:web,other\n";

    #[test]
    fn names_numbers_and_groups_resolve() {
        let case = |image: &str, uid: Option<i64>, strict: bool| {
            resolve(&Wanted { image, uid, strict, groups: &[7], ..Default::default() }, PASSWD, GROUP)
                .map(|u| (u.uid, u.gid, u.groups))
        };
        assert_eq!(case("", None, false), Ok((0, 0, vec![0, 7])));
        assert_eq!(case("web", None, false), Ok((33, 34, vec![7, 34, 50])));
        assert_eq!(case("web", None, true), Ok((33, 34, vec![7, 34])));
        assert_eq!(case("web:logs", None, true), Ok((33, 50, vec![7, 50])));
        assert_eq!(case("web:logs", Some(33), true), Ok((33, 34, vec![7, 34])));
        assert_eq!(case("1000", None, true), Ok((1000, 0, vec![0, 7])));
        assert!(case("nobody", None, true).unwrap_err().contains("nobody"));
        let group_alone = Wanted { gid: Some(5), ..Default::default() };
        assert!(resolve(&group_alone, PASSWD, GROUP).unwrap_err().contains("run_as_group"));
    }
}
