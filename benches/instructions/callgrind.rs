//! Runs this program again, under callgrind.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

/// Why there are no counts.
pub(crate) enum Unable {
    NotInstalled,
    Failed(String),
}

/// Runs this program with this argument. Returns the instructions within one function, once for
/// each return of another. Both functions are given by a part of their names.
pub(crate) fn count(argument: &str, within: &str, until: &str) -> Result<Vec<u64>, Unable> {
    let failed = |why: &dyn std::fmt::Display| Unable::Failed(why.to_string());
    let directory = tempfile::tempdir().map_err(|error| failed(&error))?;
    let program = std::env::current_exe().map_err(|error| failed(&error))?;
    let out = directory.path().join("counts");
    let ran = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(format!("--toggle-collect=*{within}*"))
        .arg(format!("--dump-after=*{until}*"))
        .arg(program)
        .arg(argument)
        .output();
    let output = match ran {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(Unable::NotInstalled),
        Err(error) => return Err(failed(&error)),
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(failed(&format!("valgrind: {}: {said}", output.status)));
    }
    // counts.1, counts.2 and so on; the file without a number holds the rest.
    (1..)
        .map(|number| directory.path().join(format!("counts.{number}")))
        .take_while(|part| part.exists())
        .map(|part| total(&part).ok_or_else(|| failed(&"callgrind wrote no total")))
        .collect()
}

fn total(part: &Path) -> Option<u64> {
    let text = fs::read_to_string(part).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("totals:"));
    line?.trim().parse().ok()
}
