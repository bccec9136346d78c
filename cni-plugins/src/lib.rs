//! CNI types, the caller's side of CNI, and the plugins as one multi-call program.
