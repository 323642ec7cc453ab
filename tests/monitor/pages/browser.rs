//! The pages in a real browser, in a namespace without a network.

use super::made;
use exitmark::monitor::report;
use std::path::Path;

#[test]
fn scratch() {
    let periods = tempfile::tempdir().unwrap();
    made::some_weeks(periods.path());
    let statistics = report::read(&[periods.path().to_owned()]).unwrap();
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("site");
    println!("{:?}", report::write(&statistics, &out).unwrap());
    println!("{}", out.display());
}
