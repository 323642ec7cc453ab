//! The user IDs of tor, by the names and globs of `tor.users`, followed as users come and go.

use crate::settings::UserPattern;
use nix::unistd::User;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The local users (passwd(5)). Globs match these only; names are looked up by NSS too.
const PASSWD: &str = "/etc/passwd";

/// The users of tor.
pub(crate) struct Users {
    patterns: Vec<UserPattern>,
    ids: BTreeSet<u32>,
    /// The names and globs that match no user.
    unmatched: Vec<String>,
    /// The identity of the file of users when it was read.
    read: Option<(u64, u64, i64, i64)>,
}

impl Users {
    pub(crate) fn new(patterns: &[UserPattern]) -> Self {
        Self {
            patterns: patterns.to_vec(),
            ids: BTreeSet::new(),
            unmatched: Vec::new(),
            read: None,
        }
    }

    /// The user IDs of the last look.
    pub(crate) const fn ids(&self) -> &BTreeSet<u32> {
        &self.ids
    }

    /// The entries of `tor.users` that matched no user at the last look.
    pub(crate) fn unmatched(&self) -> &[String] {
        &self.unmatched
    }

    /// Makes the next look read the users even if the file of local users is the same: NSS may
    /// have others.
    pub(crate) fn look_again(&mut self) {
        self.read = None;
    }

    /// Reads the users if they may have changed; returns whether the IDs have.
    pub(crate) fn look(&mut self) -> bool {
        let now = fs::metadata(PASSWD)
            .ok()
            .map(|data| (data.dev(), data.ino(), data.mtime(), data.mtime_nsec()));
        if self.read.is_some() && self.read == now {
            return false;
        }
        self.read = now;
        let passwd = fs::read(Path::new(PASSWD)).unwrap_or_default();
        let local = local_users(&String::from_utf8_lossy(&passwd));
        let by_name = |name: &str| {
            let found = User::from_name(name).ok().flatten();
            found.map(|user| user.uid.as_raw())
        };
        let (ids, unmatched) = matching(&self.patterns, &local, by_name);
        self.unmatched = unmatched;
        let has_changed = ids != self.ids;
        self.ids = ids;
        has_changed
    }
}

/// The names and IDs of a file of users. Lines of another form are ignored.
fn local_users(passwd: &str) -> Vec<(String, u32)> {
    let user = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        Some((name.to_owned(), fields.nth(1)?.parse().ok()?))
    };
    passwd.lines().filter_map(user).collect()
}

/// The IDs that the patterns match, without root's, and the patterns that match none.
fn matching(
    patterns: &[UserPattern],
    local: &[(String, u32)],
    by_name: impl Fn(&str) -> Option<u32>,
) -> (BTreeSet<u32>, Vec<String>) {
    let mut all = BTreeSet::new();
    let mut unmatched = Vec::new();
    for pattern in patterns {
        let mut ids: BTreeSet<u32> = match pattern {
            UserPattern::Id(id) => BTreeSet::from([*id]),
            UserPattern::Name(name) => by_name(name).into_iter().collect(),
            UserPattern::Glob(_) => {
                let matched = local.iter().filter(|(name, _)| pattern.matches(name));
                matched.map(|(_, id)| *id).collect()
            }
        };
        // A user with another name may have root's ID.
        ids.remove(&0);
        if ids.is_empty() {
            unmatched.push(pattern.to_string());
        }
        all.extend(ids);
    }
    (all, unmatched)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\
                          _tor-a:x:120:65534::/var/lib/tor-instances/a:/bin/false\n\
                          _tor-b:x:121:65534::/var/lib/tor-instances/b:/bin/false\n\
                          _tor-root:x:0:0::/:/bin/false\n\
                          broken\n:x:7:7::/:/bin/false\n_tor-c:x:many:1::/:/bin/false\n";

    fn found(patterns: &[UserPattern]) -> (Vec<u32>, Vec<String>) {
        let local = local_users(PASSWD);
        let by_name = |name: &str| (name == "debian-tor").then_some(105);
        let (ids, unmatched) = matching(patterns, &local, by_name);
        (ids.into_iter().collect(), unmatched)
    }

    #[test]
    fn names_globs_and_ids_give_user_ids_but_never_root() {
        let glob = |text: &str| UserPattern::Glob(text.to_owned());
        let name = |text: &str| UserPattern::Name(text.to_owned());
        assert_eq!(found(&[name("debian-tor")]), (vec![105], vec![]));
        assert_eq!(found(&[glob("_tor-*")]), (vec![120, 121], vec![]));
        assert_eq!(
            found(&[UserPattern::Id(7), name("tor"), glob("_tor-ro?t")]),
            (vec![7], vec!["tor".to_owned(), "_tor-ro?t".to_owned()])
        );
    }
}
