//! Filters as the kernel checks and runs them: what judges the compiler's work.
//!
//! For tests and fuzzing only. Tests outside the crate have this file by its path, so that no program contains it.

use gantry_sys::seccomp::Instruction;

/// What a program calls.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    /// The architecture's number in audit records.
    pub(crate) arch: u32,
    pub(crate) number: u32,
    pub(crate) args: [u64; 6],
}

/// As the kernel checks a filter when it is loaded: every way through it ends with an answer.
///
/// # Panics
/// The kernel would refuse it.
pub(crate) fn check(code: &[Instruction]) {
    assert!(!code.is_empty() && code.len() <= 4096);
    for (at, i) in code.iter().enumerate() {
        let end = match i.code {
            0x05 => at + 1 + i.k as usize,
            0x15 | 0x25 | 0x35 => at + 1 + usize::from(i.jt.max(i.jf)),
            0x06 => continue,
            0x20 | 0x54 => at + 1,
            other => panic!("instruction {other:#x}"),
        };
        assert!(end < code.len(), "instruction {at} leads out of the filter");
        assert!(i.code != 0x20 || (i.k.is_multiple_of(4) && i.k < 64), "instruction {at} reads past the call");
    }
}

/// What a filter answers to a call. Jumps lead forward only, so it ends.
///
/// # Panics
/// An instruction is of a kind that filters of seccomp profiles do not need, or a jump leads out of the filter.
pub(crate) fn run(code: &[Instruction], call: &Call) -> u32 {
    let word = |offset: u32| match offset {
        0 => call.number,
        4 => call.arch,
        // The instruction pointer, for which no profile can ask.
        8 | 12 => 0,
        o => (call.args[(o as usize - 16) / 8] >> (8 * (o % 8))) as u32,
    };
    let (mut accumulator, mut at) = (0_u32, 0_usize);
    loop {
        let i = code[at];
        at += 1;
        let skip = |holds: bool| usize::from(if holds { i.jt } else { i.jf });
        match i.code {
            0x20 => accumulator = word(i.k),
            0x54 => accumulator &= i.k,
            0x05 => at += i.k as usize,
            0x15 => at += skip(accumulator == i.k),
            0x25 => at += skip(accumulator > i.k),
            0x35 => at += skip(accumulator >= i.k),
            0x06 => return i.k,
            other => panic!("instruction {other:#x}"),
        }
    }
}
