//! Rules for the readers with any content in the files of another client.

use super::lines::{Assignments, Ini};
use super::{Found, Remark, RenewalSettings, acme_sh, certbot, traefik};

/// Settings that are imported are safe to use, and remarks are printable.
pub(crate) fn file(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let mut remarks = Vec::new();
    if let Ok(ini) = Ini::parse(text) {
        check(&certbot::renewal(&ini, &mut remarks));
    }
    if let Ok(conf) = Assignments::parse(text) {
        check(&acme_sh::renewal(&conf, &mut remarks));
    }
    if let Some(Found {
        certificates,
        remarks: more,
        ..
    }) = traefik::parse(text)
    {
        remarks.extend(more);
        for one in certificates {
            assert!(!one.lineage.as_str().contains(['/', '\0']));
        }
    }
    for Remark { subject, text, .. } in remarks {
        assert!(!subject.contains(char::is_control), "{subject:?}");
        assert!(!text.contains(char::is_control), "{text:?}");
    }
}

fn check(renewal: &RenewalSettings) {
    for program in &renewal.programs {
        assert!(program.is_absolute());
        let text = program.to_string_lossy();
        assert!(!text.contains([' ', '$', ';', '|', '&', '\'', '"', '`', '\n']));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;

    const NAMES: &str = "(Le_Webroot|Le_ReloadCmd|Le_RealKeyPath|server|authenticator|webroot_path|http01_port|renew_hook|installer|\\[renewalparams\\]|\\[\\[webroot_map\\]\\]|[a-z]{1,3})";
    const VALUES: &str = "('no'|standalone|webroot|dns_x|/a/b,|/bin/x;|'/bin/x'|__ACME_BASE64__START_[A-Za-z/=]{0,8}(__ACME_BASE64__END_)?|\\PC{0,12}|[\\x01-\\x09\\x7f-\\x9f]{0,4})";

    proptest::proptest! {
        #[test]
        fn any_settings_keep_rules(lines in vec((NAMES, "( ?=? ?)", VALUES), 0..12)) {
            let lines = lines.iter().map(|(name, is, value)| format!("{name}{is}{value}\n"));
            file(lines.collect::<String>().as_bytes());
        }

        #[test]
        fn any_traefik_state_keeps_rules(
            name in "[a-z./*\\x01-\\x1f\\x7f-\\x9f ]{0,12}",
            value in "(null|7|\"[a-z*./]{0,9}\"|\\[\\]|\\{\\})",
        ) {
            let name = serde_json::Value::from(name);
            let pair = format!(r#"{{"domain": {{"main": {name}}}, "certificate": {value}, "key": "a2V5"}}"#);
            for uri in [value.as_str(), r#""https://ca.example/1""#] {
                let account = format!(r#"{{"Registration": {{"uri": {uri}}}, "PrivateKey": {value}, "Email": {name}}}"#);
                file(format!(r#"{{{name}: {{"Account": {account}, "Certificates": [{pair}, {value}]}}}}"#).as_bytes());
            }
        }
    }
}
