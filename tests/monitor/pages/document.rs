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
        self.attributes
            .get(attribute)
            .is_some_and(|is| *is == value)
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
    let tags = tags(document);
    let mut faults = Vec::new();
    let mut fault = |is_fault: bool, what: String| {
        if is_fault {
            faults.push(what);
        }
    };
    let count = |name: &str| tags.iter().filter(|tag| tag.name == name).count();
    for (name, times) in [
        ("html", 1),
        ("h1", 1),
        ("main", 1),
        ("header", 1),
        ("footer", 1),
        ("nav", 1),
        ("title", 1),
    ] {
        let of = match name {
            // SVG pictures have titles, too.
            "title" => tags
                .iter()
                .position(|tag| tag.name == "/head")
                .map_or(0, |end| {
                    tags[..end].iter().filter(|tag| tag.name == "title").count()
                }),
            name => count(name),
        };
        fault(of != times, format!("{of} of {name}"));
    }
    fault(
        !tags[0].has("lang", "en")
            && !tags
                .iter()
                .any(|tag| tag.name == "html" && tag.has("lang", "en")),
        "no language".to_owned(),
    );
    let ids: Vec<&str> = tags
        .iter()
        .filter_map(|tag| tag.attributes.get("id").copied())
        .collect();
    let mut level = 0;
    let mut first_link = true;
    for (index, tag) in tags.iter().enumerate() {
        if let ["h", digit] = [tag.name.get(..1), tag.name.get(1..)].map(Option::unwrap_or_default)
            && let Ok(this) = digit.parse::<usize>()
        {
            fault(
                this > level + 1,
                format!("a heading of level {this} below {level}"),
            );
            fault(
                tag.text.trim().is_empty(),
                "a heading of nothing".to_owned(),
            );
            level = this;
        }
        if let Some(id) = tag.attributes.get("id") {
            fault(
                ids.iter().filter(|other| *other == id).count() > 1,
                format!("id {id} twice"),
            );
        }
        for id in tag
            .attributes
            .get("aria-labelledby")
            .into_iter()
            .flat_map(|ids| ids.split(' '))
        {
            fault(
                !ids.contains(&id),
                format!("no {id}, which names something"),
            );
        }
        for (attribute, value) in &tag.attributes {
            let is_active = attribute.starts_with("on") || *attribute == "style";
            fault(is_active, format!("the attribute {attribute}"));
            let is_way =
                ["href", "src", "srcset", "action", "data", "xlink:href"].contains(attribute);
            if let Some(id) = value.strip_prefix('#').filter(|_| is_way) {
                fault(
                    !ids.contains(&id),
                    format!("no {id}, to which a link leads"),
                );
            } else if is_way {
                fault(
                    value.contains(':') || value.starts_with('/'),
                    format!("a way out: {value}"),
                );
                fault(!beside.join(value).is_file(), format!("no file {value}"));
            }
        }
        match tag.name {
            "section" => fault(
                !tag.attributes.contains_key("aria-labelledby"),
                "a section without a name".to_owned(),
            ),
            "svg" => {
                let is_named =
                    tag.has("role", "img") && tag.attributes.contains_key("aria-labelledby");
                fault(
                    !is_named && !tag.has("aria-hidden", "true"),
                    "a picture without words".to_owned(),
                );
            }
            "table" => fault(
                tags[index + 1].name != "caption",
                "a table without a caption".to_owned(),
            ),
            "details" => fault(
                tags[index + 1].name != "summary",
                "details of nothing".to_owned(),
            ),
            "th" => fault(
                !tag.has("scope", "col") && !tag.has("scope", "row"),
                "a head of nothing".to_owned(),
            ),
            "a" => {
                fault(tag.text.trim().is_empty(), "a link of no words".to_owned());
                fault(
                    first_link && !tag.has("href", "#main"),
                    "the first link skips nothing".to_owned(),
                );
                first_link = false;
            }
            "script" | "iframe" | "object" | "embed" | "form" | "img" | "base" => {
                fault(true, format!("a {}", tag.name));
            }
            _ => {}
        }
    }
    faults
}
