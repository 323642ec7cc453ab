//! Consensus files to a relay set.
