//! What the command line says, in the words of the configuration's keys.

use super::layer::{Layer, Raw, Value};
use super::problem::{Given, Place, Problems};

/// What the command line says; an option that was not given is absent.
#[derive(Clone, Debug, Default)]
pub struct Options {
    values: Vec<(&'static str, Value)>,
    pub(super) names: Vec<Value>,
    pub(super) lineage: Option<Value>,
    pub(super) config: Option<String>,
}

impl Options {
    /// `--key TEXT`.
    pub fn text(&mut self, key: &'static str, text: Option<&str>) {
        if let Some(text) = text {
            self.values.push((key, Value::text(text, &place(key))));
        }
    }

    /// `--key TEXT`, repeatable.
    pub fn list(&mut self, key: &'static str, texts: &[String]) {
        if !texts.is_empty() {
            let value = Value::list(texts.iter().map(String::as_str), &place(key));
            self.values.push((key, value));
        }
    }

    /// `--key`, which can only turn something on.
    pub fn flag(&mut self, key: &'static str, given: bool) {
        self.switch(key, given.then_some(true));
    }

    /// `--key on|off`.
    pub fn switch(&mut self, key: &'static str, on: Option<bool>) {
        if let Some(on) = on {
            let value = Given {
                value: Raw::Truth(on),
                place: place(key),
            };
            self.values.push((key, value));
        }
    }

    /// The names of one certificate.
    pub fn names(&mut self, names: &[String]) {
        let place = Place::Option("NAME".to_owned());
        self.names = names.iter().map(|name| Value::text(name, &place)).collect();
    }

    /// `--name`, that certificate's own name.
    pub fn lineage(&mut self, lineage: Option<&str>) {
        self.lineage = lineage.map(|lineage| Value::text(lineage, &place("name")));
    }

    /// `--config FILE`.
    pub fn config(&mut self, file: Option<&str>) {
        self.config = file.map(str::to_owned);
    }

    pub(super) fn layer(&self, problems: &mut Problems) -> Layer {
        let mut layer = Layer::default();
        for (key, value) in &self.values {
            layer.put(key, value, problems);
        }
        if layer.shared.webroot.is_some() && layer.shared.http_listen.is_some() {
            problems.add(
                &place("webroot"),
                "it and --http-listen exclude each other",
                "keep the one that answers on port 80",
            );
        }
        layer
    }
}

/// `ca_root` is `--ca-root`.
fn place(key: &str) -> Place {
    Place::Option(format!("--{}", key.replace(['_', '.'], "-")))
}
