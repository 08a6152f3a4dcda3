//! Drawings as SVG: lines over time, one panel above the other, with vertical lines for what
//! happened; and bars, with a dot for each time something was measured.

use anyhow::{Result, anyhow};
use plotters::backend::SVGBackend;
use plotters::chart::{ChartBuilder, ChartContext, SeriesLabelPosition};
use plotters::coord::Shift;
use plotters::coord::cartesian::Cartesian2d;
use plotters::coord::ranged1d::{Ranged, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{Circle, PathElement, Rectangle, Text};
use plotters::prelude::IntoLogRange;
use plotters::series::LineSeries;
use plotters::style::{BLACK, Color, IntoFont, RGBColor, ShapeStyle, WHITE};
use torrust_tracker_maintenance::evaluation::median;

use crate::generator::Mark;

/// Width of a drawing and height of one panel.
const SIZE: (u32, u32) = (960, 260);

/// The axis is longer than the lines by this factor: room for their names.
const LEGEND: f64 = 1.12;

/// Of the lines of a panel, in order; told apart without seeing red from green.
const COLOURS: [RGBColor; 4] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(204, 0, 70),
    RGBColor(90, 90, 90),
];

/// Where the names of marks stand, as parts of the height, one after the other: marks are
/// often close together.
const LEVELS: [f64; 5] = [0.96, 0.89, 0.82, 0.75, 0.68];

/// Height of a bar with the space below it.
const ROW: i32 = 34;

/// Where bars begin: the names stand before.
const NAMES: i32 = 220;

/// How long the longest is; the numbers stand behind.
const BARS: f64 = 640.0;

/// One line of a panel.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

impl Line {
    /// Of these points, in order.
    #[must_use]
    pub fn new(name: &str, points: Vec<(f64, f64)>) -> Self {
        Self {
            name: name.to_owned(),
            points,
        }
    }
}

/// How values are spread over the height.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// From 0 on.
    Linear,
    /// Each decade as high as the next.
    Logarithmic,
}

/// Lines that share an axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    /// What the values are, with their unit.
    pub title: String,
    /// How they are spread.
    pub scale: Scale,
    /// At most four.
    pub lines: Vec<Line>,
}

impl Panel {
    fn values(&self) -> impl Iterator<Item = f64> {
        let points = self.lines.iter().flat_map(|line| &line.points);
        points.map(|(_, value)| *value)
    }
}

/// Draws the panels one above the other over the same seconds.
///
/// # Errors
/// When a value is none, as infinity is not.
pub fn svg(title: &str, panels: &[Panel], marks: &[Mark]) -> Result<String> {
    let mut drawn = String::new();
    let last = panels
        .iter()
        .flat_map(|panel| panel.lines.iter().flat_map(|line| &line.points))
        .fold(1.0_f64, |last, (second, _)| last.max(*second));
    let last = last * LEGEND;
    let height = SIZE.1 * u32::try_from(panels.len().max(1))? + 30;
    {
        let root = SVGBackend::with_string(&mut drawn, (SIZE.0, height)).into_drawing_area();
        root.fill(&WHITE).map_err(told)?;
        let below = root
            .titled(title, ("sans-serif", 18).into_font())
            .map_err(told)?;
        let areas = below.split_evenly((panels.len().max(1), 1));
        for (panel, area) in panels.iter().zip(&areas) {
            draw(panel, area, last, marks)?;
        }
        root.present().map_err(told)?;
    }
    Ok(drawn)
}

/// One bar: what was measured, several times.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    name: String,
    values: Vec<f64>,
}

impl Bar {
    /// Of these values, none of them below 0.
    #[must_use]
    pub fn new(name: &str, values: Vec<f64>) -> Self {
        Self {
            name: name.to_owned(),
            values,
        }
    }
}

/// Draws the bars one below the other on one scale from 0 on, each as long as the median of
/// its values, with a dot for every value.
///
/// # Errors
/// When the drawing library refuses.
pub fn bars(title: &str, bars: &[Bar]) -> Result<String> {
    let mut drawn = String::new();
    let values = bars.iter().flat_map(|bar| &bar.values);
    let longest = values.copied().fold(0.0, f64::max);
    let height = ROW * i32::try_from(bars.len())? + 2 * ROW;
    {
        let size = (SIZE.0, u32::try_from(height)?);
        let root = SVGBackend::with_string(&mut drawn, size).into_drawing_area();
        root.fill(&WHITE).map_err(told)?;
        let below = root
            .titled(title, ("sans-serif", 18).into_font())
            .map_err(told)?;
        let mut top = 8;
        for (bar, colour) in bars.iter().zip(COLOURS.iter().cycle()) {
            draw_bar(bar, &below, longest, top, *colour)?;
            top += ROW;
        }
        root.present().map_err(told)?;
    }
    Ok(drawn)
}

/// One row, this far from the top.
fn draw_bar(bar: &Bar, area: &Area<'_>, longest: f64, top: i32, colour: RGBColor) -> Result<()> {
    let font = ("sans-serif", 13);
    let name = Text::new(bar.name.clone(), (8, top + 5), font);
    area.draw(&name).map_err(told)?;
    let Some(middle) = median(&bar.values) else {
        return Ok(());
    };
    let end = NAMES + along(middle, longest);
    let body = [(NAMES, top), (end, top + ROW - 10)];
    let body = Rectangle::new(body, colour.mix(0.6).filled());
    area.draw(&body).map_err(told)?;
    for value in &bar.values {
        let place = (NAMES + along(*value, longest), top + (ROW - 10) / 2);
        area.draw(&Circle::new(place, 3, BLACK.mix(0.7).filled()))
            .map_err(told)?;
    }
    // Behind the last dot.
    let last = bar.values.iter().copied().fold(0.0, f64::max);
    let place = (NAMES + along(last, longest) + 10, top + 5);
    let number = Text::new(format!("{middle:.0}"), place, font);
    area.draw(&number).map_err(told)
}

/// How many pixels a value is long.
fn along(value: f64, longest: f64) -> i32 {
    #[expect(clippy::cast_possible_truncation, reason = "at most the width")]
    let pixels = (value / longest.max(f64::MIN_POSITIVE) * BARS).round() as i32;
    pixels
}

/// The drawing library's errors hold what is not `Send`.
fn told(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("drawing: {error}")
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn draw(panel: &Panel, area: &Area<'_>, last: f64, marks: &[Mark]) -> Result<()> {
    let largest = panel.values().fold(0.0, f64::max);
    let mut builder = ChartBuilder::on(area);
    builder
        .caption(&panel.title, ("sans-serif", 14))
        .margin(8)
        .x_label_area_size(28)
        .y_label_area_size(64);
    match panel.scale {
        Scale::Linear => {
            let top = if largest > 0.0 { largest * 1.1 } else { 1.0 };
            let chart = builder
                .build_cartesian_2d(0.0..last, 0.0..top)
                .map_err(told)?;
            fill(panel, chart, marks, (0.0, top))
        }
        Scale::Logarithmic => {
            let smallest = panel
                .values()
                .filter(|value| *value > 0.0)
                .fold(f64::MAX, f64::min);
            let bottom = if smallest < f64::MAX { smallest } else { 0.1 };
            let bottom = 10.0_f64.powf(bottom.log10().floor());
            let top = 10.0_f64.powf(largest.max(bottom * 2.0).log10().ceil());
            let chart = builder
                .build_cartesian_2d(0.0..last, (bottom..top).log_scale())
                .map_err(told)?;
            fill(panel, chart, marks, (bottom, top))
        }
    }
}

fn fill<'a, Y>(
    panel: &Panel,
    mut chart: ChartContext<'a, SVGBackend<'a>, Cartesian2d<RangedCoordf64, Y>>,
    marks: &[Mark],
    (bottom, top): (f64, f64),
) -> Result<()>
where
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    chart
        .configure_mesh()
        .x_desc("seconds")
        .light_line_style(WHITE)
        .x_label_formatter(&|second| format!("{second:.0}"))
        .y_label_formatter(&|value| format!("{value}"))
        .draw()
        .map_err(told)?;
    for (mark, above) in marks.iter().zip(LEVELS.iter().cycle()) {
        let line = [(mark.second, bottom), (mark.second, top)];
        let style = BLACK.mix(0.4).stroke_width(1);
        chart
            .draw_series([PathElement::new(line, style)])
            .map_err(told)?;
        let height = if bottom > 0.0 {
            bottom * (top / bottom).powf(*above)
        } else {
            top * above
        };
        let label = Text::new(
            format!(" {}", mark.what),
            (mark.second, height),
            ("sans-serif", 11),
        );
        chart.draw_series([label]).map_err(told)?;
    }
    for (line, colour) in panel.lines.iter().zip(COLOURS.iter().cycle()) {
        let style = ShapeStyle::from(colour).stroke_width(2);
        // A latency of nothing has no place on a logarithmic scale.
        let points = line
            .points
            .iter()
            .filter(|(_, value)| *value >= bottom)
            .copied();
        chart
            .draw_series(LineSeries::new(points, style))
            .map_err(told)?
            .label(&line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::MiddleRight)
        .background_style(WHITE.mix(0.8))
        .label_font(("sans-serif", 12))
        .draw()
        .map_err(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(scale: Scale, points: Vec<(f64, f64)>) -> Panel {
        Panel {
            title: "a <title>".to_owned(),
            scale,
            lines: vec![Line::new("one", points), Line::new("none", Vec::new())],
        }
    }

    #[test]
    fn lines_and_marks_are_drawn_and_text_is_escaped() -> Result<()> {
        for scale in [Scale::Linear, Scale::Logarithmic] {
            let points = vec![(0.5, 0.2), (1.5, 900.0), (2.5, 0.0)];
            let mark = Mark {
                second: 1.0,
                what: "gate closed".to_owned(),
            };
            let drawn = svg("load", &[panel(scale, points)], &[mark])?;
            assert!(drawn.starts_with("<svg") && drawn.trim_end().ends_with("</svg>"));
            assert!(drawn.contains("gate closed") && drawn.contains("a &lt;title&gt;"));
            assert!(drawn.contains("<polyline"));
        }
        Ok(())
    }

    #[test]
    fn a_bar_has_a_dot_for_each_value_and_the_longest_is_as_long_as_can_be() -> Result<()> {
        let long = Bar::new("ours & <others>", vec![90_000.0, 100_000.0, 80_000.0]);
        let silent = Bar::new("upstream", vec![0.0, 0.0]);
        let drawn = bars(
            "announces/s",
            &[long, silent, Bar::new("not measured", Vec::new())],
        )?;
        assert_eq!(drawn.matches("<circle").count(), 5);
        assert!(drawn.contains("ours &amp; &lt;others&gt;") && drawn.contains("not measured"));
        assert!(drawn.contains("90000"), "{drawn}");
        assert_eq!(
            (along(100_000.0, 100_000.0), along(0.0, 100_000.0)),
            (640, 0)
        );
        assert_eq!(along(0.0, 0.0), 0);
        bars("nothing", &[])?;
        Ok(())
    }

    #[test]
    fn nothing_to_draw_is_drawn_too() -> Result<()> {
        for scale in [Scale::Linear, Scale::Logarithmic] {
            svg("load", &[panel(scale, Vec::new())], &[])?;
            svg("load", &[panel(scale, vec![(0.5, 0.0)])], &[])?;
        }
        svg("load", &[], &[])?;
        Ok(())
    }
}
