//! A small reader of command lines: options may stand before or after the container's id.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// A command line, taken apart.
#[derive(Debug, Default)]
pub(crate) struct Words {
    options: BTreeMap<String, Vec<String>>,
    rest: Vec<String>,
}

impl Words {
    /// Options anywhere among the words. `known` names them: `name`, `name,n` with a short form, `name=` with a value.
    pub(crate) fn anywhere(words: Vec<String>, known: &[&str]) -> Result<Self> {
        Self::read(words, known, usize::MAX)
    }

    /// Options before the first other word only.
    pub(crate) fn leading(words: Vec<String>, known: &[&str]) -> Result<Self> {
        Self::read(words, known, 0)
    }

    /// Options until the second other word: what follows belongs to the program to run.
    pub(crate) fn before_program(words: Vec<String>, known: &[&str]) -> Result<Self> {
        Self::read(words, known, 1)
    }

    fn read(words: Vec<String>, known: &[&str], plain_words: usize) -> Result<Self> {
        let mut read = Self::default();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            if word == "--" {
                read.rest.extend(words);
                break;
            }
            let Some(option) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')).filter(|o| !o.is_empty())
            else {
                read.rest.push(word);
                if read.rest.len() > plain_words {
                    read.rest.extend(words);
                    break;
                }
                continue;
            };
            let (name, inline) = match option.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (option, None),
            };
            let (name, takes_value) = find(known, name).ok_or_else(|| Error::new(format!("unknown option {word}")))?;
            let value = match (takes_value, inline) {
                (true, Some(value)) => value,
                (true, None) => words.next().ok_or_else(|| Error::new(format!("option {word} needs a value")))?,
                (false, Some(value)) => match value.as_str() {
                    "true" | "false" => value,
                    _ => return Err(Error::new(format!("option {word} takes true or false"))),
                },
                (false, None) => "true".to_owned(),
            };
            read.options.entry(name).or_default().push(value);
        }
        Ok(read)
    }

    /// Whether a switch is on.
    pub(crate) fn is_set(&self, name: &str) -> bool {
        self.value(name) == Some("true")
    }

    /// The last value of an option.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.options.get(name)?.last().map(String::as_str)
    }

    /// All values of an option.
    pub(crate) fn values(&self, name: &str) -> &[String] {
        self.options.get(name).map_or(&[], Vec::as_slice)
    }

    /// A number.
    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>> {
        let wrong = |v: &str| Error::new(format!("--{name}: {v:?} is not a number in range"));
        self.value(name).map(|v| v.parse().map_err(|_| wrong(v))).transpose()
    }

    /// What is no option.
    pub(crate) fn rest(&self) -> &[String] {
        &self.rest
    }

    /// The container's id, which must be the only word.
    pub(crate) fn id(&self) -> Result<&str> {
        match self.rest.as_slice() {
            [id] => Ok(id),
            [] => Err(Error::new("a container id is needed")),
            [_, extra, ..] => Err(Error::new(format!("unexpected argument {extra:?}"))),
        }
    }
}

fn find(known: &[&str], name: &str) -> Option<(String, bool)> {
    known.iter().find_map(|k| {
        let (names, takes_value) = k.strip_suffix('=').map_or((*k, false), |n| (n, true));
        let mut all = names.split(',');
        let long = all.next()?;
        (long == name || all.any(|short| short == name)).then(|| (long.to_owned(), takes_value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn options_stand_before_or_after_the_id() {
        let known = ["bundle,b=", "force,f"];
        for text in ["-b /x --force id", "id --bundle=/x -f", "--force id -b /x"] {
            let w = Words::anywhere(words(text), &known).unwrap();
            assert_eq!((w.id().unwrap(), w.value("bundle"), w.is_set("force")), ("id", Some("/x"), true), "{text}");
        }
        assert!(Words::anywhere(words("--nope id"), &known).unwrap_err().to_string().contains("--nope"));
        assert!(Words::anywhere(words("id -b"), &known).is_err());
        assert!(Words::anywhere(words("a b"), &known).unwrap().id().is_err());
    }

    #[test]
    fn what_follows_the_program_is_the_programs() {
        let w = Words::before_program(words("-t id ls -t -l"), &["tty,t"]).unwrap();
        assert_eq!((w.is_set("tty"), w.rest()), (true, &words("id ls -t -l")[..]));
        let w = Words::before_program(words("id -t -- ls"), &["tty,t"]).unwrap();
        assert_eq!((w.is_set("tty"), w.rest()), (true, &words("id ls")[..]));
    }
}
