//! A unit that systemd reloads. Like `systemctl reload`, it calls `ReloadUnit` of
//! org.freedesktop.systemd1 over D-Bus, and waits for the job's result.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zbus::zvariant::OwnedObjectPath;
use zbus::{Connection, Proxy, connection};

use crate::deploy::target_settings::{
    self, DeployStage, InvalidTarget, Paths, Processes, Rights, ShortForm, TargetSettings, Writes,
};
use crate::deploy::{Delivery, DeployError, Target};
use crate::text::printable;

const WITHIN: Duration = Duration::from_secs(30);
const MANAGER: &str = "org.freedesktop.systemd1";
const OBJECT: &str = "/org/freedesktop/systemd1";

/// systemd reloads the unit, as `systemctl reload UNIT` does: `ReloadUnit` over D-Bus, and `certs` waits for the
/// job's result. That takes root or a polkit rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// The unit; without a suffix it is a service
    unit: String,
    /// One `unix:` address of D-Bus
    #[schemars(extend("x-default" = "the system's bus"))]
    bus: Option<String>,
}

impl TargetSettings for Settings {
    const NAME: &'static str = "systemd";
    const SHORT: ShortForm = ShortForm::Where("unit");
    const EXAMPLE: &'static str = r#"kind = "systemd"
unit = "lighttpd.service""#;

    fn check(&self) -> Result<(), InvalidTarget> {
        // Other transports of D-Bus can start programs.
        match &self.bus {
            Some(bus) if !bus.starts_with("unix:") || bus.contains(';') => {
                Err(InvalidTarget::key("bus", "a bus is one `unix:` address"))
            }
            _ => Ok(()),
        }
    }

    fn rights(&self) -> Rights {
        Rights {
            processes: Processes::Controls,
            connects_to: None,
            reads: None,
            writes: Writes::Nothing,
        }
    }

    fn stage(&self) -> DeployStage {
        DeployStage::Server
    }

    fn coalesces(&self) -> bool {
        true
    }

    fn deadline(&self) -> Duration {
        target_settings::DEADLINE
    }

    fn paths(&mut self) -> Paths<'_> {
        Paths::default()
    }

    fn target(&self, _: String) -> Arc<dyn Target> {
        Arc::new(Systemd::new(&self.unit, self.bus.clone()))
    }
}

/// A unit.
#[derive(Debug)]
pub(crate) struct Systemd {
    name: String,
    unit: String,
    /// A D-Bus address; `None` for the system's bus.
    bus: Option<String>,
}

impl Systemd {
    /// `unit`; without a suffix it is a service.
    #[must_use]
    pub(crate) fn new(unit: &str, bus: Option<String>) -> Self {
        let unit = match unit.contains('.') {
            true => unit.to_owned(),
            false => format!("{unit}.service"),
        };
        Self {
            name: format!("systemd:{unit}"),
            unit,
            bus,
        }
    }

    fn failed(&self, detail: &str) -> DeployError {
        DeployError::Unreachable {
            target: self.name.clone(),
            detail: printable(detail),
        }
    }

    async fn connect(&self) -> zbus::Result<Connection> {
        match &self.bus {
            Some(address) => {
                connection::Builder::address(address.as_str())?
                    .build()
                    .await
            }
            None => Connection::system().await,
        }
    }

    /// The job's result; `done` means success.
    async fn reload(&self) -> zbus::Result<String> {
        let bus = self.connect().await?;
        let manager = Proxy::new(&bus, MANAGER, OBJECT, "org.freedesktop.systemd1.Manager").await?;
        // Before the job starts: its end could be missed otherwise.
        let mut ended = manager.receive_signal("JobRemoved").await?;
        manager.call_method("Subscribe", &()).await?;
        let wanted = (self.unit.as_str(), "replace");
        let begun: OwnedObjectPath = manager.call("ReloadUnit", &wanted).await?;
        while let Some(message) = ended.next().await {
            let body = message.body();
            let (_, job, _, result): (u32, OwnedObjectPath, String, String) = body.deserialize()?;
            if job == begun {
                return Ok(result);
            }
        }
        Err(zbus::Error::Failure("the bus was closed".to_owned()))
    }

    async fn is_loaded(&self) -> zbus::Result<String> {
        let bus = self.connect().await?;
        let manager = Proxy::new(&bus, MANAGER, OBJECT, "org.freedesktop.systemd1.Manager").await?;
        let unit: OwnedObjectPath = manager.call("LoadUnit", &(self.unit.as_str())).await?;
        let unit = Proxy::new(&bus, MANAGER, unit, "org.freedesktop.systemd1.Unit").await?;
        unit.get_property("ActiveState").await
    }
}

#[async_trait]
impl Target for Systemd {
    fn name(&self) -> &str {
        &self.name
    }

    async fn check(&self, _: &Delivery) -> Result<(), DeployError> {
        match tokio::time::timeout(WITHIN, self.is_loaded()).await {
            Ok(Ok(state)) if state == "active" || state == "reloading" => Ok(()),
            Ok(Ok(state)) => Err(self.failed(&format!("it is {state}"))),
            Ok(Err(error)) => Err(self.failed(&error.to_string())),
            Err(_) => Err(self.failed(&format!("systemd did not answer within {WITHIN:?}"))),
        }
    }

    async fn apply(&self, _: &Delivery) -> Result<(), DeployError> {
        match tokio::time::timeout(WITHIN, self.reload()).await {
            Ok(Ok(result)) if result == "done" => Ok(()),
            Ok(Ok(result)) => Err(self.failed(&format!(
                "its reload ended with `{result}`: see systemctl status {}",
                self.unit
            ))),
            Ok(Err(error)) => Err(self.failed(&error.to_string())),
            Err(_) => Err(self.failed(&format!("the reload did not end within {WITHIN:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploy::sample;

    #[tokio::test]
    async fn absent_bus_is_reported_with_the_unit() {
        let bus = Some("unix:path=/absent/bus".to_owned());
        let error = Systemd::new("nginx", bus)
            .apply(&sample())
            .await
            .unwrap_err();
        assert!(
            error.to_string().starts_with("systemd:nginx.service: "),
            "{error}"
        );
    }
}
