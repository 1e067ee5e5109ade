//! What must hold of the readers whatever stands in a file of another client.

use super::lines::{Assignments, Ini};
use super::{Found, Remark, Renewal, acme_sh, certbot, traefik};

/// What is taken is fit to be used, and what is said of the rest fit to be shown.
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
        remarks: said,
        ..
    }) = traefik::parse(text)
    {
        remarks.extend(said);
        for one in certificates {
            assert!(!one.lineage.as_str().contains(['/', '\0']));
        }
    }
    for Remark { subject, text, .. } in remarks {
        assert!(!subject.contains(char::is_control), "{subject:?}");
        assert!(!text.contains(char::is_control), "{text:?}");
    }
}

fn check(renewal: &Renewal) {
    for program in &renewal.programs {
        assert!(program.is_absolute());
        let text = program.to_string_lossy();
        assert!(!text.contains([' ', '$', ';', '|', '&', '\'', '"', '`', '\n']));
    }
}
