//! A source file that is told to say more does, and the others do not. In a process of its own: a process has one log.

mod quiet;

use gantry_telemetry::log::{Format, init_with, set_level};
use tracing::Level;

#[test]
fn one_file_says_more_than_the_rest() {
    init_with("warn", Format::Text, vec![("vmodul?".to_owned(), Level::DEBUG)]).unwrap();
    assert!(tracing::enabled!(Level::WARN) && tracing::enabled!(Level::DEBUG) && !tracing::enabled!(Level::TRACE));
    assert_eq!(quiet::says(), [true, false, false]);
    // The level of all changes while the process runs, and the file keeps its own.
    set_level("info").unwrap();
    assert!(tracing::enabled!(Level::DEBUG) && !tracing::enabled!(Level::TRACE));
    assert_eq!(quiet::says(), [true, true, false]);
}
