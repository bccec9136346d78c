//! The system call filter's part of a configuration.

use crate::error::{Error, Result};
use crate::fail;
use crate::seccomp::{ALL_ARCHITECTURES, FLAGS, OPERATORS, action};
use crate::spec::Seccomp;

/// Checks a profile.
///
/// # Errors
/// The first wrong field, by name.
pub(super) fn seccomp(s: &Seccomp) -> Result<()> {
    let field = "linux.seccomp";
    let known = |at: &str, name: &str, errno_at: &str, errno: Option<u32>| -> Result<()> {
        action(name, None).map_err(|e| Error::new(format!("{field}.{at}: {e}")))?;
        match errno {
            Some(_) if !matches!(name, "SCMP_ACT_ERRNO" | "SCMP_ACT_TRACE") => {
                fail!("{field}.{errno_at}: {name} has no error number")
            }
            _ => action(name, errno).map(drop).map_err(|e| Error::new(format!("{field}.{errno_at}: {e}"))),
        }
    };
    known("defaultAction", &s.default_action, "defaultErrnoRet", s.default_errno_ret)?;
    if s.default_action == "SCMP_ACT_NOTIFY" {
        fail!("{field}.defaultAction: SCMP_ACT_NOTIFY would stop the runtime itself");
    }
    for (i, name) in s.architectures.iter().enumerate() {
        if !ALL_ARCHITECTURES.contains(&name.as_str()) {
            fail!("{field}.architectures[{i}]: unknown architecture {name:?}");
        }
    }
    for (i, name) in s.flags.iter().enumerate() {
        if !FLAGS.contains(&name.as_str()) {
            fail!("{field}.flags[{i}]: unknown flag {name:?}");
        }
    }
    if s.listener_path.is_none() && s.listener_metadata.is_some() {
        fail!("{field}.listenerMetadata: needs listenerPath");
    }
    for (i, rule) in s.syscalls.iter().enumerate() {
        known(&format!("syscalls[{i}].action"), &rule.action, &format!("syscalls[{i}].errnoRet"), rule.errno_ret)?;
        if rule.names.is_empty() || rule.names.iter().any(String::is_empty) {
            fail!("{field}.syscalls[{i}].names: empty");
        }
        if rule.action == "SCMP_ACT_NOTIFY" {
            if s.listener_path.is_none() {
                fail!("{field}.listenerPath: SCMP_ACT_NOTIFY needs one");
            }
            // The runtime tells by write(2) that the listener is there to be taken: it would wait for itself.
            if rule.names.iter().any(|n| n == "write") {
                fail!("{field}.syscalls[{i}].names: SCMP_ACT_NOTIFY cannot be used for write");
            }
        }
        for (j, arg) in rule.args.iter().enumerate() {
            if arg.index > 5 {
                fail!("{field}.syscalls[{i}].args[{j}].index: {} is above 5", arg.index);
            }
            if !OPERATORS.contains(&arg.op.as_str()) {
                fail!("{field}.syscalls[{i}].args[{j}].op: unknown operator {:?}", arg.op);
            }
        }
    }
    Ok(())
}
