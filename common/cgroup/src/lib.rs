//! Control groups: version 1, version 2 and hybrid hosts behind one trait.
