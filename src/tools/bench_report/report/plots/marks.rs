//! The marks on the lines: a forwarder has the same shape, solid or hollow, in every plot.

use super::super::names;
use plotters::element::{PathElement, Polygon};
use plotters::style::{Color, WHITE};

type Pixel = (i32, i32);

const SHAPES: [&[Pixel]; 6] = [
    // Approximates a circle.
    &[
        (-2, -5),
        (2, -5),
        (5, -2),
        (5, 2),
        (2, 5),
        (-2, 5),
        (-5, 2),
        (-5, -2),
    ],
    &[(-4, -4), (4, -4), (4, 4), (-4, 4)],
    &[(0, -6), (6, 4), (-6, 4)],
    &[(0, -6), (6, 0), (0, 6), (-6, 0)],
    &[(0, 6), (6, -4), (-6, -4)],
    &[
        (-5, -2),
        (-2, -2),
        (-2, -5),
        (2, -5),
        (2, -2),
        (5, -2),
        (5, 2),
        (2, 2),
        (2, 5),
        (-2, 5),
        (-2, 2),
        (-5, 2),
    ],
];

/// The area and the outline of a mark, relative to its position.
pub(super) fn mark(forwarder: &str) -> (Polygon<Pixel>, PathElement<Pixel>) {
    let (place, color) = (names::place(forwarder), names::color(forwarder));
    let shape = SHAPES[place % SHAPES.len()];
    let ground = if place < SHAPES.len() { color } else { WHITE };
    let outline: Vec<_> = shape.iter().chain(shape.first()).copied().collect();
    (
        Polygon::new(shape.to_vec(), ground.filled()),
        PathElement::new(outline, color.stroke_width(2)),
    )
}
