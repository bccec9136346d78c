//! `state`: print a container's state as the specification defines it.

use super::Globals;
use super::args::Words;
use crate::error::Result;

pub(super) fn main(globals: &Globals, words: Vec<String>) -> Result<i32> {
    let words = Words::anywhere(words, &[])?;
    let container = globals.store.open(words.id()?)?;
    say!("{}", container.public(container.status()));
    Ok(0)
}
