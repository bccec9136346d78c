//! `/healthz` on either port.

use http::StatusCode;

use crate::Node;
use crate::reply::{Reply, text};

type Check = (String, Result<(), String>);

/// The answer for all checks or one, by name; `verbose` lists them also when all is well.
pub(crate) fn healthz(node: &dyn Node, one: Option<&str>, verbose: bool) -> Reply {
    let mut checks: Vec<Check> = vec![("ping".into(), Ok(())), ("log".into(), Ok(()))];
    checks.extend(node.healthz());
    let (status, body) = judge(&checks, one, verbose);
    text(status, body)
}

/// `/metrics/slis`: the same checks as numbers.
pub(crate) fn slis(node: &dyn Node) -> String {
    let mut out = String::from(
        "# HELP kubernetes_healthcheck [STABLE] 1 for each health check that passes, else 0.\n\
         # TYPE kubernetes_healthcheck gauge\n",
    );
    let own = ["ping", "log"].map(|name| (name.to_owned(), Ok(())));
    for (name, result) in own.into_iter().chain(node.healthz()) {
        let fine = u8::from(result.is_ok());
        out.push_str(&format!("kubernetes_healthcheck{{name=\"{name}\",type=\"healthz\"}} {fine}\n"));
    }
    out
}

fn judge(checks: &[Check], one: Option<&str>, verbose: bool) -> (StatusCode, String) {
    if let Some(name) = one {
        return match checks.iter().find(|(n, _)| n == name) {
            Some((_, Ok(()))) => (StatusCode::OK, "ok".into()),
            Some((_, Err(e))) => (StatusCode::INTERNAL_SERVER_ERROR, format!("internal server error: {e}\n")),
            None => (StatusCode::NOT_FOUND, "404 page not found\n".into()),
        };
    }
    let failed = checks.iter().any(|(_, result)| result.is_err());
    if !failed && !verbose {
        return (StatusCode::OK, "ok".into());
    }
    let mut body: String = checks
        .iter()
        .map(|(name, result)| match result {
            Ok(()) => format!("[+]{name} ok\n"),
            Err(e) => format!("[-]{name} failed: {e}\n"),
        })
        .collect();
    body.push_str(if failed { "healthz check failed\n" } else { "healthz check passed\n" });
    (if failed { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK }, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bad_check_makes_all_bad() {
        let good: Vec<Check> = vec![("ping".into(), Ok(())), ("syncloop".into(), Ok(()))];
        let bad: Vec<Check> = vec![("ping".into(), Ok(())), ("syncloop".into(), Err("stuck".into()))];
        assert_eq!(judge(&good, None, false), (StatusCode::OK, "ok".into()));
        assert_eq!(judge(&good, None, true).1, "[+]ping ok\n[+]syncloop ok\nhealthz check passed\n");
        let (status, body) = judge(&bad, None, false);
        assert_eq!(
            (status.as_u16(), body.as_str()),
            (500, "[+]ping ok\n[-]syncloop failed: stuck\nhealthz check failed\n")
        );
        assert_eq!(judge(&bad, Some("ping"), false).1, "ok");
        assert_eq!(judge(&bad, Some("syncloop"), false).0.as_u16(), 500);
        assert_eq!(judge(&bad, Some("none"), false).0.as_u16(), 404);
    }
}
