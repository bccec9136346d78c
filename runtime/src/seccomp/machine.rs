//! The machines that this runtime is built for: which programs' system calls a kernel there takes, and how it tells them apart.

use super::table::TABLE;

/// One architecture whose programs a machine runs.
#[derive(Debug)]
pub struct Abi {
    /// The specification's name.
    pub name: &'static str,
    /// The kernel's name for it (`AUDIT_ARCH_*`).
    pub audit: u32,
    /// Whether arguments have 64 bits, all of which are compared.
    pub wide: bool,
    /// Its numbers in the table.
    column: usize,
}

/// A kind of machine.
#[derive(Debug)]
pub struct Machine {
    /// What every filter is for, whatever the profile lists.
    pub native: Abi,
    /// Taken by the same entry as native calls, told apart by [`X32_BIT`] in their number.
    pub x32: Option<Abi>,
    /// What a profile may list beside.
    pub others: &'static [Abi],
    /// Calls that are also made through another one, as (name, that one's name, its first argument), on one of `others`.
    pub through: &'static [(&'static str, &'static str, u8)],
}

/// The bit that tells an x32 call from a native one.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// 64-bit PCs.
pub const X86_64: Machine = Machine {
    native: Abi { name: "SCMP_ARCH_X86_64", audit: 0xc000_003e, wide: true, column: 0 },
    x32: Some(Abi { name: "SCMP_ARCH_X32", audit: 0xc000_003e, wide: false, column: 2 }),
    others: &[Abi { name: "SCMP_ARCH_X86", audit: 0x4000_0003, wide: false, column: 1 }],
    through: &THROUGH,
};

/// 64-bit ARM.
pub const AARCH64: Machine = Machine {
    native: Abi { name: "SCMP_ARCH_AARCH64", audit: 0xc000_00b7, wide: true, column: 3 },
    x32: None,
    others: &[Abi { name: "SCMP_ARCH_ARM", audit: 0x4000_0028, wide: false, column: 4 }],
    through: &[],
};

/// 64-bit RISC-V.
pub const RISCV64: Machine = Machine {
    native: Abi { name: "SCMP_ARCH_RISCV64", audit: 0xc000_00f3, wide: true, column: 5 },
    x32: None,
    others: &[],
    through: &[],
};

/// The machine that this program is built for.
pub const HERE: Machine = if cfg!(target_arch = "aarch64") {
    AARCH64
} else if cfg!(target_arch = "riscv64") {
    RISCV64
} else {
    X86_64
};

impl Machine {
    /// The names of all its architectures.
    pub fn architectures(&self) -> Vec<&'static str> {
        let x32 = self.x32.iter().map(|abi| abi.name);
        std::iter::once(self.native.name).chain(self.others.iter().map(|abi| abi.name)).chain(x32).collect()
    }
}

impl Abi {
    /// The number of a call, without [`X32_BIT`].
    pub fn number_of(&self, name: &str) -> Option<u32> {
        self.number(row_of(name)?)
    }

    /// The number of the call in a row of the table.
    pub(super) fn number(&self, row: usize) -> Option<u32> {
        let number = u32::try_from(TABLE.get(row)?.1[self.column]).ok()?;
        // Calls of 32-bit ARM alone start at 0xf0000, past what the table holds.
        Some(if number < 0x6000 { number } else { number - 0x6000 + 0xf_0000 })
    }
}

/// The row of a call in the table.
pub(super) fn row_of(name: &str) -> Option<usize> {
    TABLE.binary_search_by(|row| row.0.cmp(name)).ok()
}

/// As [`row_of`] for a name that likely stands in one of the rows after this one, as those of a sorted list do.
pub(super) fn row_after(row: usize, name: &str) -> Option<usize> {
    let near = TABLE.get(row..)?.iter().take(4).position(|other| other.0 == name);
    near.map(|distance| row + distance).or_else(|| row_of(name))
}

/// 32-bit x86's old doors: `socketcall` and `ipc` with a number of the call that is meant.
const THROUGH: [(&str, &str, u8); 32] = [
    ("socket", "socketcall", 1),
    ("bind", "socketcall", 2),
    ("connect", "socketcall", 3),
    ("listen", "socketcall", 4),
    ("accept", "socketcall", 5),
    ("getsockname", "socketcall", 6),
    ("getpeername", "socketcall", 7),
    ("socketpair", "socketcall", 8),
    ("send", "socketcall", 9),
    ("recv", "socketcall", 10),
    ("sendto", "socketcall", 11),
    ("recvfrom", "socketcall", 12),
    ("shutdown", "socketcall", 13),
    ("setsockopt", "socketcall", 14),
    ("getsockopt", "socketcall", 15),
    ("sendmsg", "socketcall", 16),
    ("recvmsg", "socketcall", 17),
    ("accept4", "socketcall", 18),
    ("recvmmsg", "socketcall", 19),
    ("sendmmsg", "socketcall", 20),
    ("semop", "ipc", 1),
    ("semget", "ipc", 2),
    ("semctl", "ipc", 3),
    ("semtimedop", "ipc", 4),
    ("msgsnd", "ipc", 11),
    ("msgrcv", "ipc", 12),
    ("msgget", "ipc", 13),
    ("msgctl", "ipc", 14),
    ("shmat", "ipc", 21),
    ("shmdt", "ipc", 22),
    ("shmget", "ipc", 23),
    ("shmctl", "ipc", 24),
];
