//! The public CAs, a line each, with what they want that the protocol does not say. The names
//! and URLs of public CAs are here and nowhere else. The README's table of CAs has the same
//! names.

/// A public CA.
pub(super) struct Preset {
    pub(super) name: &'static str,
    /// Its directory.
    pub(super) url: &'static str,
    pub(super) external: External,
    /// Its orders fail without an e-mail address.
    pub(super) needs_email: bool,
    pub(super) signs_wildcards: bool,
    /// The only profile with IP addresses.
    pub(super) address_profile: Option<&'static str>,
    /// Said before an order.
    pub(super) notice: Option<&'static str>,
}

/// Whether an account needs an external account binding, and where it comes from.
#[derive(Clone, Copy)]
pub(super) enum External {
    NotNeeded,
    /// The user gets it there.
    From(&'static str),
    /// The same, or the CA gives it for an e-mail address at this URL.
    ByEmail(&'static str, &'static str),
}

impl Preset {
    const fn new(name: &'static str, url: &'static str) -> Self {
        Self {
            name,
            url,
            external: External::NotNeeded,
            needs_email: false,
            signs_wildcards: true,
            address_profile: None,
            notice: None,
        }
    }

    const fn external(mut self, external: External) -> Self {
        self.external = external;
        self
    }

    const fn needs_email(mut self) -> Self {
        self.needs_email = true;
        self
    }

    const fn without_wildcards(mut self) -> Self {
        self.signs_wildcards = false;
        self
    }

    const fn addresses_in(mut self, profile: &'static str) -> Self {
        self.address_profile = Some(profile);
        self
    }

    const fn notice(mut self, notice: &'static str) -> Self {
        self.notice = Some(notice);
        self
    }
}

const ZEROSSL_API: &str = "https://api.zerossl.com/acme/eab-credentials-email";
const ZEROSSL_SITE: &str = "https://app.zerossl.com/developer";
const GCLOUD: &str = "gcloud publicca external-account-keys create";
const ACTALIS: &str = "the ACME page of the customer area at actalis.com";
const SSLCOM: &str = "secure.ssl.com, Dashboard, API credentials";
const SSLCOM_PRICE: &str = "SSL.com charges an account with funds for a certificate of one year; without funds its certificates are free and last 90 days";

/// A name with `-staging` is the staging directory of the name without it.
#[rustfmt::skip]
pub(super) const PUBLIC: [Preset; 8] = [
    Preset::new("letsencrypt", "https://acme-v02.api.letsencrypt.org/directory").addresses_in("shortlived"),
    Preset::new("letsencrypt-staging", "https://acme-staging-v02.api.letsencrypt.org/directory").addresses_in("shortlived"),
    Preset::new("zerossl", "https://acme.zerossl.com/v2/DV90").external(External::ByEmail(ZEROSSL_API, ZEROSSL_SITE)),
    Preset::new("google", "https://dv.acme-v02.api.pki.goog/directory").external(External::From(GCLOUD)),
    Preset::new("google-staging", "https://dv.acme-v02.test-api.pki.goog/directory").external(External::From(GCLOUD)),
    Preset::new("actalis", "https://acme-api.actalis.com/acme/directory").external(External::From(ACTALIS)).without_wildcards(),
    Preset::new("sslcom-rsa", "https://acme.ssl.com/sslcom-dv-rsa").external(External::From(SSLCOM)).needs_email().notice(SSLCOM_PRICE),
    Preset::new("sslcom-ecc", "https://acme.ssl.com/sslcom-dv-ecc").external(External::From(SSLCOM)).needs_email().notice(SSLCOM_PRICE),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readme_lists_every_public_ca() {
        let readme = include_str!("../../README.md");
        for preset in &PUBLIC {
            let named = format!("`{}`", preset.name);
            let mut rows = readme.lines().filter(|line| line.starts_with("| `"));
            assert!(rows.any(|row| row.contains(&named)), "{named}");
        }
    }
}
