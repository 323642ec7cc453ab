//! Shows the pages in a real browser, in a network namespace without a network: rendering, document
//! structure, and no requests. Screenshots stay in the target directory.

use super::document::faults;
use super::made;
use crate::says;
use exitmark_lab::{Netns, contained, is_installed, is_root};
use exitmark_monitor::report;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

/// Debian's package of the same name: headless Chromium.
const BROWSER: &str = "chromium-headless-shell";

/// Turns off everything except showing a page.
const QUIET: [&str; 11] = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--hide-scrollbars",
    "--enable-logging=stderr",
];

/// A browser without a network, with an empty profile.
struct Browser {
    netns: Netns,
    profile: tempfile::TempDir,
}

impl Browser {
    fn new() -> Option<Self> {
        if !is_root() || !is_installed(BROWSER) {
            return None;
        }
        let netns = Netns::new("browser").unwrap();
        let profile = tempfile::tempdir().unwrap();
        Some(Self { netns, profile })
    }

    /// Shows a page; returns the browser's output and its errors.
    fn show(&self, page: &Path, options: &[&str]) -> (String, String) {
        let mut command = contained(BROWSER);
        let profile = self.profile.path().display();
        command
            .args(QUIET)
            .arg(format!("--user-data-dir={profile}"))
            .args(options)
            .arg(format!("file://{}", page.display()))
            .env("HOME", self.profile.path())
            .stdin(Stdio::null());
        // Into files: an unread pipe would block the browser.
        let file = |name: &str| self.profile.path().join(name);
        let (out, err) = (file("stdout"), file("stderr"));
        command.stdout(fs::File::create(&out).unwrap());
        command.stderr(fs::File::create(&err).unwrap());
        let mut child = self.netns.start(command).unwrap();
        let status = child.wait(Duration::from_secs(60)).unwrap();
        let [out, err] = [out, err].map(|path| fs::read(path).unwrap());
        let [out, err] = [out, err].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        assert!(status.success(), "{status}: {err}");
        (out, err)
    }

    fn picture(&self, page: &Path, name: &str, size: [u32; 2], scheme: &str) -> Picture {
        let path = pictures().join(format!("{name}.png"));
        let [width, height] = size;
        let options = [
            &*format!("--window-size={width},{height}"),
            &format!("--blink-settings=preferredColorScheme={scheme}"),
            &format!("--screenshot={}", path.display()),
        ];
        self.show(page, &options);
        let picture = Picture::read(&path);
        assert_eq!(picture.size, size);
        picture
    }
}

/// Values of the colour scheme setting.
const DARK: &str = "0";
const LIGHT: &str = "1";

fn pictures() -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("monitor");
    fs::create_dir_all(&path).unwrap();
    path
}

/// The site, in the target directory for inspection.
fn site() -> &'static Path {
    static SITE: OnceLock<PathBuf> = OnceLock::new();
    SITE.get_or_init(|| {
        let periods = tempfile::tempdir().unwrap();
        made::some_weeks(periods.path());
        let out = pictures().join("site");
        let _ = fs::remove_dir_all(&out);
        report::write(&super::read(periods.path()), &out).unwrap();
        out
    })
}

struct Picture {
    /// Width and height, in pixels.
    size: [u32; 2],
    /// Number of pixels of each colour.
    colours: BTreeMap<[u8; 3], usize>,
}

impl Picture {
    fn read(path: &Path) -> Self {
        let file = std::io::BufReader::new(fs::File::open(path).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        let step = info.color_type.samples();
        let mut colours = BTreeMap::<_, usize>::new();
        for pixel in pixels[..info.buffer_size()].chunks_exact(step) {
            *colours.entry([pixel[0], pixel[1], pixel[2]]).or_default() += 1;
        }
        Self {
            size: [info.width, info.height],
            colours,
        }
    }

    /// The most frequent colour.
    fn ground(&self) -> [u8; 3] {
        let colours = self.colours.iter();
        *colours.max_by_key(|(_, count)| **count).unwrap().0
    }

    fn of(&self, colour: [u8; 3]) -> usize {
        self.colours.get(&colour).copied().unwrap_or(0)
    }
}

#[test]
fn every_page_is_accessible() {
    let Some(browser) = Browser::new() else {
        return;
    };
    let site = site();
    for page in ["index", "all", "2026", "exit-cedar-south-2026-11"] {
        let page = site.join(format!("{page}.html"));
        let (document, said) = browser.show(&page, &["--dump-dom"]);
        assert!(!said.contains("CONSOLE"), "{}: {said}", page.display());
        assert_eq!(faults(&document, site), [""; 0], "{}", page.display());
    }
    // Faults are found where they are.
    let text = fs::read_to_string(site.join("index.html")).unwrap();
    let bad = text
        .replace("body { margin: 0;", "body { margin: 1px;")
        .replace("<h3>", "<h4>")
        .replace("scope=\"row\"", "onclick=\"x()\"")
        .replace("href=\"all.html\"", "href=\"https://example.org/\"");
    let page = site.join("bad.html");
    fs::write(&page, bad).unwrap();
    let (document, said) = browser.show(&page, &["--dump-dom"]);
    fs::remove_file(page).unwrap();
    says(&said, "Content Security Policy");
    let found = faults(&document, site).join("\n");
    says(&found, "level 4 below 2");
    says(&found, "a head of nothing");
    says(&found, "onclick");
    says(&found, "a way out");
}

/// Measures pages in frames: their width, background and requests.
const PROBE: &str = "<!doctype html><pre id=out></pre><script>
let left = PAGES.length * 2, lines = [];
for (const page of PAGES) for (const width of [360, 1280]) {
  const frame = document.createElement('iframe');
  frame.width = width; frame.height = 900; frame.src = page;
  frame.onload = () => {
    const root = frame.contentDocument.documentElement;
    frame.contentDocument.querySelectorAll('details').forEach(d => d.open = true);
    const requests = frame.contentWindow.performance.getEntriesByType('resource').map(e => e.name);
    lines.push([page, width, root.scrollWidth, requests.length].join(' '));
    if (--left == 0) document.getElementById('out').textContent = 'measured\\n' + lines.join('\\n');
  };
  document.body.append(frame);
}</script>";

#[test]
fn pages_fit_and_request_nothing() {
    let Some(browser) = Browser::new() else {
        return;
    };
    let site = site();
    let pages = ["index.html", "all.html", "exit-cedar-south-all.html"];
    let probe = site.join("probe.html");
    fs::write(&probe, PROBE.replace("PAGES", &format!("{pages:?}"))).unwrap();
    let (document, said) = browser.show(&probe, &["--dump-dom", "--allow-file-access-from-files"]);
    fs::remove_file(probe).unwrap();
    let (_, measured) = document
        .split_once("measured\n")
        .unwrap_or_else(|| panic!("{document}\n{said}"));
    let lines = measured.split("</pre>").next().unwrap().lines();
    let mut count = 0;
    for line in lines {
        let cells: Vec<&str> = line.split(' ').collect();
        let [_, width, scroll, requests] = cells[..] else {
            panic!("{line}")
        };
        assert_eq!((width, requests), (scroll, "0"), "{line}");
        count += 1;
    }
    assert_eq!(count, pages.len() * 2);
}

/// The colours of a scheme by name, and the text that precedes it.
fn palette(style: &str, from: &str) -> BTreeMap<String, [u8; 3]> {
    let (_, block) = style.split_once(from).unwrap();
    let (block, _) = block.split_once('}').unwrap();
    let colours = block.split(';').filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        let name = name.trim().strip_prefix("--")?;
        Some((name.to_owned(), colour(value.trim())))
    });
    colours.collect()
}

fn colour(hex: &str) -> [u8; 3] {
    let digits = hex.strip_prefix('#').unwrap();
    [0, 2, 4].map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
}

/// The contrast ratio of WCAG.
fn contrast(one: [u8; 3], other: [u8; 3]) -> f64 {
    let luminance = |colour: [u8; 3]| {
        let [r, g, b] = colour.map(|value| match f64::from(value) / 255.0 {
            value if value <= 0.040_45 => value / 12.92,
            value => ((value + 0.055) / 1.055).powf(2.4),
        });
        0.2126 * r + 0.7152 * g + 0.0722 * b
    };
    let (one, other) = (luminance(one) + 0.05, luminance(other) + 0.05);
    one.max(other) / one.min(other)
}

/// The light and dark palette of a page.
fn palettes(page: &Path) -> [BTreeMap<String, [u8; 3]>; 2] {
    let text = fs::read_to_string(page).unwrap();
    let (_, style) = text.split_once("<style>").unwrap();
    let (style, _) = style.split_once("</style>").unwrap();
    let (_, dark) = style.split_once("prefers-color-scheme: dark").unwrap();
    [palette(style, ":root {"), palette(dark, ":root {")]
}

#[test]
fn every_colour_contrasts_with_its_background() {
    let out = tempfile::tempdir().unwrap();
    let periods = tempfile::tempdir().unwrap();
    let rows = made::day("one", jiff::civil::date(2026, 11, 5), 1 << 40);
    made::put(periods.path(), "a.jsonl", &rows);
    report::write(&super::read(periods.path()), out.path()).unwrap();
    assert!((contrast([0; 3], [255; 3]) - 21.0).abs() < 1e-9);
    for palette in palettes(&out.path().join("index.html")) {
        for ground in ["paper", "surface", "track"] {
            for (least, names) in [
                (4.5, &["ink", "muted", "accent"][..]),
                // Graphics need less contrast than text; they have a track of their own length.
                (3.0, &["encrypted", "plain", "unknown", "six", "rest"][..]),
            ] {
                for name in names.iter().filter(|_| ground != "track" || least > 4.0) {
                    let found = contrast(palette[*name], palette[ground]);
                    assert!(found >= least, "{name} on {ground}: {found:.2}");
                }
            }
        }
    }
}

#[test]
fn pictures_show_both_schemes_and_widths() {
    let Some(browser) = Browser::new() else {
        return;
    };
    let site = site();
    let page = site.join("index.html");
    let [light, dark] = palettes(&page);
    for (name, size) in [("desktop", [1280, 1400]), ("mobile", [360, 1400])] {
        for (scheme, setting, palette) in [("light", LIGHT, &light), ("dark", DARK, &dark)] {
            let picture = browser.picture(&page, &format!("{name}-{scheme}"), size, setting);
            assert_eq!(picture.ground(), palette["paper"], "{name} {scheme}");
            // Text is rendered and bars are drawn.
            for (colour, least) in [
                ("encrypted", 5_000),
                ("plain", 500),
                ("surface", 10_000),
                ("ink", 300),
            ] {
                let found = picture.of(palette[colour]);
                let what = format!("{found} pixels of {colour}");
                assert!(found >= least, "{name} {scheme}: {what}");
            }
        }
    }
}
