//! The options of a certificate in a fleet. Where a machine writes it and which servers it
//! reloads are that machine's own; all else is shared.

use serde_json::{Map, Value};

/// The keys that each machine sets for itself.
const OWN: [&str; 4] = ["output", "deploy", "verify", "orphaned"];

/// What the machines share of these options.
pub(super) fn shared(json: &str) -> String {
    let Ok(Value::Object(mut options)) = serde_json::from_str(json) else {
        return json.to_owned();
    };
    options.retain(|key, _| !OWN.contains(&key.as_str()));
    written(options)
}

/// The `shared` options with this machine's own.
pub(super) fn copied(shared: &str, own: Option<&str>) -> String {
    let Ok(Value::Object(mut options)) = serde_json::from_str(shared) else {
        return shared.to_owned();
    };
    let own = own.and_then(|own| serde_json::from_str::<Map<_, _>>(own).ok());
    for (key, value) in own.unwrap_or_default() {
        if OWN.contains(&key.as_str()) {
            options.insert(key, value);
        }
    }
    written(options)
}

fn written(options: Map<String, Value>) -> String {
    serde_json::to_string_pretty(&options).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_keep_their_own_options() {
        let one = r#"{"names": ["a"], "deploy": ["nginx"], "output": {"directory": "/one"}}"#;
        let other = r#"{"names": ["b"], "deploy": ["haproxy"], "verify": ["a:443"]}"#;
        let value = |json: &str| serde_json::from_str::<Value>(json).unwrap();
        let announced = shared(one);
        assert_eq!(value(&announced), value(r#"{"names": ["a"]}"#));
        let kept = r#"{"names": ["a"], "deploy": ["haproxy"], "verify": ["a:443"]}"#;
        assert_eq!(value(&copied(&announced, Some(other))), value(kept));
        assert_eq!(value(&copied(&announced, None)), value(&announced));
        assert_eq!(shared("damaged"), "damaged");
    }
}
