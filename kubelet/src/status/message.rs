//! The message that a container left when it ended.

use std::io::{Read, Seek, SeekFrom};

use k8s_openapi::api::core::v1::Pod;
use kubelet_volumes::Volumes;

use crate::pod;
use crate::sync::observe::Seen;

const LIMIT: usize = 4096;
const LOG_BYTES: usize = 2048;
const LOG_LINES: usize = 80;

/// What the container wrote to its termination message path, or the end of its log where the spec says so and it failed.
pub(crate) fn termination_message(volumes: &Volumes, pod: &Pod, seen: &Seen) -> String {
    let message = volumes.termination_message(pod::uid(pod), &seen.name, seen.attempt, LIMIT);
    let policy = pod::named(pod, &seen.name).and_then(|c| c.termination_message_policy.clone());
    if !message.is_empty() || policy.as_deref() != Some("FallbackToLogsOnError") || seen.exit_code == 0 {
        return message;
    }
    let read = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(&seen.log_path)?;
        let start = file.metadata()?.len().saturating_sub(4 * LOG_BYTES as u64);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(log_end(&String::from_utf8_lossy(&bytes)))
    };
    read().unwrap_or_default()
}

/// The last lines of a log in CRI format, without its prefixes.
fn log_end(text: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut open = false;
    for line in text.lines() {
        let mut parts = line.splitn(4, ' ').skip(2);
        let (Some(tag), Some(content)) = (parts.next(), parts.next()) else { continue };
        match lines.last_mut().filter(|_| open) {
            Some(last) => last.push_str(content),
            None => lines.push(content.to_owned()),
        }
        // A part of a line that goes on in the next record.
        open = tag.starts_with('P');
    }
    let mut out: String = lines[lines.len().saturating_sub(LOG_LINES)..].iter().map(|l| format!("{l}\n")).collect();
    let mut cut = out.len().saturating_sub(LOG_BYTES);
    while !out.is_char_boundary(cut) {
        cut += 1;
    }
    out.split_off(cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_eighty_lines_or_two_kibibytes_and_joins_parts() {
        let many: String = (0..100).map(|i| format!("t stdout F {i}\n")).collect();
        assert_eq!(log_end(&many).lines().count(), 80);
        let long: String = (0..40).map(|_| format!("t stdout F {}\n", "x".repeat(99))).collect();
        assert_eq!(log_end(&long).len(), 2048);
        assert_eq!(log_end("t stdout P ab\nt stdout F cd\nt stdout F e\n"), "abcd\ne\n");
    }

    #[test]
    fn the_end_of_a_log_has_no_prefixes() {
        let text = "cut off\n2026-01-01T00:00:00Z stdout F hello world\n2026-01-01T00:00:00Z stderr F bye\n";
        assert_eq!(log_end(text), "hello world\nbye\n");
    }
}
