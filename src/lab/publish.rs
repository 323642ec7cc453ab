//! Files in tor's data directory, replaced as tor does: written to a temporary file and renamed, so
//! that a reader finds the old file or the new one, never a part.

use super::authorities::Authorities;
use super::consensus::ConsensusBuilder;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Tor's file name for key certificates.
pub const CERTIFICATES: &str = "cached-certs";

/// Writes the order's document, signed by all these authorities, and their key certificates next to
/// it. Returns the document's path.
///
/// # Errors
/// Fails if a file cannot be written.
pub fn publish(
    directory: &Path,
    name: &str,
    builder: &ConsensusBuilder,
    authorities: &Authorities,
) -> io::Result<PathBuf> {
    // Certificates first, so that a reader of the document can verify it.
    let certificates = authorities.certificates_for(builder.validity);
    replace(&directory.join(CERTIFICATES), &certificates)?;
    let path = directory.join(name);
    replace(&path, &builder.sign(authorities))?;
    Ok(path)
}

/// Creates a file with this text, or replaces it.
///
/// # Errors
/// Fails if the file cannot be written.
pub fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut beside = path.to_owned().into_os_string();
    beside.push(".tmp");
    fs::write(&beside, text)?;
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consensus::hours_from;
    use exitmark_relays::Flavor;
    use std::time::SystemTime;

    #[test]
    fn publishes_certificates_next_to_the_document_and_replaces_it() {
        let directory = tempfile::TempDir::new().unwrap();
        let validity = hours_from(SystemTime::UNIX_EPOCH, [1000, 1001, 1003]);
        let authorities = Authorities::new(1);
        for seed in [1, 2] {
            let builder = ConsensusBuilder {
                seed,
                relays: 2,
                ..ConsensusBuilder::full_size(Flavor::Ns, validity)
            };
            let path = publish(directory.path(), "cached-consensus", &builder, &authorities);
            let text = fs::read_to_string(path.unwrap()).unwrap();
            assert_eq!(text, builder.sign(&authorities));
        }
        let entries = fs::read_dir(directory.path()).unwrap();
        let names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "no temporary file is left: {names:?}");
        let certificates = fs::read_to_string(directory.path().join(CERTIFICATES)).unwrap();
        assert_eq!(certificates, authorities.certificates_for(validity));
    }
}
