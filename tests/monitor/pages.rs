//! The report: what periods' files add up to, and the page that shows it.

mod browser;
mod made;
