//! The user IDs of tor, by the names and globs of `tor.users`, followed as users come and go.

use crate::settings::UserPattern;
use nix::errno::Errno;
use nix::unistd::User;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The local users (passwd(5)). Globs match these only; names are looked up by NSS too.
const PASSWD: &str = "/etc/passwd";

/// The users of tor: patterns, and the IDs that they match.
pub(crate) struct Users {
    patterns: Vec<UserPattern>,
    /// The IDs that each pattern matched at the last look, in the same order.
    matched: Vec<BTreeSet<u32>>,
    ids: BTreeSet<u32>,
    /// Why users could not be looked up at the last look: then what they matched before stays.
    trouble: Option<String>,
    /// The identity of the file of users when it was read.
    read: Option<(u64, u64, i64, i64)>,
}

impl Users {
    pub(crate) fn new(patterns: &[UserPattern]) -> Self {
        Self {
            patterns: patterns.to_vec(),
            matched: vec![BTreeSet::new(); patterns.len()],
            ids: BTreeSet::new(),
            trouble: None,
            read: None,
        }
    }

    /// The users of other patterns, looked up now. Patterns that stay keep their IDs if users cannot
    /// be looked up.
    pub(crate) fn changed_to(&self, patterns: &[UserPattern]) -> Self {
        let mut users = Self::new(patterns);
        for (pattern, matched) in users.patterns.iter().zip(&mut users.matched) {
            let mut known = self.patterns.iter().zip(&self.matched);
            if let Some((_, ids)) = known.find(|(known, _)| *known == pattern) {
                matched.clone_from(ids);
            }
        }
        users.look();
        users
    }

    /// The user IDs of the last look.
    pub(crate) const fn ids(&self) -> &BTreeSet<u32> {
        &self.ids
    }

    /// The entries of `tor.users` that matched no user at the last look.
    pub(crate) fn unmatched(&self) -> Vec<String> {
        let all = self.patterns.iter().zip(&self.matched);
        let unmatched = all.filter(|(_, ids)| ids.is_empty());
        unmatched.map(|(pattern, _)| pattern.to_string()).collect()
    }

    /// Why users could not be looked up at the last look.
    pub(crate) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
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
        let (matched, trouble) = matching(&self.patterns, &self.matched, passwd(), by_name);
        if let (Some(trouble), None) = (&trouble, &self.trouble) {
            tracing::warn!("tor.users stay as they were: {trouble}");
        }
        let ids = matched.iter().flatten().copied().collect();
        (self.matched, self.trouble) = (matched, trouble);
        std::mem::replace(&mut self.ids, ids) != self.ids
    }
}

/// The file of local users. An empty one is being written: each machine has a user root.
fn passwd() -> io::Result<Vec<(String, u32)>> {
    let bytes = fs::read(Path::new(PASSWD))?;
    match local_users(&String::from_utf8_lossy(&bytes)) {
        users if users.is_empty() => Err(io::Error::other("it has no users")),
        users => Ok(users),
    }
}

/// The user with this name, also of NSS; an error if this cannot be found out.
fn by_name(name: &str) -> io::Result<Option<u32>> {
    match User::from_name(name) {
        Ok(found) => Ok(found.map(|user| user.uid.as_raw())),
        // Some NSS modules report a missing user by one of these errors (getpwnam(3)).
        Err(Errno::ENOENT | Errno::ESRCH) => Ok(None),
        Err(error) => Err(error.into()),
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

/// The IDs that each pattern matches, without root's. What cannot be looked up stays as it was
/// `before`; then the reason, too.
fn matching(
    patterns: &[UserPattern],
    before: &[BTreeSet<u32>],
    local: io::Result<Vec<(String, u32)>>,
    by_name: impl Fn(&str) -> io::Result<Option<u32>>,
) -> (Vec<BTreeSet<u32>>, Option<String>) {
    let local = match local {
        Ok(local) => local,
        Err(error) => return (before.to_vec(), Some(format!("{PASSWD}: {error}"))),
    };
    let mut trouble = None;
    let matched = patterns.iter().zip(before).map(|(pattern, before)| {
        let mut ids: BTreeSet<u32> = match pattern {
            UserPattern::Id(id) => BTreeSet::from([*id]),
            UserPattern::Name(name) => match by_name(name) {
                Ok(found) => found.into_iter().collect(),
                Err(error) => {
                    trouble = Some(format!("the user {name} cannot be looked up: {error}"));
                    before.clone()
                }
            },
            UserPattern::Glob(_) => {
                let matched = local.iter().filter(|(name, _)| pattern.matches(name));
                matched.map(|(_, id)| *id).collect()
            }
        };
        // A user with another name may have root's ID.
        ids.remove(&0);
        ids
    });
    let matched = matched.collect();
    (matched, trouble)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\
                          _tor-a:x:120:65534::/var/lib/tor-instances/a:/bin/false\n\
                          _tor-b:x:121:65534::/var/lib/tor-instances/b:/bin/false\n\
                          _tor-root:x:0:0::/:/bin/false\n\
                          broken\n:x:7:7::/:/bin/false\n_tor-c:x:many:1::/:/bin/false\n";

    fn glob(text: &str) -> UserPattern {
        UserPattern::Glob(text.to_owned())
    }

    fn name(text: &str) -> UserPattern {
        UserPattern::Name(text.to_owned())
    }

    fn by_name(name: &str) -> io::Result<Option<u32>> {
        Ok((name == "debian-tor").then_some(105))
    }

    fn found(patterns: &[UserPattern]) -> Vec<Vec<u32>> {
        let none = vec![BTreeSet::new(); patterns.len()];
        let (matched, trouble) = matching(patterns, &none, Ok(local_users(PASSWD)), by_name);
        assert_eq!(trouble, None);
        let ids = matched.into_iter();
        ids.map(|ids| ids.into_iter().collect()).collect()
    }

    #[test]
    fn names_globs_and_ids_give_user_ids_but_never_root() {
        assert_eq!(found(&[name("debian-tor")]), [[105]]);
        assert_eq!(found(&[glob("_tor-*")]), [[120, 121]]);
        assert_eq!(
            found(&[UserPattern::Id(7), name("tor"), glob("_tor-ro?t")]),
            [vec![7], vec![], vec![]]
        );
    }

    #[test]
    fn users_that_cannot_be_looked_up_stay() {
        let patterns = [name("debian-tor"), glob("_tor-*"), UserPattern::Id(7)];
        let before: Vec<_> = found(&patterns)
            .into_iter()
            .map(BTreeSet::from_iter)
            .collect();
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        let (matched, trouble) = matching(&patterns, &before, Err(denied()), by_name);
        assert_eq!(matched, before);
        assert!(trouble.unwrap().starts_with("/etc/passwd: "));

        let local = vec![("_tor-c".to_owned(), 122)];
        let (matched, trouble) = matching(&patterns, &before, Ok(local), |_| Err(denied()));
        assert_eq!(matched, [105, 122, 7].map(|id| BTreeSet::from([id])));
        assert!(trouble.unwrap().contains("debian-tor"));
    }

    #[test]
    fn other_patterns_find_their_users() {
        let root = Users::new(&[name("root")]);
        let daemon = root.changed_to(&[name("daemon"), UserPattern::Id(7)]);
        assert_eq!(daemon.ids().len(), 2);
        assert!(daemon.unmatched().is_empty());
        assert_eq!(
            root.changed_to(&[glob("no-such-*")]).unmatched(),
            ["no-such-*"]
        );
    }
}
