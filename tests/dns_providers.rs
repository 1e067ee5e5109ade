//! DNS-01 through the programming interfaces of providers: those of a few, as they document
//! them, in front of a real BIND, with Pebble as the CA.

use crate::support::bind::Bind;
use crate::support::dns_api::{Apis, TOKEN};
use crate::support::{Pebble, program, run};

struct Lab {
    bind: Bind,
    pebble: Pebble,
    apis: Apis,
}

impl Lab {
    fn start() -> Option<Self> {
        let nsupdate = program("CERTS_LAB_NSUPDATE", "/usr/bin/nsupdate")?;
        let bind = Bind::start()?;
        let pebble = Pebble::start_asking(0, Some(bind.server()))?;
        let apis = Apis::start(&bind, nsupdate);
        Some(Self { bind, pebble, apis })
    }

    fn issue(&self, provider: &str, variables: &[(&str, &str)], code: i32) -> String {
        let mut command = self
            .pebble
            .issue(&["example.com", "*.example.com", "--force"]);
        command.args(["--dns", provider]);
        command.env("CERTS_RESOLVER", self.bind.server().to_string());
        for (name, value) in variables {
            let variable = format!("CERTS_DNS_{}_{name}", provider.to_uppercase());
            command.env(variable, value);
        }
        let printed = run(self.apis.configure(&mut command), code);
        assert!(!printed.contains(TOKEN), "{printed}");
        printed
    }
}

#[test]
fn wildcard_is_issued_through_each_providers_interface() {
    let Some(lab) = Lab::start() else {
        return;
    };
    let endpoint = ("ENDPOINT", "https://pdns.example.net");
    for (provider, variables, zones) in [
        ("cloudflare", vec![("SECRET", TOKEN)], Some(3)),
        ("digitalocean", vec![("AUTH_TOKEN", TOKEN)], None),
        ("desec", vec![("AUTH_TOKEN", TOKEN)], None),
        ("hetzner", vec![("API_TOKEN", TOKEN)], Some(2)),
        ("pdns", vec![("API_KEY", TOKEN), endpoint], None),
    ] {
        let printed = lab.issue(provider, &variables, 0);
        assert!(
            printed.contains("issued; generation"),
            "{provider}: {printed}"
        );
        assert!(lab.apis.is_empty(), "{provider}: a value was left");
        // What a token sees besides the one zone is said where the provider says it.
        let said = printed
            .matches(" zones, and only example.com needs them")
            .count();
        assert_eq!(said, zones.map_or(0, |_| 1), "{provider}: {printed}");
        if let Some(zones) = zones {
            let words = format!("the credentials for {provider} see {zones} zones");
            assert!(printed.contains(&words), "{printed}");
        }
    }
}

#[test]
fn refused_token_names_provider_and_zone_and_exits_5() {
    let Some(lab) = Lab::start() else {
        return;
    };
    for (provider, name) in [("cloudflare", "SECRET"), ("hetzner", "API_TOKEN")] {
        let printed = lab.issue(provider, &[(name, "another-token")], 5);
        let words = format!(
            "{provider} did not add the TXT record _acme-challenge.example.com in zone example.com"
        );
        assert!(printed.contains(&words), "{printed}");
        assert!(
            printed.contains("hint: the provider does not accept the credentials"),
            "{printed}"
        );
        assert!(!printed.contains("another-token"), "{printed}");
    }
}
