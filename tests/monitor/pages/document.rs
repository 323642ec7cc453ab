//! Checks that a document is accessible and has no active content.

use std::collections::BTreeMap;
use std::path::Path;

/// A tag as the browser serialises it, with its attributes and the text behind it.
struct Tag<'a> {
    name: &'a str,
    attributes: BTreeMap<&'a str, &'a str>,
    text: &'a str,
}

impl Tag<'_> {
    fn has(&self, attribute: &str, value: &str) -> bool {
        self.attributes.get(attribute) == Some(&value)
    }
}

/// All tags, except those within `style`.
fn tags(document: &str) -> Vec<Tag<'_>> {
    let pieces = document.split('<').skip(1).map(|piece| {
        // The browser does not escape > within attributes.
        let mut is_quoted = false;
        let end = piece.find(|c| {
            is_quoted ^= c == '"';
            c == '>' && !is_quoted
        });
        let (tag, text) = piece.split_at(end.unwrap());
        let (name, mut rest) = tag.split_once(' ').unwrap_or((tag, ""));
        let mut attributes = BTreeMap::new();
        while let Some((attribute, after)) = rest.split_once("=\"") {
            let (value, after) = after.split_once('"').unwrap();
            attributes.insert(attribute.trim(), value);
            rest = after;
        }
        Tag {
            name,
            attributes,
            text: &text[1..],
        }
    });
    pieces.collect()
}

/// The faults of a page, for users who cannot see it or do not trust it.
pub(super) fn faults(document: &str, beside: &Path) -> Vec<String> {
    const PATHS: [&str; 6] = ["href", "src", "srcset", "action", "data", "xlink:href"];
    let tags = tags(document);
    let mut faults = Vec::new();
    let mut fault = |is_fault: bool, what: &str| {
        if is_fault {
            faults.push(what.to_owned());
        }
    };
    for name in ["html", "h1", "main", "header", "footer", "nav"] {
        let times = tags.iter().filter(|tag| tag.name == name).count();
        fault(times != 1, &format!("{times} of {name}"));
    }
    // SVG pictures have titles, too.
    let head = tags.iter().take_while(|tag| tag.name != "/head");
    let titles = head.filter(|tag| tag.name == "title").count();
    fault(titles != 1, &format!("{titles} of title"));
    let is_english = |tag: &Tag<'_>| tag.name == "html" && tag.has("lang", "en");
    let has_language = tags[0].has("lang", "en") || tags.iter().any(is_english);
    fault(!has_language, "no language");
    let ids = tags.iter().filter_map(|tag| tag.attributes.get("id"));
    let ids: Vec<&str> = ids.copied().collect();
    let mut level = 0;
    let mut first_link = true;
    for (index, tag) in tags.iter().enumerate() {
        let has = |attribute: &str| tag.attributes.contains_key(attribute);
        let is_blank = tag.text.trim().is_empty();
        if let ["h", digit] = [tag.name.get(..1), tag.name.get(1..)].map(Option::unwrap_or_default)
            && let Ok(this) = digit.parse::<usize>()
        {
            let what = format!("a heading of level {this} below {level}");
            fault(this > level + 1, &what);
            fault(is_blank, "a heading of nothing");
            level = this;
        }
        if let Some(id) = tag.attributes.get("id") {
            let times = ids.iter().filter(|other| *other == id).count();
            fault(times > 1, &format!("id {id} twice"));
        }
        let labels = tag.attributes.get("aria-labelledby");
        for id in labels.into_iter().flat_map(|ids| ids.split(' ')) {
            let what = format!("no {id}, which names something");
            fault(!ids.contains(&id), &what);
        }
        for (attribute, value) in &tag.attributes {
            let is_active = attribute.starts_with("on") || *attribute == "style";
            fault(is_active, &format!("the attribute {attribute}"));
            let is_way = PATHS.contains(attribute);
            if let Some(id) = value.strip_prefix('#').filter(|_| is_way) {
                let what = format!("no {id}, to which a link leads");
                fault(!ids.contains(&id), &what);
            } else if is_way {
                let is_out = value.contains(':') || value.starts_with('/');
                fault(is_out, &format!("a way out: {value}"));
                fault(!beside.join(value).is_file(), &format!("no file {value}"));
            }
        }
        let begins_with = |name: &str| tags[index + 1].name == name;
        match tag.name {
            "section" => fault(!has("aria-labelledby"), "a section without a name"),
            "svg" => {
                let is_named = tag.has("role", "img") && has("aria-labelledby");
                let is_hidden = tag.has("aria-hidden", "true");
                fault(!is_named && !is_hidden, "a picture without words");
            }
            "table" => fault(!begins_with("caption"), "a table without a caption"),
            "details" => fault(!begins_with("summary"), "details of nothing"),
            "th" => {
                let has_scope = tag.has("scope", "col") || tag.has("scope", "row");
                fault(!has_scope, "a head of nothing");
            }
            "a" => {
                fault(is_blank, "a link of no words");
                let is_skip = tag.has("href", "#main");
                fault(first_link && !is_skip, "the first link skips nothing");
                first_link = false;
            }
            "script" | "iframe" | "object" | "embed" | "form" | "img" | "base" => {
                fault(true, &format!("a {}", tag.name));
            }
            _ => {}
        }
    }
    faults
}
