//! The names of autonomous systems, in one string.

#[derive(Debug, Default)]
pub(super) struct Names {
    text: String,
    /// AS numbers in order, and where their names end in `text`.
    ends: Vec<(u32, usize)>,
}

/// Longer names are truncated.
const MAX_CHARACTERS: usize = 96;
/// There are about 120,000 autonomous systems.
const MAX_NAMES: usize = 1 << 18;

impl Names {
    /// Takes names from an untrusted file: control characters are removed.
    pub(super) fn new(mut names: Vec<(u32, String)>) -> Self {
        names.sort_unstable();
        names.dedup_by_key(|(asn, _)| *asn);
        names.truncate(MAX_NAMES);
        let mut all = Self::default();
        for (asn, name) in names {
            let plain = name.chars().filter(|c| !c.is_control());
            all.text.extend(plain.take(MAX_CHARACTERS));
            all.ends.push((asn, all.text.len()));
        }
        all.text.shrink_to_fit();
        all.ends.shrink_to_fit();
        all
    }

    pub(super) fn find(&self, asn: u32) -> Option<&str> {
        let index = self.ends.binary_search_by_key(&asn, |(asn, _)| *asn).ok()?;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before].1);
        let name = self.text.get(start..self.ends[index].1)?;
        (!name.is_empty()).then_some(name)
    }
}
