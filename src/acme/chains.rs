//! Selects among a CA's alternate chains for one certificate (RFC 8555 section
//! 7.4.2) by the common name of the topmost issuer. It never verifies a chain.

use x509_parser::pem::Pem;

/// Whether the topmost issuer of the chain `pem` has the common name `name`.
pub(super) fn ends_at(pem: &str, name: &str) -> bool {
    let topmost = Pem::iter_from_buffer(pem.as_bytes()).last();
    let Some(Ok(topmost)) = topmost else {
        return false;
    };
    topmost.parse_x509().is_ok_and(|certificate| {
        let mut names = certificate.issuer().iter_common_name();
        names.any(|found| found.as_str().is_ok_and(|found| found == name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_matches_only_by_its_topmost_issuer() {
        let named = |name: &str| {
            let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
            params
                .distinguished_name
                .push(rcgen::DnType::CommonName, name);
            let key = rcgen::KeyPair::generate().unwrap();
            params.self_signed(&key).unwrap().pem()
        };
        let chain = format!("{}{}", named("Leaf"), named("Root X1"));
        assert!(ends_at(&chain, "Root X1"));
        assert!(!ends_at(&chain, "Leaf"));
        assert!(!ends_at("", "Root X1"));
        assert!(!ends_at(
            "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n",
            "Root X1"
        ));
    }
}
