//! Prometheus' text format: samples of one name stand together below their HELP and TYPE, whatever order they came in.

use std::collections::BTreeMap;
use std::fmt::Write;

/// What a family of samples is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Counts of values below bounds.
    Histogram,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

struct Family {
    help: String,
    kind: Kind,
    samples: String,
}

/// A page of metrics in the making.
#[derive(Default)]
pub(crate) struct Page(BTreeMap<String, Family>);

/// `{a="b",c="d"}` with what the format wants escaped; empty without labels.
pub(crate) fn labels(pairs: &[(&str, &str)]) -> String {
    if pairs.is_empty() {
        return String::new();
    }
    let mut out = String::from("{");
    for (i, (name, value)) in pairs.iter().enumerate() {
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let comma = if i == 0 { "" } else { "," };
        let _ = write!(out, "{comma}{name}=\"{value}\"");
    }
    out.push('}');
    out
}

/// A distribution of values in seconds.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    bounds: &'static [f64],
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    /// An empty one with these upper bounds.
    pub(crate) fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    /// Counts a value.
    pub(crate) fn add(&mut self, value: f64) {
        let at = self.bounds.iter().position(|b| value <= *b).unwrap_or(self.bounds.len());
        self.counts[at] += 1;
        self.sum += value;
    }
}

impl Page {
    fn family(&mut self, name: &str, help: &str, kind: Kind) -> &mut String {
        let new = || Family { help: help.to_owned(), kind, samples: String::new() };
        &mut self.0.entry(name.to_owned()).or_insert_with(new).samples
    }

    /// Adds a sample; `of` comes from [`labels`].
    pub(crate) fn put(&mut self, name: &str, help: &str, kind: Kind, of: &str, value: f64) {
        let family = self.family(name, help, kind);
        // As Go writes it, which not every reader takes in another spelling.
        let _ = if value == f64::INFINITY {
            writeln!(family, "{name}{of} +Inf")
        } else {
            writeln!(family, "{name}{of} {value}")
        };
    }

    /// Adds a gauge without labels.
    pub(crate) fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.put(name, help, Kind::Gauge, "", value);
    }

    /// Adds a distribution.
    pub(crate) fn histogram(&mut self, name: &str, help: &str, of: &str, values: &Histogram) {
        let out = self.family(name, help, Kind::Histogram);
        let inner = of.trim_start_matches('{').trim_end_matches('}');
        let comma = if inner.is_empty() { "" } else { "," };
        let mut total = 0;
        let bounds = values.bounds.iter().map(f64::to_string).chain(std::iter::once("+Inf".to_owned()));
        for (bound, count) in bounds.zip(&values.counts) {
            total += count;
            let _ = writeln!(out, "{name}_bucket{{{inner}{comma}le=\"{bound}\"}} {total}");
        }
        let _ = writeln!(out, "{name}_sum{of} {}\n{name}_count{of} {total}", values.sum);
    }

    /// The page.
    pub(crate) fn render(self) -> String {
        let mut out = String::new();
        for (name, family) in self.0 {
            let help = family.help.replace('\\', "\\\\").replace('\n', "\\n");
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {}\n{}", family.kind.name(), family.samples);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_a_name_stand_together() {
        let mut page = Page::default();
        page.put("b", "B.", Kind::Counter, &labels(&[("x", "1")]), 1.0);
        page.gauge("a", "A.", 0.5);
        page.gauge("c", "C.", f64::INFINITY);
        page.put("b", "B.", Kind::Counter, &labels(&[("x", "q\"\\\n")]), 2.0);
        let want = "# HELP a A.\n# TYPE a gauge\na 0.5\n# HELP b B.\n# TYPE b counter\nb{x=\"1\"} 1\nb{x=\"q\\\"\\\\\\n\"} 2\n# HELP c C.\n# TYPE c gauge\nc +Inf\n";
        assert_eq!(page.render(), want);
    }

    #[test]
    fn buckets_add_up() {
        let mut values = Histogram::new(&[0.1, 1.0]);
        for value in [0.05, 0.1, 0.5, 7.0] {
            values.add(value);
        }
        let mut page = Page::default();
        page.histogram("h", "H.", &labels(&[("x", "1")]), &values);
        let text = page.render();
        for line in [
            "h_bucket{x=\"1\",le=\"0.1\"} 2",
            "h_bucket{x=\"1\",le=\"1\"} 3",
            "h_bucket{x=\"1\",le=\"+Inf\"} 4",
            "h_sum{x=\"1\"} 7.65",
            "h_count{x=\"1\"} 4",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
    }
}
