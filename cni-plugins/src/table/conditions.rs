//! Conditions on host ports, written as arguments of iptables. The common matches are understood; any other is an error
//! that names it. Pure.

use gantry_net::Prefix;
use gantry_net::nft::{Expr, R0};

use super::packet::{address_in, family};
use crate::spec::{Error, Result};

/// Reads conditions for packets of a family.
///
/// # Errors
/// An argument is not understood, or its value is wrong (7, naming it).
pub fn read(key: &str, words: &[String], four: bool) -> Result<Vec<Expr<'static>>> {
    let mut steps = Vec::new();
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
            // The matches themselves are told by their options.
            "-m" | "--match" => match value()? {
                "mark" | "addrtype" | "comment" | "conntrack" | "state" => {}
                other => return Err(unknown(key, &format!("-m {other}"))),
            },
            "--comment" => drop(value()?),
            _ => {
                let step = condition(key, option, value()?, four, !negated)?;
                steps.extend(step);
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
    Ok(steps)
}

fn unknown(key: &str, what: &str) -> Error {
    let known = "-s, -d, -i, -p, --mark, --src-type, --dst-type, --ctstate and --comment are";
    Error::config(format!("{key}: {what} is not understood")).details(known)
}

fn condition(key: &str, option: &str, value: &str, four: bool, wanted: bool) -> Result<Vec<Expr<'static>>> {
    let wrong = || Error::config(format!("{key}: {option} {value:?} is wrong"));
    let f = family(four);
    let same = |bytes: Vec<u8>| Expr::Compare(R0, wanted, bytes);
    Ok(match option {
        "-s" | "--source" | "--src" => address_in(&f, f.source, network(value, four).ok_or_else(wrong)?, wanted),
        "-d" | "--destination" | "--dst" => {
            address_in(&f, f.destination, network(value, four).ok_or_else(wrong)?, wanted)
        }
        "-i" | "--in-interface" => {
            let (name, end) = match value.strip_suffix('+') {
                Some(begin) => (begin, &b""[..]),
                None => (value, &b"\0"[..]),
            };
            if name.is_empty() && value != "+" || name.len() > 15 {
                return Err(wrong());
            }
            if value == "+" {
                return if wanted { Ok(Vec::new()) } else { Err(wrong()) };
            }
            vec![Expr::Meta(6, R0), same([name.as_bytes(), end].concat())]
        }
        "-p" | "--protocol" => {
            let number = match value.to_ascii_lowercase().as_str() {
                "all" if wanted => return Ok(Vec::new()),
                "tcp" => 6,
                "udp" => 17,
                "sctp" => 132,
                other => other.parse().map_err(|_| wrong())?,
            };
            vec![Expr::Meta(16, R0), same(vec![number])]
        }
        "--mark" => {
            let number = |text: &str| match text.strip_prefix("0x") {
                Some(hex) => u32::from_str_radix(hex, 16).ok(),
                None => text.parse().ok(),
            };
            let (mark, mask) = match value.split_once('/') {
                Some((mark, mask)) => (number(mark), number(mask)),
                None => (number(value), Some(u32::MAX)),
            };
            let (mark, mask) = mark.zip(mask).ok_or_else(wrong)?;
            vec![Expr::Mark(R0), Expr::Mask(R0, mask.to_ne_bytes().to_vec()), same(mark.to_ne_bytes().to_vec())]
        }
        "--src-type" | "--dst-type" => {
            let kind: u32 = match value {
                "UNICAST" => 1,
                "LOCAL" => 2,
                "BROADCAST" => 3,
                "MULTICAST" => 5,
                _ => return Err(wrong()),
            };
            let load = if option == "--src-type" { Expr::FibSource(R0) } else { Expr::FibDestination(R0) };
            vec![load, same(kind.to_ne_bytes().to_vec())]
        }
        "--ctstate" | "--state" if wanted => {
            let bit = |state: &str| match state {
                "INVALID" => Some(1),
                "ESTABLISHED" => Some(2),
                "RELATED" => Some(4),
                "NEW" => Some(8),
                _ => None,
            };
            let bits = value.split(',').map(bit).try_fold(0, |all, bit| bit.map(|b: u32| all | b));
            vec![Expr::CtState(bits.ok_or_else(wrong)?)]
        }
        _ => return Err(unknown(key, &if wanted { option.to_owned() } else { format!("! {option}") })),
    })
}

/// An address or a network of the family.
fn network(text: &str, four: bool) -> Option<Prefix> {
    let prefix = text.parse().ok().or_else(|| text.parse().ok().map(Prefix::host))?;
    (prefix.ip.is_ipv4() == four).then(|| prefix.network())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn try_read(text: &str) -> Result<Vec<Expr<'static>>> {
        let words: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
        read("conditionsV4", &words, true)
    }

    #[test]
    fn the_common_matches_are_understood() {
        for (text, steps) in [
            ("", 0),
            ("! -s 192.0.2.0/24 -d 198.51.100.1", 6),
            ("-i eth0 ! --in-interface=veth+", 4),
            ("-p tcp", 2),
            ("-m mark ! --mark 0x4000/0x4000", 3),
            ("-m addrtype --dst-type LOCAL", 2),
            ("-m conntrack --ctstate NEW,RELATED", 1),
            ("-m comment --comment why", 0),
        ] {
            assert_eq!(try_read(text).unwrap().len(), steps, "{text}");
        }
        let begin = try_read("-i veth+").unwrap();
        assert!(matches!(&begin[1], Expr::Compare(_, true, bytes) if bytes == b"veth"));
        let whole = try_read("! -i eth0").unwrap();
        assert!(matches!(&whole[1], Expr::Compare(_, false, bytes) if bytes == b"eth0\0"));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (text, part) in [
            ("-m multiport --dports 80", "-m multiport"),
            ("-j ACCEPT", "-j"),
            ("--tcp-flags SYN", "--tcp-flags"),
            ("-s", "-s needs a value"),
            ("-s fd00::/8", "fd00::/8"),
            ("-s 10.0.0.0/33", "10.0.0.0/33"),
            ("! ! -s 10.0.0.0/8", "two"),
            ("-s 10.0.0.0/8 !", "nothing follows"),
            ("! -m mark", "means nothing"),
            ("--mark x", "--mark"),
            ("-i averylongdevicename", "averylong"),
            ("! --ctstate NEW", "! --ctstate"),
        ] {
            let error = try_read(text).unwrap_err();
            assert!(error.message.contains(part) && error.message.contains("conditionsV4"), "{text}: {error}");
        }
    }
}
