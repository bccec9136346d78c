//! Conditions as arguments of iptables: `! -s 192.0.2.0/24 -m mark --mark 0x1/0x1`.

use super::{Field, Test};
use crate::spec::{Error, Result};

/// Matches that iptables loads by name; what they look at is told by their options.
const MATCHES: [&str; 9] = ["mark", "addrtype", "comment", "conntrack", "state", "iprange", "multiport", "tcp", "udp"];

/// What a packet must pass.
pub(super) fn read(key: &str, words: &[String]) -> Result<Vec<Test>> {
    let mut tests = Vec::new();
    let mut at = words.iter().map(String::as_str);
    let mut negated = false;
    while let Some(word) = at.next() {
        if word == "!" {
            if negated {
                return Err(Error::config(format!("{key}: two \"!\" in a row")));
            }
            negated = true;
            continue;
        }
        let (option, written) = match word.split_once('=') {
            Some((option, value)) if option.starts_with("--") => (option, Some(value)),
            _ => (word, None),
        };
        let mut value = || {
            let value = written.or_else(|| at.next());
            value.ok_or_else(|| Error::config(format!("{key}: {option} needs a value")))
        };
        match option {
            "-4" | "--ipv4" | "-6" | "--ipv6" if !negated => {
                let family = if option.ends_with('4') { "ipv4" } else { "ipv6" };
                tests.push(test(Field::Family, vec![family.into()], true, option));
                continue;
            }
            "-m" | "--match" => match value()? {
                name if MATCHES.contains(&name) => {}
                other => return Err(unknown(key, &format!("-m {other}"))),
            },
            "--comment" => drop(value()?),
            _ => {
                tests.extend(condition(key, option, value()?, !negated)?);
                negated = false;
                continue;
            }
        }
        if negated {
            return Err(Error::config(format!("{key}: \"!\" before {option} means nothing")));
        }
    }
    if negated {
        return Err(Error::config(format!("{key}: nothing follows \"!\"")));
    }
    Ok(tests)
}

fn unknown(key: &str, what: &str) -> Error {
    let known = "-4, -6, -s, -d, -i, -p, --src-range, --dst-range, --sport, --dport, --mark, --src-type, --dst-type, --ctstate \
                 and --comment are";
    Error::config(format!("{key}: {what} is not understood")).details(known)
}

fn test(field: Field, values: Vec<String>, wanted: bool, said: &str) -> Test {
    Test { field, values, wanted, said: said.to_owned() }
}

fn condition(key: &str, option: &str, value: &str, wanted: bool) -> Result<Option<Test>> {
    let several = || value.split(',').map(str::to_owned).collect::<Vec<_>>();
    let one = || vec![value.to_owned()];
    let wrong = || Error::config(format!("{key}: {option} {value:?} is wrong"));
    let (field, values) = match option {
        "-s" | "--source" | "--src" => (Field::Source, several()),
        "-d" | "--destination" | "--dst" => (Field::Destination, several()),
        "--src-range" => (Field::Source, one()),
        "--dst-range" => (Field::Destination, one()),
        // Its `*` is a letter as any other.
        "-i" | "--in-interface" if value.contains('*') => return Err(wrong()),
        "-i" | "--in-interface" => {
            (Field::Device, vec![value.strip_suffix('+').map_or(value.into(), |n| format!("{n}*"))])
        }
        "-p" | "--protocol" if matches!(value, "all" | "0") && wanted => return Ok(None),
        "-p" | "--protocol" => (Field::Protocol, one()),
        "--sport" | "--source-port" | "--sports" | "--source-ports" => (Field::SourcePort, several()),
        "--dport" | "--destination-port" | "--dports" | "--destination-ports" => (Field::DestinationPort, several()),
        "--mark" => {
            let (mark, mask) = value.split_once('/').unwrap_or((value, "0xffffffff"));
            (Field::Mark(super::number(mask).ok_or_else(wrong)?), vec![mark.to_owned()])
        }
        "--src-type" => (Field::SourceKind, one()),
        "--dst-type" => (Field::DestinationKind, one()),
        "--ctstate" | "--state" => (Field::State, several()),
        _ => return Err(unknown(key, &if wanted { option.to_owned() } else { format!("! {option}") })),
    };
    Ok(Some(test(field, values, wanted, option)))
}

#[cfg(test)]
mod tests {
    use gantry_net::nft::Expr;

    use crate::spec::Result;
    use crate::table::conditions::{Steps, read};

    fn try_read(text: &str) -> Result<Vec<Steps>> {
        let words: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
        read("conditionsV4", &words, true)
    }

    #[test]
    fn the_common_matches_are_understood() {
        for (text, steps) in [
            ("! -s 192.0.2.0/24 -d 198.51.100.1", vec![6]),
            ("-i eth0 ! --in-interface=veth+", vec![4]),
            ("-p tcp", vec![2]),
            ("-m mark ! --mark 0x4000/0x4000", vec![3]),
            ("-m addrtype --dst-type LOCAL", vec![2]),
            ("-m conntrack --ctstate NEW,RELATED", vec![1]),
            ("! --ctstate INVALID", vec![1]),
            ("-m iprange --src-range 192.0.2.1-192.0.2.9", vec![2]),
            ("-m multiport --sports 1024:2048,4000", vec![2, 2]),
            ("-s 192.0.2.1,192.0.2.2 -i a,b", vec![5, 5]),
            ("! -s 192.0.2.1,192.0.2.2", vec![6]),
        ] {
            let lengths: Vec<_> = try_read(text).unwrap().iter().map(Vec::len).collect();
            assert_eq!(lengths, steps, "{text}");
        }
        for text in ["", "-m comment --comment why", "-p all", "-4", "-i +"] {
            assert_eq!(try_read(text).unwrap(), Vec::<Steps>::new(), "{text}");
        }
        let begin = try_read("-i veth+").unwrap();
        assert!(matches!(&begin[0][1], Expr::Compare(_, true, bytes) if bytes == b"veth"));
        let whole = try_read("! -i eth0").unwrap();
        assert!(matches!(&whole[0][1], Expr::Compare(_, false, bytes) if bytes == b"eth0\0"));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (text, part) in [
            ("-m set --match-set friends src", "-m set"),
            ("-j ACCEPT", "-j"),
            ("--tcp-flags SYN", "--tcp-flags"),
            ("-s", "-s needs a value"),
            ("-s fd00::/8", "fd00::/8"),
            ("-s 10.0.0.0/33", "10.0.0.0/33"),
            ("--src-range 10.0.0.2-10.0.0.1", "10.0.0.2-10.0.0.1"),
            ("! ! -s 10.0.0.0/8", "two"),
            ("-s 10.0.0.0/8 !", "nothing follows"),
            ("!", "nothing follows"),
            ("! -m mark", "means nothing"),
            ("--mark x", "--mark"),
            ("-i averylongdevicename", "averylong"),
            ("-i eth*", "eth*"),
            ("--ctstate NEW,OLD", "OLD"),
        ] {
            let error = try_read(text).unwrap_err();
            assert!(error.message.contains(part) && error.message.contains("conditionsV4"), "{text}: {error}");
        }
    }
}
