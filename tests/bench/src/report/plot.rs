//! The chief figures as bars, in one picture.

use super::{
    Case, Figures,
    table::{Column, Spread},
};

const PANELS: &[Column] = &[
    ("CPU seconds per 100,000 events, at max", 2, |figures| figures.cpu_seconds),
    ("events/s, at max", 0, |figures| figures.rate),
    ("p99 in ms, at half of max", 2, |figures| figures.p99_ms),
    ("RSS peak, MiB", 1, |figures| figures.peak_mib),
];

const LABEL_WIDTH: f64 = 330.0;
const PANEL_WIDTH: f64 = 270.0;
const BAR_WIDTH: f64 = 190.0;
const LINE_HEIGHT: f64 = 20.0;
const TOP: f64 = 50.0;

/// Bars up to the medians, with a line from the smallest to the largest figure.
pub(super) fn render(lines: &[(Case, Vec<Figures>)]) -> String {
    let paths = lines.chunk_by(|(one, _), (other, _)| one.path == other.path);
    let rows = lines.len() + paths.clone().count();
    let width = LABEL_WIDTH + PANEL_WIDTH * PANELS.len() as f64;
    let height = TOP + LINE_HEIGHT * (rows as f64 + 1.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    for (place, (title, ..)) in PANELS.iter().enumerate() {
        text(&mut svg, panel_left(place), 30.0, "bold", title);
    }
    let mut y = TOP;
    for path in paths {
        text(&mut svg, 10.0, y + 14.0, "bold", path[0].0.path);
        y += LINE_HEIGHT;
        for (case, figures) in path {
            text(&mut svg, 20.0, y + 14.0, "normal", &case.name());
            for (place, panel) in PANELS.iter().enumerate() {
                bar(&mut svg, panel_left(place), y, case, panel, figures, most(panel, lines));
            }
            y += LINE_HEIGHT;
        }
    }
    svg + "</svg>\n"
}

fn panel_left(place: usize) -> f64 {
    LABEL_WIDTH + PANEL_WIDTH * place as f64
}

/// The largest figure of a panel, which is as long as there is room.
fn most((_, _, figure): &Column, lines: &[(Case, Vec<Figures>)]) -> f64 {
    lines.iter().flat_map(|(_, figures)| figures.iter().map(figure)).fold(f64::MIN_POSITIVE, f64::max)
}

fn bar(svg: &mut String, left: f64, y: f64, case: &Case, (_, digits, figure): &Column, figures: &[Figures], most: f64) {
    let spread = Spread::of(figures.iter().map(figure));
    let [median, least, largest] = [spread.median, spread.least, spread.most].map(|value| value / most * BAR_WIDTH);
    let colour = if case.system.is_ours() { "#2a6fb0" } else { "#b0b0b0" };
    let (top, middle) = (y + 3.0, y + 10.0);
    svg.push_str(&format!(
        "<rect x=\"{left}\" y=\"{top}\" width=\"{median:.1}\" height=\"14\" fill=\"{colour}\"/>\n\
         <line x1=\"{:.1}\" y1=\"{middle}\" x2=\"{:.1}\" y2=\"{middle}\" stroke=\"#000\"/>\n",
        left + least,
        left + largest,
    ));
    text(svg, left + largest.max(median) + 5.0, y + 14.0, "normal", &format!("{:.digits$}", spread.median));
}

fn text(svg: &mut String, x: f64, y: f64, weight: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    svg.push_str(&format!("<text x=\"{x:.1}\" y=\"{y:.1}\" font-weight=\"{weight}\">{text}</text>\n"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::cases;

    #[test]
    fn the_largest_figure_fills_its_panel_and_half_of_it_a_half() {
        let figures = |rate| Figures { rate, ..Figures::default() };
        let lines: Vec<_> = cases().into_iter().take(2).zip([vec![figures(200.0)], vec![figures(100.0)]]).collect();
        let svg = render(&lines);
        let y = TOP + LINE_HEIGHT + 3.0;
        let x = panel_left(1);
        assert!(
            svg.contains(&format!("<rect x=\"{x}\" y=\"{y}\" width=\"190.0\" height=\"14\" fill=\"#2a6fb0\"/>")),
            "{svg}"
        );
        let y = y + LINE_HEIGHT;
        assert!(
            svg.contains(&format!("<rect x=\"{x}\" y=\"{y}\" width=\"95.0\" height=\"14\" fill=\"#b0b0b0\"/>")),
            "{svg}"
        );
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    }
}
