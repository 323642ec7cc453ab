//! Runs the PostgreSQL commands of docs/periods.md, on a private cluster with a local socket.

use super::made;
use exitmark_lab::is_installed;
use exitmark_monitor::report::{self, Span, Statistics, SumKey};
use exitmark_monitor::row::Dimension;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User, chown};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// PostgreSQL refuses to run as root; this user exists on every machine and owns nothing.
const NOBODY: &str = "nobody";

/// A private cluster. It is shut down cleanly when dropped: a killed server leaves its shared
/// memory behind.
struct Cluster {
    programs: PathBuf,
    directory: tempfile::TempDir,
    server: Child,
}

/// The newest release's programs; Debian installs them outside PATH.
fn programs() -> Option<PathBuf> {
    let releases = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let releases = releases.filter_map(|release| {
        let path = release.ok()?.path();
        let number: u32 = path.file_name()?.to_str()?.parse().ok()?;
        let programs = path.join("bin");
        let is_there = programs.join("initdb").exists();
        is_there.then_some((number, programs))
    });
    releases.max().map(|(_, path)| path)
}

/// A command that runs as `nobody` if the test is root, and ends with this process.
fn command(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    if Uid::effective().is_root() {
        command.args(["--reuid", NOBODY, "--regid", "nogroup", "--clear-groups"]);
    }
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

impl Cluster {
    fn new() -> Option<Self> {
        let programs = programs().unwrap_or_default();
        if !is_installed(programs.join("initdb").to_str().unwrap()) || !is_installed("psql") {
            return None;
        }
        let directory = tempfile::Builder::new().prefix("pg").tempdir().unwrap();
        if Uid::effective().is_root() {
            let nobody = User::from_name(NOBODY).unwrap().unwrap();
            chown(directory.path(), Some(nobody.uid), Some(nobody.gid)).unwrap();
        }
        let data = directory.path().join("data");
        let made = command(&programs.join("initdb"))
            .args(["--auth=trust", "--username=monitor", "--no-sync"])
            .args(["--no-locale", "--encoding=UTF8", "--pgdata"])
            .arg(&data)
            .current_dir(directory.path())
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let log = fs::File::create(directory.path().join("log")).unwrap();
        let server = command(&programs.join("postgres"))
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(directory.path())
            .args(["-c", "listen_addresses=", "-c", "fsync=off"])
            .current_dir(directory.path())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut cluster = Self {
            programs,
            directory,
            server,
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        let answers = |cluster: &Self| cluster.sh("psql -c 'SELECT 1'", Path::new("/"));
        while !answers(&cluster).status.success() {
            let log = || fs::read_to_string(cluster.directory.path().join("log")).unwrap();
            assert!(Instant::now() < deadline, "no answer: {}", log());
            let ended = cluster.server.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(cluster)
    }

    fn sh(&self, line: &str, directory: &Path) -> Output {
        Command::new("sh")
            .args(["-ec", line])
            .current_dir(directory)
            .env("PGHOST", self.directory.path())
            .env("PGUSER", "monitor")
            .env("PGDATABASE", "postgres")
            .env("PGTZ", "Asia/Tokyo")
            .env("PATH", format!("{}:/usr/bin:/bin", self.programs.display()))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// The rows of a statement, columns separated by a bar.
    fn sql(&self, statement: &str) -> Vec<String> {
        let output = Command::new("psql")
            .args(["-qAtX", "-v", "ON_ERROR_STOP=1", "-c", statement])
            .env("PGHOST", self.directory.path())
            .args(["-U", "monitor", "-d", "postgres"])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{statement}\n{said}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.server.id()).unwrap());
        // Fast shutdown: ends sessions and removes shared memory.
        let _ = kill(pid, Signal::SIGINT);
        let deadline = Instant::now() + Duration::from_secs(20);
        while matches!(self.server.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// The blocks of a language under the heading PostgreSQL.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let (_, section) = page.split_once("\n## PostgreSQL\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let begin = format!("```{language}\n");
    let blocks = section.split(begin.as_str()).skip(1);
    blocks
        .map(|block| block.split_once("```").unwrap().0)
        .collect()
}

fn months(statistics: &Statistics) -> Vec<String> {
    let months = statistics.months(None).into_iter().map(|month| {
        let span = Span::Month(month);
        format!("{}|{}", span.slug(), statistics.sum(None, span).total.bytes)
    });
    months.collect()
}

fn ports(statistics: &Statistics) -> Vec<String> {
    let sums = statistics.sum(None, Span::Everything);
    let ranked = sums.table(Dimension::Port).ranked().into_iter();
    let ports = ranked.map(|(key, entry)| {
        let counts = entry.counts;
        format!("{}|{}|{}", key.port.unwrap(), counts.bytes, counts.flows)
    });
    ports.take(10).collect()
}

fn version_six(statistics: &Statistics) -> Vec<String> {
    let shares = statistics.exits().into_iter().map(|exit| {
        let sums = statistics.sum(Some(exit), Span::Everything);
        let (six, all) = sums.share(Dimension::IpVersion, &SumKey::ip_version(6));
        let tenths = (u128::from(six) * 2000 + u128::from(all)) / (2 * u128::from(all));
        format!("{exit}|{}.{}", tenths / 10, tenths % 10)
    });
    shares.collect()
}

/// Exit, start in the server's time zone, seconds watched, packets lost.
fn amiss(periods: &Path) -> Vec<String> {
    let mut found = BTreeMap::<(String, String), (u64, u64)>::new();
    for file in fs::read_dir(periods).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        for line in text.lines().filter(|line| line.contains("\"total\"")) {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            let of = |column: &str| row[column].as_str().unwrap().to_owned();
            let sums = found.entry((of("exit"), of("period_start"))).or_default();
            sums.0 += row["watched_seconds"].as_u64().unwrap();
            sums.1 += row["lost_packets"].as_u64().unwrap();
        }
    }
    let amiss = found
        .into_iter()
        .filter(|(_, (watched, lost))| *watched < 86_400 || *lost > 0);
    let lines = amiss.map(|((exit, start), (watched, lost))| {
        let start = start.replace('T', " ").replace('Z', "+00");
        format!("{exit}|{start}|{watched}|{lost}")
    });
    lines.collect()
}

#[test]
fn postgresql_loads_periods_as_they_are() {
    let Some(cluster) = Cluster::new() else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let periods = directory.path().join("periods");
    made::some_weeks(&periods);
    // COPY must load every text that JSON allows.
    let name = "Tab\t, \"quotes\", back\\slash, 東京";
    let mut rows = made::day(name, jiff::civil::date(2026, 11, 5), 1 << 40);
    rows.iter_mut()
        .for_each(|row| row.as_name = row.asn.map(|_| name.to_owned()));
    made::put(&periods, "odd.jsonl", &rows);
    let statistics = report::read(std::slice::from_ref(&periods)).unwrap();

    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/periods.md");
    let page = fs::read_to_string(page).unwrap();
    let statements = blocks(&page, "sql");
    let lines = blocks(&page, "sh");
    let ([tables, queries @ ..], [load]) = (statements.as_slice(), lines.as_slice()) else {
        panic!("docs/periods.md has other blocks than this test knows");
    };
    assert_eq!(cluster.sql(tables), Vec::<String>::new());
    let loaded = cluster.sh(load, directory.path());
    assert!(loaded.status.success(), "{loaded:?}");
    let odd = "SELECT DISTINCT as_name = exit FROM period WHERE exit LIKE 'Tab%' AND asn > 0";
    assert_eq!(cluster.sql(odd), ["t"]);
    let sorted = |mut rows: Vec<String>| {
        rows.sort();
        rows
    };
    // A tab is shown as a blank; the rest of the name is unchanged.
    let shown = |rows: Vec<String>| -> Vec<String> {
        sorted(rows.iter().map(|row| row.replace('\t', " ")).collect())
    };
    let in_zone =
        |zone: &str, query: &str| cluster.sql(&format!("SET timezone = '{zone}'; {query}"));
    let answers = queries.iter().map(|query| in_zone("UTC", query));
    let answers: Vec<_> = answers.collect();
    assert_eq!(answers.len(), 4);
    assert_eq!(answers[0], months(&statistics));
    assert_eq!(answers[1], ports(&statistics));
    assert_eq!(shown(answers[2].clone()), sorted(version_six(&statistics)));
    assert_eq!(sorted(answers[3].clone()), sorted(amiss(&periods)));
    assert!(answers.iter().all(|rows| rows.len() > 2), "{answers:?}");

    // Months are in UTC, whatever the server's time zone is.
    assert_eq!(in_zone("Asia/Tokyo", queries[0]), answers[0]);
}
