//! Result files of the tests and the benches.

use super::LabError;
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};

/// Formats rows as a JSON array with one row a line.
///
/// # Errors
/// Fails if a row cannot be represented in JSON.
pub fn lines(rows: &[impl Serialize]) -> serde_json::Result<String> {
    let lines = rows.iter().map(serde_json::to_string);
    let lines: Vec<_> = lines.collect::<serde_json::Result<_>>()?;
    Ok(match lines.as_slice() {
        [] => "[]\n".to_owned(),
        lines => format!("[\n{}\n]\n", lines.join(",\n")),
    })
}

/// Writes rows to a file, one a line, and creates its directory.
///
/// # Errors
/// Fails if the file cannot be written.
pub fn write(path: &Path, rows: &[impl Serialize]) -> Result<(), LabError> {
    let failed = |error| LabError(format!("cannot write {}: {error}", path.display()));
    let text = lines(rows).map_err(|error| failed(error.into()))?;
    fs::create_dir_all(path.parent().unwrap_or(path)).map_err(failed)?;
    fs::write(path, text).map_err(failed)
}

/// Writes rows to a file of this name in the target directory, and returns its path. `scratch` is
/// cargo's `CARGO_TARGET_TMPDIR`, which lies there.
///
/// # Errors
/// As [`write()`].
pub fn write_beside(
    scratch: &str,
    name: &str,
    rows: &[impl Serialize],
) -> Result<PathBuf, LabError> {
    let path = Path::new(scratch).with_file_name(name);
    write(&path, rows)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_a_line_each() {
        assert_eq!(lines(&[0; 0]).unwrap(), "[]\n");
        let rows = [("one", [1, 2]), ("two", [3, 4])];
        let text = lines(&rows).unwrap();
        assert_eq!(text, "[\n[\"one\",[1,2]],\n[\"two\",[3,4]]\n]\n");
        let back: Vec<(String, [i32; 2])> = serde_json::from_str(&text).unwrap();
        assert_eq!(back[1], ("two".to_owned(), [3, 4]));
    }
}
