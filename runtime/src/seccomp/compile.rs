//! The compiler: rules -> an answer for each call -> ranges of call numbers -> a decision tree of BPF instructions.
//!
//! What a profile leaves open is decided as libseccomp does, which engines write their profiles for: a rule without conditions
//! beats those with conditions, the first of several wins, and 32-bit programs have only the lower halves compared.

use gantry_sys::seccomp::Instruction;

use super::machine::{Abi, HERE, Machine, X32_BIT, row_after, row_of};
use super::profile::action;
use super::table::TABLE;
use crate::error::{Context, Error, Result};
use crate::spec::{Seccomp, SeccompArg};

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JEQ: u16 = 0x15;
const JGT: u16 = 0x25;
const JGE: u16 = 0x35;
const RET: u16 = 0x06;

const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const KILL_PROCESS: u32 = 0x8000_0000;
const ERRNO: u32 = 0x0005_0000;
const ENOSYS: u32 = ERRNO | 38;
/// Instructions that the kernel takes (`BPF_MAXINSNS`).
const LONGEST: usize = 4096;
/// What a tracer makes a call into that shall not be made.
const NO_CALL: u32 = u32::MAX;

/// What happens to one call (a row of the table) where the conditions hold.
#[derive(Clone, Copy, Debug)]
struct Answer<'a> {
    row: u16,
    conditions: Conditions<'a>,
    verdict: u32,
}

/// Conditions that must all hold.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Conditions<'a> {
    Arguments(&'a [SeccompArg]),
    /// The first argument has this value, whatever they say of it.
    First(u8, &'a [SeccompArg]),
}

/// What happens in a range of numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Verdict {
    Plain(u32),
    /// As the answer for this row of the table says.
    Row(usize),
}

/// Compiles a profile for this machine.
///
/// # Errors
/// As [`compile_for`].
pub fn compile(profile: &Seccomp) -> Result<Vec<Instruction>> {
    compile_for(&HERE, profile)
}

/// Compiles a profile for a machine.
///
/// # Errors
/// An action, operator or argument index is unknown, or the filter is longer than the kernel takes.
pub fn compile_for(machine: &Machine, profile: &Seccomp) -> Result<Vec<Instruction>> {
    let default = action(&profile.default_action, profile.default_errno_ret).context(|| "linux.seccomp".to_owned())?;
    let answers = answers(profile, default)?;
    let listed = |abi: &Abi| profile.architectures.iter().any(|name| name == abi.name);
    let mut code = Code { reversed: Vec::with_capacity(1024) };
    // From the end to the start: what is jumped to is there already.
    code.ret(KILL_PROCESS);
    for abi in machine.others.iter().filter(|abi| listed(abi)) {
        let next = code.reversed.len();
        let answers = through(machine, &answers);
        code.calls(abi, 0, &answers, default);
        code.load(OFFSET_NUMBER);
        code.branch_over(JEQ, abi.audit, next);
    }
    let next = code.reversed.len();
    match &machine.x32 {
        Some(x32) if listed(x32) => {
            code.calls(x32, X32_BIT, &answers, default);
            let native = code.reversed.len();
            code.calls(&machine.native, 0, &answers, default);
            code.branch(JGE, X32_BIT, native);
        }
        Some(_) => {
            // No call at all is what a tracer put there: no program of another kind.
            code.ret(KILL_PROCESS);
            code.ret(default);
            code.push(JEQ, 0, 1, NO_CALL);
            let native = code.reversed.len();
            code.calls(&machine.native, 0, &answers, default);
            code.branch(JGE, X32_BIT, native);
        }
        None => code.calls(&machine.native, 0, &answers, default),
    }
    code.load(OFFSET_NUMBER);
    code.branch_over(JEQ, machine.native.audit, next);
    code.load(OFFSET_ARCH);
    let mut code = code.reversed;
    code.reverse();
    if code.len() > LONGEST {
        return Err(Error::new(format!(
            "linux.seccomp: {} instructions are more than the kernel's {LONGEST}",
            code.len()
        )));
    }
    Ok(code)
}

/// The answers that the rules give, sorted by rows of the table and those of one row as the rules are: the first without
/// conditions counts, else the first whose conditions hold.
fn answers(profile: &Seccomp, default: u32) -> Result<Vec<Answer<'_>>> {
    let names: usize = profile.syscalls.iter().map(|rule| rule.names.len()).sum();
    let mut answers = Vec::with_capacity(names.min(1024));
    let mut before = 0;
    let mut counts = vec![0; TABLE.len()];
    for rule in &profile.syscalls {
        let verdict = action(&rule.action, rule.errno_ret).context(|| "linux.seccomp".to_owned())?;
        check(&rule.args)?;
        // A rule that says the default changes nothing, and would only hide later rules.
        if verdict == default {
            continue;
        }
        let mut rows = Vec::with_capacity(rule.names.len());
        for name in &rule.names {
            let Some(row) = row_after(before, name) else { continue };
            before = row;
            rows.push(row);
        }
        // A name that is there again says nothing new, and would multiply with the conditions.
        rows.sort_unstable();
        rows.dedup();
        for row in rows {
            let others = answers.len();
            let answer = |c| Answer { row: row as u16, conditions: Conditions::Arguments(c), verdict };
            answers.extend(alternatives(&rule.args).map(answer));
            counts[row] += answers.len() - others;
            if counts[row] > LONGEST {
                let name = TABLE[row].0;
                return Err(Error::new(format!("linux.seccomp: more than {LONGEST} conditions on {name}")));
            }
        }
    }
    answers.sort_by_key(|answer| answer.row);
    Ok(answers)
}

/// The answers for one call.
fn of<'s, 'a>(answers: &'s [Answer<'a>], row: usize) -> &'s [Answer<'a>] {
    let from = answers.partition_point(|answer| usize::from(answer.row) < row);
    let count = answers[from..].partition_point(|answer| usize::from(answer.row) == row);
    &answers[from..from + count]
}

fn check(args: &[SeccompArg]) -> Result<()> {
    for arg in args {
        if arg.index > 5 {
            return Err(Error::new(format!("linux.seccomp: argument index {} is above 5", arg.index)));
        }
        if !super::OPERATORS.contains(&arg.op.as_str()) {
            return Err(Error::new(format!("linux.seccomp: unknown operator {:?}", arg.op)));
        }
    }
    Ok(())
}

/// Conditions on different arguments must all hold. When one argument has several, each condition stands alone, as runc
/// has it (libseccomp takes one condition per argument). No conditions are one alternative.
fn alternatives(args: &[SeccompArg]) -> impl Iterator<Item = &[SeccompArg]> {
    let repeated = args.iter().enumerate().any(|(i, a)| args[..i].iter().any(|b| a.index == b.index));
    let whole = if repeated { None } else { Some(args) };
    whole.into_iter().chain(args.chunks(1).filter(move |_| repeated))
}

/// Whether a condition says anything where arguments are that wide: one that looks at no bit does not.
fn counts(arg: &SeccompArg, wide: bool) -> bool {
    let seen = if wide { u64::MAX } else { u64::from(u32::MAX) };
    arg.op != "SCMP_CMP_MASKED_EQ" || arg.value & seen != 0
}

/// The answer that a call always gets, whatever its arguments are.
fn always(answers: &[Answer<'_>], wide: bool) -> Option<u32> {
    let without = |conditions: &Conditions<'_>| match conditions {
        Conditions::Arguments(args) => !args.iter().any(|arg| counts(arg, wide)),
        Conditions::First(..) => false,
    };
    answers.iter().find(|answer| without(&answer.conditions)).map(|answer| answer.verdict)
}

/// Gives the calls that can be made through another one the same answer there. Their own arguments are in memory then, which
/// a filter does not see: what a rule says of the first is about the number of the call now, which is known, and what it says of
/// others is about the other call's.
fn through<'a>(machine: &Machine, answers: &[Answer<'a>]) -> Vec<Answer<'a>> {
    let mut all = answers.to_vec();
    for (name, door, number) in machine.through {
        let (Some(row), Some(door)) = (row_of(name), row_of(door)) else { continue };
        let own = of(answers, row);
        let answer = |args, verdict| Answer { row: door as u16, conditions: Conditions::First(*number, args), verdict };
        match always(own, false) {
            Some(verdict) => all.push(answer(&[], verdict)),
            None => all.extend(own.iter().map(|a| match a.conditions {
                Conditions::Arguments(args) | Conditions::First(_, args) => answer(args, a.verdict),
            })),
        }
    }
    all.sort_by_key(|answer| answer.row);
    all
}

/// A program, last instruction first.
struct Code {
    reversed: Vec<Instruction>,
}

impl Code {
    fn push(&mut self, code: u16, jt: u8, jf: u8, k: u32) {
        self.reversed.push(Instruction { code, jt, jf, k });
    }

    fn load(&mut self, offset: u32) {
        self.push(LOAD, 0, 0, offset);
    }

    fn ret(&mut self, verdict: u32) {
        self.push(RET, 0, 0, verdict);
    }

    /// `if accumulator OP k { what was there at `mark` } else { what came after }`.
    fn branch(&mut self, op: u16, k: u32, mark: usize) {
        let over = self.reversed.len() - mark;
        match u8::try_from(over) {
            Ok(distance) => self.push(op, distance, 0, k),
            // Conditional jumps reach 255 instructions; further goes by way of an unconditional one.
            Err(_) => {
                self.push(JUMP, 0, 0, over as u32);
                self.push(op, 0, 1, k);
            }
        }
    }

    /// `if accumulator OP k { what came after `mark` } else { what was there }`.
    fn branch_over(&mut self, op: u16, k: u32, mark: usize) {
        let over = self.reversed.len() - mark;
        match u8::try_from(over) {
            Ok(distance) => self.push(op, 0, distance, k),
            Err(_) => {
                self.push(JUMP, 0, 0, over as u32);
                self.push(op, 1, 0, k);
            }
        }
    }

    /// Answers all calls of an architecture, whose number (from `base` on) is in the accumulator.
    fn calls(&mut self, abi: &Abi, base: u32, answers: &[Answer<'_>], default: u32) {
        let ranges = ranges(abi, base, answers, default);
        self.search(&ranges, &mut |code, verdict| match verdict {
            Verdict::Plain(verdict) => code.ret(verdict),
            Verdict::Row(row) => {
                code.ret(default);
                for answer in of(answers, row).iter().rev() {
                    code.rule(abi.wide, answer.conditions, answer.verdict);
                }
            }
        });
    }

    /// A binary search over ranges; the call number is in the accumulator.
    fn search(&mut self, ranges: &[(u32, Verdict)], leaf: &mut dyn FnMut(&mut Self, Verdict)) {
        match ranges {
            [] => self.ret(KILL_PROCESS),
            [(_, verdict)] => leaf(self, *verdict),
            _ => {
                let (low, high) = ranges.split_at(ranges.len() / 2);
                self.search(high, leaf);
                let mark = self.reversed.len();
                self.search(low, leaf);
                self.branch(JGE, high[0].0, mark);
            }
        }
    }

    /// `if all conditions hold { return verdict }`, else what came after.
    fn rule(&mut self, wide: bool, conditions: Conditions<'_>, verdict: u32) {
        self.ret(verdict);
        let (first, args) = match conditions {
            Conditions::Arguments(args) => (None, args),
            Conditions::First(value, args) => (Some(value), args),
        };
        let mut rest = 1;
        for arg in args.iter().rev().filter(|arg| (first.is_none() || arg.index != 0) && counts(arg, wide)) {
            let before = self.reversed.len();
            if wide {
                self.test(arg, rest)
            } else {
                self.short_test(arg, rest)
            }
            rest += (self.reversed.len() - before) as u8;
        }
        if let Some(value) = first {
            self.push(JEQ, 0, rest, value.into());
            self.load(16);
        }
    }

    /// One condition: goes on behind when it holds, else jumps over the `rest` instructions after it.
    fn test(&mut self, arg: &SeccompArg, rest: u8) {
        let (low, high) = (16 + 8 * arg.index, 20 + 8 * arg.index);
        let halves = |v: u64| ((v >> 32) as u32, v as u32);
        let (value_high, value_low) = halves(arg.value);
        // `yes` and `no` are distances from the comparison of the lower half, which comes last.
        let mut equal = |yes: u8, no: u8| {
            self.push(JEQ, yes, no, value_low);
            self.load(low);
            self.push(JEQ, 0, no + 2, value_high);
            self.load(high);
        };
        match arg.op.as_str() {
            "SCMP_CMP_NE" => equal(rest, 0),
            "SCMP_CMP_GT" => self.above(arg, JGT, 0, rest),
            "SCMP_CMP_GE" => self.above(arg, JGE, 0, rest),
            "SCMP_CMP_LE" => self.above(arg, JGT, rest, 0),
            "SCMP_CMP_LT" => self.above(arg, JGE, rest, 0),
            "SCMP_CMP_MASKED_EQ" => {
                let (want_high, want_low) = halves(arg.value_two & arg.value);
                self.push(JEQ, 0, rest, want_low);
                self.push(AND, 0, 0, value_low);
                self.load(low);
                self.push(JEQ, 0, rest + 3, want_high);
                self.push(AND, 0, 0, value_high);
                self.load(high);
            }
            _ => equal(0, rest),
        }
    }

    fn above(&mut self, arg: &SeccompArg, last: u16, yes: u8, no: u8) {
        let (low, high) = (16 + 8 * arg.index, 20 + 8 * arg.index);
        let (value_high, value_low) = ((arg.value >> 32) as u32, arg.value as u32);
        self.push(last, yes, no, value_low);
        self.load(low);
        self.push(JEQ, 0, no + 2, value_high);
        self.push(JGT, yes + 3, 0, value_high);
        self.load(high);
    }

    /// As `test` for programs whose arguments have 32 bits.
    fn short_test(&mut self, arg: &SeccompArg, rest: u8) {
        let value = arg.value as u32;
        match arg.op.as_str() {
            "SCMP_CMP_NE" => self.push(JEQ, rest, 0, value),
            "SCMP_CMP_GT" => self.push(JGT, 0, rest, value),
            "SCMP_CMP_GE" => self.push(JGE, 0, rest, value),
            "SCMP_CMP_LE" => self.push(JGT, rest, 0, value),
            "SCMP_CMP_LT" => self.push(JGE, rest, 0, value),
            "SCMP_CMP_MASKED_EQ" => {
                self.push(JEQ, 0, rest, (arg.value_two & arg.value) as u32);
                self.push(AND, 0, 0, value);
            }
            _ => self.push(JEQ, 0, rest, value),
        }
        self.load(16 + 8 * arg.index);
    }
}

/// Neighbouring numbers with the same verdict, as (first number, verdict), from `base` up. Numbers beyond all that the profile
/// names are calls newer than the profile: where the default is an error they get ENOSYS, so that C libraries fall back to an
/// older call.
fn ranges(abi: &Abi, base: u32, answers: &[Answer<'_>], default: u32) -> Vec<(u32, Verdict)> {
    let mut calls: Vec<(u32, Verdict)> = Vec::with_capacity(answers.len());
    calls.extend(answers.chunk_by(|a, b| a.row == b.row).filter_map(|answer| {
        let row = usize::from(answer[0].row);
        let verdict = always(answer, abi.wide).map_or(Verdict::Row(row), Verdict::Plain);
        abi.number(row).map(|number| (base | number, verdict))
    }));
    calls.sort_unstable_by_key(|(number, _)| *number);
    let plain = Verdict::Plain(default);
    let mut ranges = Vec::with_capacity(128);
    ranges.push((base, plain));
    let mut put = |from: u32, verdict: Verdict| {
        if ranges.last().is_some_and(|(at, _)| *at == from) {
            ranges.pop();
        }
        if ranges.last().is_none_or(|(_, last)| *last != verdict) {
            ranges.push((from, verdict));
        }
    };
    for (i, (number, verdict)) in calls.iter().enumerate() {
        put(*number, *verdict);
        if calls.get(i + 1).is_none_or(|(next, _)| *next != number + 1) {
            put(number + 1, plain);
        }
    }
    if let Some((last, _)) = calls.last().filter(|_| default & 0xffff_0000 == ERRNO) {
        put(last + 1, Verdict::Plain(ENOSYS));
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::interpret::{Call, run};
    use crate::seccomp::machine::X86_64;
    use crate::spec::SeccompRule;
    use proptest::prelude::*;

    const AUDIT_X86_64: u32 = 0xc000_003e;
    const AUDIT_X86: u32 = 0x4000_0003;
    const ALLOW: u32 = 0x7fff_0000;
    const EPERM: u32 = 0x0005_0001;

    fn number(name: &str) -> u32 {
        TABLE.iter().find(|r| r.0 == name).unwrap().1[0] as u32
    }

    fn verdict(code: &[Instruction], arch: u32, number: u32, args: [u64; 6]) -> u32 {
        run(code, &Call { arch, number, args })
    }

    fn rule_for(names: &[&str], action: &str, args: Vec<SeccompArg>) -> SeccompRule {
        SeccompRule {
            names: names.iter().map(|s| (*s).to_owned()).collect(),
            action: action.to_owned(),
            errno_ret: None,
            args,
        }
    }

    fn profile(rules: Vec<SeccompRule>) -> Seccomp {
        Seccomp {
            default_action: "SCMP_ACT_ERRNO".to_owned(),
            architectures: vec!["SCMP_ARCH_X86".to_owned()],
            syscalls: rules,
            ..Seccomp::default()
        }
    }

    fn arg(op: &str, value: u64, value_two: u64) -> SeccompArg {
        SeccompArg { index: 1, value, value_two, op: op.to_owned() }
    }

    #[test]
    fn calls_get_the_answer_that_the_profile_names() {
        let mut rules = vec![rule_for(&["read", "write", "nonsense"], "SCMP_ACT_ALLOW", vec![])];
        rules.push(rule_for(&["reboot"], "SCMP_ACT_KILL_PROCESS", vec![]));
        let code = compile_for(&X86_64, &profile(rules)).unwrap();
        let at = |arch, nr| verdict(&code, arch, nr, [0; 6]);
        assert_eq!(at(AUDIT_X86_64, number("read")), ALLOW);
        assert_eq!(at(AUDIT_X86_64, number("open")), EPERM);
        assert_eq!(at(AUDIT_X86_64, number("reboot")), KILL_PROCESS);
        assert_eq!(at(AUDIT_X86_64, number("openat2")), ENOSYS, "newer than all that is named");
        assert_eq!(at(AUDIT_X86, 3), ALLOW, "x86 read");
        assert_eq!(at(AUDIT_X86, 5), EPERM, "x86 open");
        assert_eq!(at(AUDIT_X86_64, X32_BIT), KILL_PROCESS, "x32 is not listed");
        assert_eq!(at(0x1234, 0), KILL_PROCESS, "another architecture");
    }

    #[test]
    fn what_no_kernel_knows_is_an_error() {
        let wrong = |r: SeccompRule| compile_for(&X86_64, &profile(vec![r])).unwrap_err().to_string();
        assert!(wrong(rule_for(&["read"], "SCMP_ACT_X", vec![])).contains("SCMP_ACT_X"));
        assert!(wrong(rule_for(&["read"], "SCMP_ACT_LOG", vec![arg("SCMP_CMP_X", 0, 0)])).contains("SCMP_CMP_X"));
        let far = SeccompArg { index: 6, ..arg("SCMP_CMP_EQ", 0, 0) };
        assert!(wrong(rule_for(&["read"], "SCMP_ACT_LOG", vec![far])).contains("index 6"));
    }

    proptest! {
        #[test]
        fn conditions_compare_64_bits(
            op in prop::sample::select(super::super::OPERATORS.to_vec()),
            value in prop_oneof![Just(0), Just(u64::MAX), Just(1 << 32), Just(u64::from(u32::MAX)), any::<u64>()],
            value_two in any::<u64>(),
            got in prop_oneof![any::<u64>(), Just(0), Just(1 << 32), Just(u64::from(u32::MAX))],
            near in prop::option::of(-1_i64..=1),
        ) {
            let got = near.map_or(got, |d| value.wrapping_add_signed(d));
            let two = if op == "SCMP_CMP_MASKED_EQ" && near.is_some() { got & value } else { value_two };
            let holds = match op {
                "SCMP_CMP_EQ" => got == value,
                "SCMP_CMP_NE" => got != value,
                "SCMP_CMP_LT" => got < value,
                "SCMP_CMP_LE" => got <= value,
                "SCMP_CMP_GT" => got > value,
                "SCMP_CMP_GE" => got >= value,
                _ => got & value == two & value,
            };
            let code = compile_for(&X86_64, &profile(vec![rule_for(&["read"], "SCMP_ACT_ALLOW", vec![arg(op, value, two)])])).unwrap();
            let want = if holds { ALLOW } else { EPERM };
            prop_assert_eq!(verdict(&code, AUDIT_X86_64, number("read"), [7, got, 7, 7, 7, 7]), want);
        }

        #[test]
        fn any_set_of_calls_is_told_apart(chosen in prop::collection::btree_set(0..TABLE.len(), 0..TABLE.len())) {
            let names: Vec<&str> = chosen.iter().map(|i| TABLE[*i].0).collect();
            let code = compile_for(&X86_64, &profile(vec![rule_for(&names, "SCMP_ACT_ALLOW", vec![])])).unwrap();
            let last = chosen.iter().map(|i| TABLE[*i].1[0]).max().unwrap_or(-1);
            for (i, row) in TABLE.iter().enumerate().filter(|(_, r)| r.1[0] >= 0) {
                let want = if chosen.contains(&i) { ALLOW } else if row.1[0] > last && last >= 0 { ENOSYS } else { EPERM };
                prop_assert_eq!(verdict(&code, AUDIT_X86_64, row.1[0] as u32, [0; 6]), want, "{}", row.0);
            }
        }
    }

    #[test]
    fn the_most_scattered_profile_still_fits() {
        let names = TABLE.iter().step_by(2).map(|row| row.0.to_owned()).collect();
        let rule = crate::spec::SeccompRule { names, action: "SCMP_ACT_ALLOW".to_owned(), ..Default::default() };
        let profile = Seccomp {
            default_action: "SCMP_ACT_ERRNO".to_owned(),
            architectures: ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"].map(str::to_owned).to_vec(),
            syscalls: vec![rule],
            ..Seccomp::default()
        };
        assert!(compile_for(&X86_64, &profile).unwrap().len() < 4096);
    }

    #[test]
    fn a_profile_that_multiplies_is_refused_before_it_fills_the_memory() {
        // Names times conditions: as text this is a megabyte, as rules it would be gigabytes.
        let names = vec!["read"; 20_000];
        let again = rule_for(&names, "SCMP_ACT_ALLOW", vec![arg("SCMP_CMP_EQ", 1, 0); 4000]);
        let code = compile_for(&X86_64, &profile(vec![again.clone()]));
        assert!(code.unwrap_err().to_string().contains("instructions are more than"));
        let error = compile_for(&X86_64, &profile(vec![again.clone(), again])).unwrap_err();
        assert!(error.to_string().contains("conditions on read"), "{error}");
        assert!(compile_for(&X86_64, &profile(vec![rule_for(&names, "SCMP_ACT_ALLOW", Vec::new())])).is_ok());
    }

    #[test]
    fn the_table_is_sorted_for_the_look_up() {
        assert!(TABLE.windows(2).all(|w| w[0].0 < w[1].0));
    }
}
