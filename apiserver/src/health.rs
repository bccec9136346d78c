//! `/healthz`, `/livez` and `/readyz`: the checks one by one, or all, with upstream's texts.

use crate::http_util::Query;
use crate::router::Api;

/// Code and text of an answer. `path` is what follows the first part.
pub fn answer(api: &Api, kind: &str, one: &[&str], query: &Query) -> (u16, String) {
    let mut checks = vec![("ping", Ok(())), ("log", Ok(())), ("etcd", store(api))];
    if kind == "readyz" {
        let stopping = api.stop.is_cancelled();
        checks.push(("shutdown", if stopping { Err("process is shutting down".to_owned()) } else { Ok(()) }));
    }
    judge(kind, &checks, one, query.get("exclude"), query.has("verbose"))
}

/// The store answers as long as it has a revision: it begins with one.
fn store(api: &Api) -> Result<(), String> {
    if api.store.revision() > 0 { Ok(()) } else { Err("the store has no revision".into()) }
}

type Check = (&'static str, Result<(), String>);

fn judge(kind: &str, checks: &[Check], one: &[&str], exclude: &str, verbose: bool) -> (u16, String) {
    if let [name, ..] = one {
        return match checks.iter().find(|(n, _)| n == name) {
            Some((_, Ok(()))) => (200, "ok".into()),
            Some((_, Err(why))) => (500, format!("internal server error: {why}\n")),
            None => (404, "404 page not found\n".into()),
        };
    }
    let skipped = |name: &str| exclude.split(',').any(|e| e == name);
    let failed = checks.iter().any(|(name, result)| result.is_err() && !skipped(name));
    if !failed && !verbose {
        return (200, "ok".into());
    }
    let mut out = String::new();
    for (name, result) in checks {
        out += &match result {
            _ if skipped(name) => format!("[+]{name} excluded: ok\n"),
            Ok(()) => format!("[+]{name} ok\n"),
            // The reason is for the log only: anyone may read this.
            Err(_) => format!("[-]{name} failed: reason withheld\n"),
        };
    }
    out += &format!("{kind} check {}\n", if failed { "failed" } else { "passed" });
    (if failed { 500 } else { 200 }, out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_told_as_upstream_tells_them() {
        let checks = [("ping", Ok(())), ("shutdown", Err("going".to_owned()))];
        let all = judge("readyz", &checks, &[], "", false);
        assert_eq!(all, (500, "[+]ping ok\n[-]shutdown failed: reason withheld\nreadyz check failed\n".into()));
        assert_eq!(judge("readyz", &checks, &["ping"], "", false), (200, "ok".into()));
        assert_eq!(judge("readyz", &checks, &["shutdown"], "", false).0, 500);
        assert_eq!(judge("readyz", &checks, &["none"], "", false).0, 404);
        assert_eq!(judge("readyz", &checks, &[], "shutdown", false), (200, "ok".into()));
        let verbose = judge("livez", &checks[..1], &[], "", true);
        assert_eq!(verbose, (200, "[+]ping ok\nlivez check passed\n".into()));
    }
}
