//! A unit that systemd reloads. Like `systemctl reload`, it calls `ReloadUnit` of
//! org.freedesktop.systemd1 over D-Bus, and waits for the job's result.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::deploy::dbus::Bus;
use crate::deploy::keys::values::within;
use crate::deploy::target_settings::prelude::*;

const WITHIN: Duration = Duration::from_secs(30);
const SYSTEMD: &str = "org.freedesktop.systemd1";
const OBJECT: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";

settings! {
    /// systemd reloads the unit, as `systemctl reload UNIT` does: `ReloadUnit` over D-Bus, and `certs` waits for the
    /// job's result. That takes root or a polkit rule.
    struct Settings {
        /// The unit; without a suffix it is a service
        unit: String,
        /// One `unix:` address of D-Bus
        #[schemars(extend("x-default" = "the system's bus"))]
        bus: Option<String>,
        /// How long the reload may take, from 1s to 60m
        #[schemars(extend("default" = "2m"))]
        timeout: Option<Timeout>,
    }
}

impl TargetSettings for Settings {
    const KIND: &'static str = "systemd";
    const SHORT: ShortForm = ShortForm::Keys(&["unit"]);
    const EXAMPLE: &'static str = r#"unit = "lighttpd.service""#;
    const STAGE: DeployStage = DeployStage::AllCertificates;

    fn invalid_key(&self) -> Option<InvalidTarget> {
        // Other transports of D-Bus can start programs.
        let bus = self.bus.as_ref()?;
        let is_valid = bus.starts_with("unix:") && !bus.contains(';');
        (!is_valid).then(|| InvalidTarget::key("bus", "a bus is one `unix:` address"))
    }

    fn rights(&self) -> Rights {
        Rights {
            connects_to: Some(self.socket()),
            ..Rights::over(Processes::Controls)
        }
    }

    fn target(&self) -> Arc<dyn Target> {
        Arc::new(self.clone())
    }

    fn deadline(&self) -> Duration {
        within(self.timeout.as_ref())
    }
}

impl Settings {
    /// The socket of the bus.
    fn socket(&self) -> PathBuf {
        let named = self
            .bus
            .as_deref()
            .and_then(|bus| bus.strip_prefix("unix:path="));
        named.unwrap_or("/run/dbus/system_bus_socket").into()
    }

    /// The unit; without a suffix it is a service.
    fn unit(&self) -> String {
        match self.unit.contains('.') {
            true => self.unit.clone(),
            false => format!("{}.service", self.unit),
        }
    }

    /// The job's result; `done` means success.
    async fn reload(&self) -> io::Result<String> {
        let mut bus = Bus::connect(self.bus.as_deref()).await?;
        let systemd = bus.owner(SYSTEMD).await?;
        // Before the job starts: its end could be missed otherwise.
        bus.follow(&systemd, MANAGER, "JobRemoved").await?;
        let subscribed = bus.call(&systemd, OBJECT, MANAGER, "Subscribe", &[]);
        subscribed.await?;
        let unit = self.unit();
        let wanted = [unit.as_str(), "replace"];
        let begun = bus.call(&systemd, OBJECT, MANAGER, "ReloadUnit", &wanted);
        let job = begun.await?.values().text()?;
        loop {
            let ended = bus.signal().await?;
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
        let systemd = bus.owner(SYSTEMD).await?;
        let unit = self.unit();
        let unit = [unit.as_str()];
        let loaded = bus.call(&systemd, OBJECT, MANAGER, "LoadUnit", &unit);
        let unit = loaded.await?.values().text()?;
        let property = ["org.freedesktop.systemd1.Unit", "ActiveState"];
        let properties = "org.freedesktop.DBus.Properties";
        let state = bus.call(&systemd, &unit, properties, "Get", &property);
        state.await?.values().variant()
    }
}

#[async_trait]
impl Target for Settings {
    fn name(&self) -> String {
        format!("systemd:{}", self.unit())
    }

    async fn check(&self, _: &Delivery) -> Result<(), DeployCause> {
        match tokio::time::timeout(WITHIN, self.is_loaded()).await {
            Ok(Ok(state)) if state == "active" || state == "reloading" => Ok(()),
            Ok(Ok(state)) => Err(DeployCause::unreachable(&format!("it is {state}"))),
            Ok(Err(error)) => Err(DeployCause::unreachable(&error.to_string())),
            Err(_) => Err(DeployCause::unreachable(&format!(
                "systemd did not answer within {} s",
                WITHIN.as_secs()
            ))),
        }
    }

    async fn apply(&self, _: &Delivery) -> Result<(), DeployCause> {
        match tokio::time::timeout(self.deadline(), self.reload()).await {
            Ok(Ok(result)) if result == "done" => Ok(()),
            Ok(Ok(result)) => Err(DeployCause::unreachable(&format!(
                "its reload ended with `{result}`: see systemctl status {}",
                self.unit()
            ))),
            Ok(Err(error)) => Err(DeployCause::unreachable(&error.to_string())),
            Err(_) => Err(DeployCause::unreachable(&format!(
                "the reload did not end within {} s; `timeout` in its [deploy.NAME] allows more",
                self.deadline().as_secs()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::deploy::sample;
    use crate::deploy::target::DeployTarget;

    #[tokio::test]
    async fn absent_bus_is_reported_with_the_unit() {
        let keys = [("unit", "nginx"), ("bus", "unix:path=/absent/bus")];
        let keys = keys.map(|(key, value)| (key.to_owned(), vec![value.to_owned()]));
        let systemd = DeployTarget::long("systemd", keys.into()).unwrap().target();
        let error = systemd.apply(&sample()).await.unwrap_err();
        let error = error.of(systemd.name());
        assert!(
            error.to_string().starts_with("systemd:nginx.service: "),
            "{error}"
        );
    }
}
