//! What stands in the kernel: rules and elements of sets, and looking at them.

use std::io;

use super::{GET_CHAIN, GET_ELEMENT, GET_GENERATION, GET_RULE, JUMP, NEW_ELEMENT, NEW_GENERATION, Table};
use crate::message::{ACK, Attributes, DUMP, Message, Received, text};
use crate::socket::Socket;

/// As nft writes comments, so that `nft list` shows them: type 0, length, text, zero.
pub(super) fn commented(comment: &str) -> Vec<u8> {
    let length = u8::try_from(comment.len() + 1).unwrap_or(u8::MAX);
    [&[0, length], comment.as_bytes(), b"\0"].concat()
}

/// A rule as the kernel lists it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// Its chain.
    pub chain: String,
    /// Its number, by which it is removed.
    pub handle: u64,
    /// Whose it is.
    pub comment: String,
    /// Bytes of its steps, as the kernel writes them; equal for equal rules.
    pub steps: Vec<u8>,
}

impl Rule {
    fn read(attributes: Attributes<'_>) -> Option<Self> {
        Some(Self {
            chain: attributes.find(2).map(text)?,
            handle: u64::from_be_bytes(attributes.find(3)?.try_into().ok()?),
            comment: attributes
                .find(7)
                .filter(|u| u.first() == Some(&0))
                .and_then(|u| u.get(2..))
                .map(text)
                .unwrap_or_default(),
            steps: attributes.find(4).unwrap_or_default().to_vec(),
        })
    }

    /// The chain that it jumps to with its last step, if it does.
    pub fn jump(&self) -> Option<String> {
        let last = Attributes(&self.steps).last()?.1;
        Attributes(last).nested(2).nested(2).nested(2).find(2).map(text)
    }
}

/// An element of a set or map.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Element {
    /// Key, each part padded to 32 bits when there are several.
    pub key: Vec<u8>,
    /// Last key of a range in a set of concatenated ranges.
    pub key_end: Option<Vec<u8>>,
    /// Value of a map.
    pub value: Option<Vec<u8>>,
    /// The chain that a map of verdicts jumps to.
    pub jump: Option<String>,
    /// Whose it is.
    pub comment: String,
}

impl Element {
    pub(super) fn message(&self, kind: u16, flags: u16, table: Table<'_>, set: &str) -> Message {
        let mut m = table.message(kind, flags);
        m.put_text(2, set).nest(3, |list| {
            list.nest(1, |e| {
                e.nest(1, |key| key.put(1, &self.key));
                if let Some(end) = &self.key_end {
                    e.nest(10, |key| key.put(1, end));
                }
                if let (Some(value), true) = (&self.value, kind == NEW_ELEMENT) {
                    e.nest(2, |data| data.put(1, value));
                }
                if let (Some(chain), true) = (&self.jump, kind == NEW_ELEMENT) {
                    e.nest(2, |data| data.nest(2, |v| v.put_be32(1, JUMP).put_text(2, chain)));
                }
                if !self.comment.is_empty() && kind == NEW_ELEMENT {
                    e.put(6, &commented(&self.comment));
                }
                e
            })
        });
        m
    }

    fn read(attributes: Attributes<'_>) -> Option<Self> {
        let value = |kind| attributes.nested(kind).find(1).map(<[u8]>::to_vec);
        let comment = attributes.find(6).and_then(|u| u.get(2..)).map(text).unwrap_or_default();
        let jump = attributes.nested(2).nested(2).find(2).map(text);
        Some(Self { key: value(1)?, key_end: value(10), value: value(2), jump, comment })
    }
}

fn absent(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

/// The table that a message heard on [`Socket::subscribe_nft`] is about; none where it is about no table (a new generation).
pub fn changed(message: &Received<'_>) -> Option<String> {
    let about_a_table = message.kind != NEW_GENERATION && message.kind & 0xff00 == super::SUBSYSTEM;
    let (_, attributes) = message.split(4).filter(|_| about_a_table)?;
    attributes.find(1).map(text)
}

impl Socket {
    /// The elements of a set; none when there is no such set.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn nft_elements<'t>(&mut self, table: impl Into<Table<'t>>, set: &str) -> io::Result<Vec<Element>> {
        let table = table.into();
        let mut request = table.message(GET_ELEMENT, DUMP | ACK);
        request.put_text(2, set);
        let mut found = Vec::new();
        let each = |m: &Received<'_>| {
            let Some((_, attributes)) = m.split(4) else { return };
            found.extend(attributes.nested(3).filter_map(|(_, e)| Element::read(Attributes(e))));
        };
        absent(self.query(request, each))?;
        Ok(found)
    }

    /// The element of a set under a key, if there is one.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn nft_element<'t>(
        &mut self,
        table: impl Into<Table<'t>>,
        set: &str,
        key: &[u8],
    ) -> io::Result<Option<Element>> {
        let asked = Element { key: key.to_vec(), ..Element::default() };
        let mut found = None;
        let each = |m: &Received<'_>| {
            let Some((_, attributes)) = m.split(4) else { return };
            found = attributes.nested(3).find_map(|(_, e)| Element::read(Attributes(e)));
        };
        absent(self.query(asked.message(GET_ELEMENT, 0, table.into(), set), each))?;
        Ok(found)
    }

    /// How many rules and elements are in a chain or jump to it; none when there is no such chain.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn nft_chain_uses<'t>(&mut self, table: impl Into<Table<'t>>, chain: &str) -> io::Result<Option<u32>> {
        let mut request = table.into().message(GET_CHAIN, 0);
        request.put_text(3, chain);
        let mut uses = None;
        let each = |m: &Received<'_>| {
            let read = || Some(u32::from_be_bytes(m.split(4)?.1.find(6)?.try_into().ok()?));
            uses = uses.or(read());
        };
        absent(self.query(request, each))?;
        Ok(uses)
    }

    /// The ruleset's generation: it counts every change in the network namespace.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn nft_generation(&mut self) -> io::Result<u32> {
        let mut generation = None;
        self.query(Message::new(GET_GENERATION, 0, &[0; 4]), |m| {
            let read = || u32::from_be_bytes(m.split(4)?.1.find(1)?.try_into().ok()?).into();
            generation = generation.or(if m.kind == NEW_GENERATION { read() } else { None });
        })?;
        generation.ok_or_else(|| io::Error::other("the kernel told no nf_tables generation"))
    }

    /// The chains of a table; none when there is no such table.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn nft_chains<'t>(&mut self, table: impl Into<Table<'t>>) -> io::Result<Vec<String>> {
        let table = table.into();
        let mut chains = Vec::new();
        let each = |m: &Received<'_>| {
            let Some((_, attributes)) = m.split(4) else { return };
            if attributes.find(1).map(text).as_deref() == Some(table.name) {
                chains.extend(attributes.find(3).map(text));
            }
        };
        absent(self.query(table.message(GET_CHAIN, DUMP | ACK), each))?;
        Ok(chains)
    }

    /// The rules of a table in their order; none when there is no such table.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn nft_rules<'t>(&mut self, table: impl Into<Table<'t>>) -> io::Result<Vec<Rule>> {
        let table = table.into();
        let mut rules = Vec::new();
        let each = |m: &Received<'_>| {
            let Some((_, attributes)) = m.split(4) else { return };
            // The kernel ignores the filter by table when it is asked in some versions: look again.
            if attributes.find(1).map(text).as_deref() == Some(table.name) {
                rules.extend(Rule::read(attributes));
            }
        };
        absent(self.query(table.message(GET_RULE, DUMP | ACK), each))?;
        Ok(rules)
    }
}
