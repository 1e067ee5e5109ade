//! A unit that systemd reloads. Like `systemctl reload`, it calls `ReloadUnit` of
//! org.freedesktop.systemd1 over D-Bus, and waits for the job's result.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::deploy::dbus::Bus;
use crate::deploy::target_settings::{
    self, DeployStage, InvalidTarget, Paths, Processes, Rights, ShortForm, TargetSettings, Writes,
};
use crate::deploy::{Delivery, DeployError, Target};
use crate::text::printable;

const WITHIN: Duration = Duration::from_secs(30);
const SYSTEMD: &str = "org.freedesktop.systemd1";
const OBJECT: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
/// The signals that end a job.
const ENDS: &str = "type='signal',interface='org.freedesktop.systemd1.Manager',member='JobRemoved'";

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

    /// The job's result; `done` means success.
    async fn reload(&self) -> io::Result<String> {
        let mut bus = Bus::connect(self.bus.as_deref()).await?;
        // Before the job starts: its end could be missed otherwise.
        bus.call_bus("AddMatch", &[ENDS]).await?;
        bus.call(SYSTEMD, OBJECT, MANAGER, "Subscribe", &[]).await?;
        let wanted = [self.unit.as_str(), "replace"];
        let begun = bus.call(SYSTEMD, OBJECT, MANAGER, "ReloadUnit", &wanted);
        let begun = begun.await?;
        let job = begun.values().text()?;
        loop {
            let ended = bus.signal("JobRemoved", &begun).await?;
            let mut values = ended.values();
            values.number()?;
            if values.text()? == job {
                // After the unit's name.
                values.text()?;
                return values.text();
            }
        }
    }

    async fn is_loaded(&self) -> io::Result<String> {
        let mut bus = Bus::connect(self.bus.as_deref()).await?;
        let unit = [self.unit.as_str()];
        let loaded = bus.call(SYSTEMD, OBJECT, MANAGER, "LoadUnit", &unit);
        let unit = loaded.await?.values().text()?;
        let property = ["org.freedesktop.systemd1.Unit", "ActiveState"];
        let properties = "org.freedesktop.DBus.Properties";
        let state = bus.call(SYSTEMD, &unit, properties, "Get", &property);
        state.await?.values().variant()
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
