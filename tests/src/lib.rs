//! Node tests from outside, through the public standards only.
