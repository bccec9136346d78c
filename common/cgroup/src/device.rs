//! Device rules: text on version 1, a BPF program on version 2.

use serde::{Deserialize, Serialize};

/// Which kind of device a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    /// All devices.
    All,
    /// Character devices.
    Char,
    /// Block devices.
    Block,
}

/// What a rule is about: reading, writing, mknod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// Open for reading.
    pub read: bool,
    /// Open for writing.
    pub write: bool,
    /// Make a node.
    pub mknod: bool,
}

/// One rule; a later rule overrides an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    /// Whether it allows or denies.
    pub allow: bool,
    /// The kind.
    pub kind: DeviceKind,
    /// Major number; `None` for all.
    pub major: Option<u32>,
    /// Minor number; `None` for all.
    pub minor: Option<u32>,
    /// Accesses.
    pub access: Access,
}

impl Access {
    /// All three.
    pub const ALL: Self = Self { read: true, write: true, mknod: true };

    /// Reads `rwm` texts; the empty text is all.
    ///
    /// # Errors
    /// Another letter is in it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self::ALL);
        }
        let mut access = Self::default();
        for letter in text.chars() {
            match letter {
                'r' => access.read = true,
                'w' => access.write = true,
                'm' => access.mknod = true,
                other => return Err(format!("device access {text:?}: {other:?} is none of r, w, m")),
            }
        }
        Ok(access)
    }

    pub(crate) fn text(self) -> String {
        [(self.read, 'r'), (self.write, 'w'), (self.mknod, 'm')].iter().filter(|(on, _)| *on).map(|(_, c)| *c).collect()
    }

    /// The kernel's bits: mknod 1, read 2, write 4.
    fn bits(self) -> u32 {
        u32::from(self.mknod) | u32::from(self.read) << 1 | u32::from(self.write) << 2
    }
}

impl DeviceRule {
    /// Version 1: the file (`devices.allow` or `devices.deny`) and its line.
    pub(crate) fn v1(&self) -> (&'static str, String) {
        let number = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        let kind = match self.kind {
            DeviceKind::All => 'a',
            DeviceKind::Char => 'c',
            DeviceKind::Block => 'b',
        };
        let file = if self.allow { "devices.allow" } else { "devices.deny" };
        (file, format!("{kind} {}:{} {}", number(self.major), number(self.minor), self.access.text()))
    }
}

/// Version 2: a device program. The last rule that covers a request decides; none denies.
///
/// The kernel hands over (access type << 16 | kind, major, minor) with kind 1 block, 2 char. A rule for several accesses
/// allows a request only when it covers all that is asked, and denies it when it covers any.
pub(crate) fn program(rules: &[DeviceRule]) -> Vec<u64> {
    const R0: u8 = 0;
    const R1: u8 = 1;
    const R2: u8 = 2; // kind
    const R3: u8 = 3; // access
    const R4: u8 = 4; // major
    const R5: u8 = 5; // minor
    const R6: u8 = 6;
    let op = |code: u8, dst: u8, src: u8, offset: i16, immediate: i32| -> u64 {
        u64::from(code)
            | u64::from(dst) << 8
            | u64::from(src) << 12
            | u64::from(offset as u16) << 16
            | u64::from(immediate as u32) << 32
    };
    const LOAD_W: u8 = 0x61;
    const AND_W: u8 = 0x54;
    const RSH_W: u8 = 0x74;
    const MOV_W_IMM: u8 = 0xb4;
    const MOV_X: u8 = 0xbf;
    const JNE: u8 = 0x55;
    const JEQ: u8 = 0x15;
    const JNE_X: u8 = 0x5d;
    const EXIT: u8 = 0x95;
    let mut code = vec![
        op(LOAD_W, R2, R1, 0, 0),
        op(MOV_X, R3, R2, 0, 0),
        op(AND_W, R2, 0, 0, 0xffff),
        op(RSH_W, R3, 0, 0, 16),
        op(LOAD_W, R4, R1, 4, 0),
        op(LOAD_W, R5, R1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        // Each test jumps over the rest of its block when the rule does not cover the request.
        let mut block: Vec<(u8, u8, u8, i32)> = Vec::new();
        match rule.kind {
            DeviceKind::All => {}
            DeviceKind::Block => block.push((JNE, R2, 0, 1)),
            DeviceKind::Char => block.push((JNE, R2, 0, 2)),
        }
        let bits = rule.access.bits();
        if bits != 7 {
            block.push((MOV_X, R6, R3, 0));
            block.push((AND_W, R6, 0, bits as i32));
            if rule.allow {
                block.push((JNE_X, R6, R3, 0));
            } else {
                block.push((JEQ, R6, 0, 0));
            }
        }
        if let Some(major) = rule.major {
            block.push((JNE, R4, 0, major as i32));
        }
        if let Some(minor) = rule.minor {
            block.push((JNE, R5, 0, minor as i32));
        }
        let length = block.len();
        for (i, (code_byte, dst, src, immediate)) in block.into_iter().enumerate() {
            let jumps = matches!(code_byte, JNE | JEQ | JNE_X);
            let offset = if jumps { (length - i - 1 + 2) as i16 } else { 0 };
            code.push(op(code_byte, dst, src, offset, immediate));
        }
        code.push(op(MOV_W_IMM, R0, 0, 0, i32::from(rule.allow)));
        code.push(op(EXIT, 0, 0, 0, 0));
        if length == 0 {
            // This rule covers everything: the verifier refuses instructions that can never run.
            return code;
        }
    }
    code.push(op(MOV_W_IMM, R0, 0, 0, 0));
    code.push(op(EXIT, 0, 0, 0, 0));
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(allow: bool, kind: DeviceKind, major: Option<u32>, minor: Option<u32>, access: &str) -> DeviceRule {
        DeviceRule { allow, kind, major, minor, access: Access::parse(access).unwrap() }
    }

    /// What the rules mean, told another way: the oracle for the program.
    fn allowed(rules: &[DeviceRule], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        for r in rules.iter().rev() {
            let covers_kind = match r.kind {
                DeviceKind::All => true,
                DeviceKind::Block => kind == 1,
                DeviceKind::Char => kind == 2,
            };
            let bits = r.access.bits();
            let covers_access = if r.allow { access & !bits == 0 } else { access & bits != 0 };
            let covers = covers_kind
                && covers_access
                && r.major.is_none_or(|m| m == major)
                && r.minor.is_none_or(|m| m == minor);
            if covers {
                return r.allow;
            }
        }
        false
    }

    /// Runs the few instructions that `program` emits.
    fn interpret(code: &[u64], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let context = [kind | access << 16, major, minor];
        let mut r = [0_u64; 8];
        let mut pc = 0_usize;
        loop {
            let i = code[pc];
            let (op, dst, src) = (i as u8, (i >> 8 & 0xf) as usize, (i >> 12 & 0xf) as usize);
            let (offset, k) = ((i >> 16) as u16 as i16, (i >> 32) as u32);
            pc += 1;
            let jump = match op {
                0x61 => {
                    r[dst] = u64::from(context[(offset / 4) as usize]);
                    false
                }
                0x54 => {
                    r[dst] = u64::from(r[dst] as u32 & k);
                    false
                }
                0x74 => {
                    r[dst] = u64::from(r[dst] as u32 >> k);
                    false
                }
                0xb4 => {
                    r[dst] = u64::from(k);
                    false
                }
                0xbf => {
                    r[dst] = r[src];
                    false
                }
                0x55 => r[dst] != u64::from(k),
                0x15 => r[dst] == u64::from(k),
                0x5d => r[dst] != r[src],
                0x95 => return r[0] == 1,
                other => panic!("opcode {other:#x}"),
            };
            if jump {
                pc = pc.wrapping_add_signed(offset as isize);
            }
        }
    }

    #[test]
    fn the_program_decides_as_the_rules_say() {
        use DeviceKind::{All, Block, Char};
        let rules = [
            rule(false, All, None, None, "rwm"),
            rule(true, Char, None, None, "m"),
            rule(true, Char, Some(1), Some(3), "rwm"),
            rule(true, Block, Some(8), None, "r"),
            rule(false, Block, Some(8), Some(5), "r"),
        ];
        for kind in [1, 2] {
            for access in 1..8 {
                for (major, minor) in [(1, 3), (1, 5), (8, 0), (8, 5), (200, 1)] {
                    assert_eq!(
                        interpret(&program(&rules), kind, access, major, minor),
                        allowed(&rules, kind, access, major, minor),
                        "kind {kind} access {access} {major}:{minor}"
                    );
                }
            }
        }
    }

    #[test]
    fn version_1_lines_are_the_kernels() {
        let r = rule(true, DeviceKind::Char, Some(1), None, "rw");
        assert_eq!(r.v1(), ("devices.allow", "c 1:* rw".to_owned()));
        let r = rule(false, DeviceKind::All, None, None, "");
        assert_eq!(r.v1(), ("devices.deny", "a *:* rwm".to_owned()));
        assert!(Access::parse("rx").is_err());
    }
}
