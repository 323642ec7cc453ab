//! Tiers: any machine, and root. The monitor: what it counts, keeps, publishes and shows.

mod count;
mod pages;
mod places;
mod published;
mod recovery;
mod tapped;
