//! Conditions as expressions of nft: `ip saddr != { 192.0.2.0/24, 198.51.100.7 } iifname "eth0"`.

use std::iter::Peekable;
use std::vec::IntoIter;

use super::{Field, Test, number};
use crate::spec::{Error, Result};

/// What a packet must pass.
pub(super) fn read(key: &str, text: &str) -> Result<Vec<Test>> {
    let mut at = Reader { key, words: words(key, text)?.into_iter().peekable() };
    let mut tests = Vec::new();
    while let Some(word) = at.words.next() {
        tests.extend(at.condition(&word)?);
    }
    Ok(tests)
}

/// Words, signs and texts in quotes, each by itself.
fn words(key: &str, text: &str) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(&c) = chars.peek() {
        let word: String = match c {
            _ if c.is_whitespace() => {
                chars.next();
                continue;
            }
            '"' => {
                chars.next();
                let inside: String = chars.by_ref().take_while(|c| *c != '"').collect();
                // Without its other end all that is left would be one text.
                if text.matches('"').count() % 2 == 1 {
                    return Err(Error::config(format!("{key}: a quote has no end")));
                }
                inside
            }
            '{' | '}' | ',' | '&' | ';' | '|' | '.' => chars.by_ref().take(1).collect(),
            '!' | '=' | '<' | '>' => {
                let mut sign = String::from(c);
                chars.next();
                sign.extend(chars.next_if_eq(&'='));
                sign
            }
            _ => {
                let mut word = String::new();
                while let Some(c) = chars.next_if(|c| !c.is_whitespace() && !"\"{},&;|!=<>".contains(*c)) {
                    word.push(c);
                }
                word
            }
        };
        words.push(word);
    }
    Ok(words)
}

struct Reader<'a> {
    key: &'a str,
    words: Peekable<IntoIter<String>>,
}

impl Reader<'_> {
    /// One condition that begins with a word; a transport's port also says which transport.
    fn condition(&mut self, first: &str) -> Result<Vec<Test>> {
        let (field, said) = match first {
            "iifname" | "iif" => (Field::Device, first.to_owned()),
            "mark" => (Field::Mark(u32::MAX), first.to_owned()),
            "counter" => return Ok(Vec::new()),
            "comment" => {
                self.word("comment")?;
                return Ok(Vec::new());
            }
            "ip" | "ip6" | "meta" | "ct" | "tcp" | "udp" | "sctp" | "dccp" | "udplite" | "th" => {
                let second = self.word(first)?;
                let said = format!("{first} {second}");
                (self.field(first, &second)?, said)
            }
            "fib" => {
                let (which, what) = (self.word("fib")?, self.word("fib")?);
                let said = format!("fib {which} {what}");
                match (which.as_str(), what.as_str()) {
                    ("saddr", "type") => (Field::SourceKind, said),
                    ("daddr", "type") => (Field::DestinationKind, said),
                    _ => return Err(self.unknown(&said)),
                }
            }
            other => return Err(self.unknown(other)),
        };
        let mut tests = match first {
            "ip" | "ip6" if field != Field::Protocol => vec![family_of(first)],
            "tcp" | "udp" | "sctp" | "dccp" | "udplite" => {
                vec![Test { field: Field::Protocol, values: vec![first.into()], wanted: true, said: first.into() }]
            }
            _ => Vec::new(),
        };
        let field = match field {
            Field::Mark(_) => Field::Mark(self.mask(&said)?),
            other => other,
        };
        let wanted = match self.words.next_if(|w| matches!(w.as_str(), "!=" | "==" | "<" | ">" | "<=" | ">=" | "!")) {
            None => true,
            Some(sign) if sign == "==" => true,
            Some(sign) if sign == "!=" => false,
            Some(sign) => return Err(self.unknown(&format!("{said} {sign}"))),
        };
        tests.push(Test { field, values: self.values(&said, field == Field::State)?, wanted, said });
        Ok(tests)
    }

    fn field(&self, first: &str, second: &str) -> Result<Field> {
        Ok(match (first, second) {
            ("ip" | "ip6", "saddr") => Field::Source,
            ("ip" | "ip6", "daddr") => Field::Destination,
            ("ip", "protocol") | ("ip6", "nexthdr") | ("meta", "l4proto") => Field::Protocol,
            ("meta", "iifname" | "iif") => Field::Device,
            ("meta", "nfproto") => Field::Family,
            ("meta", "mark") => Field::Mark(u32::MAX),
            ("ct", "state") => Field::State,
            ("tcp" | "udp" | "sctp" | "dccp" | "udplite" | "th", "sport") => Field::SourcePort,
            ("tcp" | "udp" | "sctp" | "dccp" | "udplite" | "th", "dport") => Field::DestinationPort,
            _ => return Err(self.unknown(&format!("{first} {second}"))),
        })
    }

    /// What of a mark is compared.
    fn mask(&mut self, said: &str) -> Result<u32> {
        if self.words.next_if(|w| matches!(w.as_str(), "&" | "and")).is_none() {
            return Ok(u32::MAX);
        }
        let mask = self.word(said)?;
        number(&mask).ok_or_else(|| Error::config(format!("{}: {said} & {mask:?} is wrong", self.key)))
    }

    /// One value, or those of a set; states may stand in a row without one.
    fn values(&mut self, said: &str, row: bool) -> Result<Vec<String>> {
        let set = self.words.next_if_eq("{").is_some();
        let mut values = Vec::new();
        loop {
            let value = self.word(said)?;
            if value.starts_with(['@', '$']) || matches!(value.as_str(), "{" | "}" | "," | "." | "&" | "|" | ";") {
                return Err(self.unknown(&format!("{said} {value}")));
            }
            values.push(value);
            let more = self.words.next_if_eq(",").is_some();
            match self.words.peek().map(String::as_str) {
                Some("}") if set => {
                    self.words.next();
                    return Ok(values);
                }
                _ if more && (set || row) => {}
                _ if more => return Err(self.unknown(&format!("{said} {},", values.concat()))),
                _ if set => return Err(Error::config(format!("{}: the set after {said} has no end", self.key))),
                _ => return Ok(values),
            }
        }
    }

    fn word(&mut self, after: &str) -> Result<String> {
        self.words.next().ok_or_else(|| Error::config(format!("{}: {after} needs a value", self.key)))
    }

    fn unknown(&self, what: &str) -> Error {
        let known = "ip and ip6 saddr and daddr, ip protocol, ip6 nexthdr, iifname, meta l4proto, nfproto and mark, sport and \
                     dport, fib saddr and daddr type, ct state, counter and comment are";
        Error::config(format!("{}: {what} is not understood", self.key)).details(known)
    }
}

/// Addresses of a family are those of its packets.
fn family_of(word: &str) -> Test {
    let values = vec![if word == "ip" { "ipv4".into() } else { "ipv6".into() }];
    Test { field: Field::Family, values, wanted: true, said: word.to_owned() }
}

#[cfg(test)]
mod tests {
    use gantry_net::nft::{Expr, R0};

    use crate::spec::Result;
    use crate::table::conditions::{Steps, read};

    fn try_read(text: &str) -> Result<Vec<Steps>> {
        read("conditionsV4", &[text.to_owned()], true)
    }

    #[test]
    fn the_common_expressions_are_understood() {
        for (text, steps) in [
            ("ip saddr 192.0.2.0/24", vec![3]),
            ("ip saddr != 192.0.2.0/24 ip daddr 198.51.100.1", vec![6]),
            ("ip saddr { 192.0.2.1, 192.0.2.8-192.0.2.9 } iifname \"eth0\"", vec![5, 4]),
            ("ip saddr != {192.0.2.1,192.0.2.2,}", vec![6]),
            ("meta iifname != veth*", vec![2]),
            ("meta l4proto { tcp, udp }", vec![2, 2]),
            ("ip protocol tcp tcp sport 1024-65535", vec![6]),
            ("th dport 80", vec![2]),
            ("meta mark & 0x1 == 0x1", vec![3]),
            ("mark 7", vec![3]),
            ("fib saddr type != local counter", vec![2]),
            ("ct state new,established", vec![1]),
            ("ct state { new, related } comment \"by whom, and why\"", vec![1]),
            ("meta nfproto ipv4 iif lo", vec![2]),
        ] {
            let lengths: Vec<_> = try_read(text).unwrap().iter().map(Vec::len).collect();
            assert_eq!(lengths, steps, "{text}");
        }
        // As the reference plugin joins them: each word or each condition by itself.
        let words: Vec<_> = ["ip", "saddr", "192.0.2.1", "iifname", "eth0"].map(str::to_owned).into();
        assert_eq!(read("conditionsV4", &words, true).unwrap(), try_read("ip saddr 192.0.2.1 iifname eth0").unwrap());
        let ports = try_read("udp sport 1-9").unwrap();
        assert_eq!(ports[0][3], Expr::Range(R0, true, vec![0, 1], vec![0, 9]));
        let six = read("conditionsV6", &["ip6 saddr fd00::/8".into()], true).unwrap_err();
        assert!(six.message.contains("fd00::/8"), "{six}");
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (text, part) in [
            ("ip saddr @friends", "ip saddr @friends"),
            ("ip saddr", "ip saddr needs a value"),
            ("ip saddr 10.0.0.0/33", "10.0.0.0/33"),
            ("ip saddr { 10.0.0.1", "no end"),
            ("ip saddr 10.0.0.1, 10.0.0.2", "10.0.0.1,"),
            ("ip saddr . ip daddr 10.0.0.1", "ip saddr ."),
            ("ip ttl < 5", "ip ttl"),
            ("tcp sport > 1023", "tcp sport >"),
            ("tcp sport 9-1", "9-1"),
            ("tcp flags syn", "tcp flags"),
            ("oifname eth0", "oifname"),
            ("iifname \"eth0", "quote"),
            ("ct mark 1", "ct mark"),
            ("meta mark | 1", "meta mark |"),
            ("jump elsewhere", "jump"),
            ("ct state old", "old"),
        ] {
            let error = try_read(text).unwrap_err();
            assert!(error.message.contains(part) && error.message.contains("conditionsV4"), "{text}: {error}");
        }
        let many = (0..9).map(|n| n.to_string()).collect::<Vec<_>>().join(", ");
        let error = try_read(&format!("udp sport {{ {many} }} th dport {{ {many} }}")).unwrap_err();
        assert!(error.message.contains("more than 64"), "{error}");
    }
}
