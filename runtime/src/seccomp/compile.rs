//! The compiler: rules -> ranges of call numbers -> a decision tree of BPF instructions.

use std::collections::BTreeMap;

use gantry_sys::seccomp::Instruction;

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
const AUDIT_X86_64: u32 = 0xc000_003e;
const AUDIT_X86: u32 = 0x4000_0003;
const X32_BIT: u32 = 0x4000_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const ENOSYS: u32 = 0x0005_0000 | 38;

/// What happens to one call: conditional answers in order, then the last one.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
struct Answer {
    conditional: Vec<(Vec<SeccompArg>, u32)>,
    always: Option<u32>,
}

/// Compiles a profile for this machine (x86-64).
///
/// # Errors
/// An action, operator or argument index is unknown, or the filter is longer than the kernel takes.
pub fn compile(profile: &Seccomp) -> Result<Vec<Instruction>> {
    let what = || "linux.seccomp".to_owned();
    let default = action(&profile.default_action, profile.default_errno_ret).context(what)?;
    let listed = |arch: &str| profile.architectures.iter().any(|a| a == arch);
    let tree = |column: fn(&(&str, i16, i16, i16)) -> i16, base: u32| -> Result<(Vec<Instruction>, u32)> {
        let answers = answers(profile, column, base, default)?;
        let last = answers.keys().next_back().copied().unwrap_or(base);
        Ok((search(&ranges(&answers, default, base)), last))
    };
    let (native, _) = tree(|row| row.1, 0)?;
    let x32 = if listed("SCMP_ARCH_X32") { tree(|row| row.3, X32_BIT)?.0 } else { vec![ret(KILL_PROCESS)] };
    let mut code = vec![load(OFFSET_ARCH)];
    let x86_64 = [vec![load(OFFSET_NUMBER)], branch(JGE, X32_BIT, x32, native)].concat();
    let other = if listed("SCMP_ARCH_X86") {
        let x86 = [vec![load(OFFSET_NUMBER)], tree(|row| row.2, 0)?.0].concat();
        branch(JEQ, AUDIT_X86, x86, vec![ret(KILL_PROCESS)])
    } else {
        vec![ret(KILL_PROCESS)]
    };
    code.extend(branch(JEQ, AUDIT_X86_64, x86_64, other));
    if code.len() > 4096 {
        return Err(Error::new(format!("linux.seccomp: {} instructions are more than the kernel's 4096", code.len())));
    }
    Ok(code)
}

/// The answer for each call number that a rule names.
fn answers(
    profile: &Seccomp,
    column: fn(&(&str, i16, i16, i16)) -> i16,
    base: u32,
    default: u32,
) -> Result<BTreeMap<u32, Answer>> {
    let mut answers: BTreeMap<u32, Answer> = BTreeMap::new();
    for rule in &profile.syscalls {
        let verdict = action(&rule.action, rule.errno_ret).context(|| "linux.seccomp".to_owned())?;
        check(&rule.args)?;
        // A rule that says the default changes nothing, and would only hide later rules.
        if verdict == default {
            continue;
        }
        for name in &rule.names {
            let row = TABLE.binary_search_by(|row| row.0.cmp(name)).ok().map(|i| &TABLE[i]);
            let Some(number) = row.and_then(|row| u32::try_from(column(row)).ok()) else { continue };
            let answer = answers.entry(base | number).or_default();
            if rule.args.is_empty() {
                answer.always.get_or_insert(verdict);
            } else {
                answer.conditional.extend(alternatives(&rule.args).into_iter().map(|c| (c, verdict)));
            }
        }
    }
    Ok(answers)
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
/// has it (libseccomp takes one condition per argument).
fn alternatives(args: &[SeccompArg]) -> Vec<Vec<SeccompArg>> {
    let repeated = args.iter().enumerate().any(|(i, a)| args[..i].iter().any(|b| a.index == b.index));
    if repeated { args.iter().map(|a| vec![a.clone()]).collect() } else { vec![args.to_vec()] }
}

/// Neighbouring numbers with the same answer, as (first number, code that ends with an answer), from 0 up. Numbers beyond
/// all that the profile names are calls newer than the profile: where the default is an error they get ENOSYS, so that C
/// libraries fall back to an older call.
fn ranges(answers: &BTreeMap<u32, Answer>, default: u32, base: u32) -> Vec<(u32, Vec<Instruction>)> {
    let plain = Answer { conditional: Vec::new(), always: Some(default) };
    let mut ranges: Vec<(u32, Answer)> = vec![(base, plain.clone())];
    let mut put = |from: u32, answer: &Answer| {
        if ranges.last().is_some_and(|(at, _)| *at == from) {
            ranges.pop();
        }
        if ranges.last().is_none_or(|(_, last)| last != answer) {
            ranges.push((from, answer.clone()));
        }
    };
    for (number, answer) in answers {
        put(*number, answer);
        if !answers.contains_key(&(number + 1)) {
            put(number + 1, &plain);
        }
    }
    if let Some(last) = answers.keys().next_back().filter(|_| default & 0xffff_0000 == 0x0005_0000) {
        put(last + 1, &Answer { conditional: Vec::new(), always: Some(ENOSYS) });
    }
    ranges.into_iter().map(|(from, answer)| (from, body(&answer, default))).collect()
}

/// A binary search over ranges; the call number is in the accumulator.
fn search(ranges: &[(u32, Vec<Instruction>)]) -> Vec<Instruction> {
    match ranges {
        [] => vec![ret(KILL_PROCESS)],
        [(_, code)] => code.clone(),
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            branch(JGE, high[0].0, search(high), search(low))
        }
    }
}

/// `if accumulator OP k { yes } else { no }`; both parts end with an answer.
fn branch(op: u16, k: u32, yes: Vec<Instruction>, no: Vec<Instruction>) -> Vec<Instruction> {
    let mut code = match u8::try_from(no.len()) {
        Ok(distance) => vec![Instruction { code: op, jt: distance, jf: 0, k }],
        // Conditional jumps reach 255 instructions; further goes by way of an unconditional one.
        Err(_) => vec![
            Instruction { code: op, jt: 0, jf: 1, k },
            Instruction { code: JUMP, jt: 0, jf: 0, k: no.len() as u32 },
        ],
    };
    code.extend(no);
    code.extend(yes);
    code
}

fn body(answer: &Answer, default: u32) -> Vec<Instruction> {
    let mut code = Vec::new();
    for (conditions, verdict) in &answer.conditional {
        code.extend(rule(conditions, *verdict));
    }
    code.push(ret(answer.always.unwrap_or(default)));
    code
}

/// `if all conditions hold { return verdict }`, else go on behind.
fn rule(conditions: &[SeccompArg], verdict: u32) -> Vec<Instruction> {
    let mut code = vec![ret(verdict)];
    for condition in conditions.iter().rev() {
        code = [test(condition, code.len() as u8), code].concat();
    }
    code
}

/// One condition: goes on behind when it holds, else jumps over the `rest` instructions after it.
fn test(arg: &SeccompArg, rest: u8) -> Vec<Instruction> {
    let (low, high) = (16 + 8 * arg.index, 20 + 8 * arg.index);
    let halves = |v: u64| ((v >> 32) as u32, v as u32);
    let (value_high, value_low) = halves(arg.value);
    let jump = |code, k, jt, jf| Instruction { code, jt, jf, k };
    // (compare upper, compare lower): `yes` and `no` are distances from the lower comparison.
    let equal =
        |yes: u8, no: u8| vec![load(high), jump(JEQ, value_high, 0, no + 2), load(low), jump(JEQ, value_low, yes, no)];
    let above = |or_equal: bool, yes: u8, no: u8| {
        let last = if or_equal { JGE } else { JGT };
        vec![
            load(high),
            jump(JGT, value_high, yes + 3, 0),
            jump(JEQ, value_high, 0, no + 2),
            load(low),
            jump(last, value_low, yes, no),
        ]
    };
    match arg.op.as_str() {
        "SCMP_CMP_NE" => equal(rest, 0),
        "SCMP_CMP_GT" => above(false, 0, rest),
        "SCMP_CMP_GE" => above(true, 0, rest),
        "SCMP_CMP_LE" => above(false, rest, 0),
        "SCMP_CMP_LT" => above(true, rest, 0),
        "SCMP_CMP_MASKED_EQ" => {
            let (want_high, want_low) = halves(arg.value_two);
            let and = |k| Instruction { code: AND, jt: 0, jf: 0, k };
            vec![
                load(high),
                and(value_high),
                jump(JEQ, want_high, 0, rest + 3),
                load(low),
                and(value_low),
                jump(JEQ, want_low, 0, rest),
            ]
        }
        _ => equal(0, rest),
    }
}

fn load(offset: u32) -> Instruction {
    Instruction { code: LOAD, jt: 0, jf: 0, k: offset }
}

fn ret(verdict: u32) -> Instruction {
    Instruction { code: RET, jt: 0, jf: 0, k: verdict }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::SeccompRule;
    use proptest::prelude::*;

    const ALLOW: u32 = 0x7fff_0000;
    const EPERM: u32 = 0x0005_0001;

    fn number(name: &str) -> u32 {
        TABLE.iter().find(|r| r.0 == name).unwrap().1 as u32
    }

    /// Runs a filter as the kernel does.
    fn verdict(code: &[Instruction], arch: u32, nr: u32, args: [u64; 6]) -> u32 {
        let word = |offset: u32| match offset {
            0 => nr,
            4 => arch,
            o => {
                let arg = args[(o as usize - 16) / 8];
                if o % 8 == 0 { arg as u32 } else { (arg >> 32) as u32 }
            }
        };
        let (mut a, mut pc) = (0_u32, 0_usize);
        loop {
            let i = code[pc];
            pc += 1;
            let jump = |holds: bool| usize::from(if holds { i.jt } else { i.jf });
            match i.code {
                LOAD => a = word(i.k),
                AND => a &= i.k,
                JUMP => pc += i.k as usize,
                JEQ => pc += jump(a == i.k),
                JGT => pc += jump(a > i.k),
                JGE => pc += jump(a >= i.k),
                RET => return i.k,
                other => panic!("instruction {other:#x}"),
            }
        }
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
        let code = compile(&profile(rules)).unwrap();
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
        let wrong = |r: SeccompRule| compile(&profile(vec![r])).unwrap_err().to_string();
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
                _ => got & value == two,
            };
            let code = compile(&profile(vec![rule_for(&["read"], "SCMP_ACT_ALLOW", vec![arg(op, value, two)])])).unwrap();
            let want = if holds { ALLOW } else { EPERM };
            prop_assert_eq!(verdict(&code, AUDIT_X86_64, number("read"), [7, got, 7, 7, 7, 7]), want);
        }

        #[test]
        fn any_set_of_calls_is_told_apart(chosen in prop::collection::btree_set(0..TABLE.len(), 0..TABLE.len())) {
            let names: Vec<&str> = chosen.iter().map(|i| TABLE[*i].0).collect();
            let code = compile(&profile(vec![rule_for(&names, "SCMP_ACT_ALLOW", vec![])])).unwrap();
            let last = chosen.iter().map(|i| TABLE[*i].1).max().unwrap_or(-1);
            for (i, row) in TABLE.iter().enumerate().filter(|(_, r)| r.1 >= 0) {
                let want = if chosen.contains(&i) { ALLOW } else if row.1 > last && last >= 0 { ENOSYS } else { EPERM };
                prop_assert_eq!(verdict(&code, AUDIT_X86_64, row.1 as u32, [0; 6]), want, "{}", row.0);
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
        assert!(compile(&profile).unwrap().len() < 4096);
    }

    #[test]
    fn the_table_is_sorted_for_the_look_up() {
        assert!(TABLE.windows(2).all(|w| w[0].0 < w[1].0));
    }
}
