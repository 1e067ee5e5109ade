//! Whom to hand over to, as the user writes it: `KIND[:WHERE]`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Target;
use super::nginx::Nginx;

/// A server to hand over to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Spec {
    /// `nginx[:PID_FILE]`.
    Nginx {
        /// Its pid file; else the usual places are searched.
        pid_file: Option<PathBuf>,
    },
}

impl Spec {
    /// The server itself; nothing is touched yet.
    #[must_use]
    pub fn target(&self) -> Arc<dyn Target> {
        match self {
            Self::Nginx { pid_file } => Arc::new(Nginx::new(pid_file.clone())),
        }
    }
}

impl FromStr for Spec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "nginx" => Ok(Self::Nginx { pid_file: None }),
            Some(("nginx", path)) if !path.is_empty() => Ok(Self::Nginx {
                pid_file: Some(path.into()),
            }),
            _ => Err(format!(
                "`{}` is no way to hand over that this version knows",
                text.escape_debug()
            )),
        }
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nginx { pid_file: None } => f.write_str("nginx"),
            Self::Nginx {
                pid_file: Some(path),
            } => write!(f, "nginx:{}", path.display()),
        }
    }
}

impl TryFrom<String> for Spec {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Spec> for String {
    fn from(spec: Spec) -> Self {
        spec.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for text in ["nginx", "nginx:/run/nginx.pid"] {
            assert_eq!(text.parse::<Spec>().unwrap().to_string(), text);
        }
        for text in ["", "nginx:", "apache", "docker:web"] {
            assert!(text.parse::<Spec>().is_err(), "{text}");
        }
    }
}
