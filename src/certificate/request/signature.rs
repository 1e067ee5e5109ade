//! The signature of a signing request: by the key in it, and with SHA-2. x509-parser checks
//! neither P-521 nor SHA-512 with ECDSA, and takes SHA-1.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA384_ASN1, ECDSA_P256_SHA512_ASN1, ECDSA_P384_SHA256_ASN1,
    ECDSA_P384_SHA384_ASN1, ECDSA_P384_SHA512_ASN1, ECDSA_P521_SHA256_ASN1, ECDSA_P521_SHA384_ASN1,
    ECDSA_P521_SHA512_ASN1, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384,
    RSA_PSS_2048_8192_SHA512, UnparsedPublicKey, VerificationAlgorithm,
};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::signature_algorithm::SignatureAlgorithm;

type Algorithm = &'static dyn VerificationAlgorithm;

/// With SHA-256, SHA-384 and SHA-512.
const RSA: [Algorithm; 3] = [
    &RSA_PKCS1_2048_8192_SHA256,
    &RSA_PKCS1_2048_8192_SHA384,
    &RSA_PKCS1_2048_8192_SHA512,
];
const RSA_PSS: [Algorithm; 3] = [
    &RSA_PSS_2048_8192_SHA256,
    &RSA_PSS_2048_8192_SHA384,
    &RSA_PSS_2048_8192_SHA512,
];
/// The same for each curve.
pub(super) const CURVES: [(&str, [Algorithm; 3]); 3] = [
    (
        "1.2.840.10045.3.1.7", // P-256
        [
            &ECDSA_P256_SHA256_ASN1,
            &ECDSA_P256_SHA384_ASN1,
            &ECDSA_P256_SHA512_ASN1,
        ],
    ),
    (
        "1.3.132.0.34", // P-384
        [
            &ECDSA_P384_SHA256_ASN1,
            &ECDSA_P384_SHA384_ASN1,
            &ECDSA_P384_SHA512_ASN1,
        ],
    ),
    (
        "1.3.132.0.35", // P-521
        [
            &ECDSA_P521_SHA256_ASN1,
            &ECDSA_P521_SHA384_ASN1,
            &ECDSA_P521_SHA512_ASN1,
        ],
    ),
];

/// Verifies the signature of `request`.
///
/// # Errors
/// Why it is not valid, in words.
pub(super) fn verify(request: &X509CertificationRequest<'_>) -> Result<(), String> {
    let algorithm = request.signature_algorithm.algorithm.to_id_string();
    let by = match algorithm.as_str() {
        "1.2.840.113549.1.1.4" => return Err("it is signed with MD5: sign it with SHA-256".into()),
        "1.2.840.113549.1.1.5" | "1.3.14.3.2.29" | "1.2.840.10045.4.1" => {
            return Err("it is signed with SHA-1: sign it with SHA-256".into());
        }
        "1.2.840.113549.1.1.11" => Some(RSA[0]),
        "1.2.840.113549.1.1.12" => Some(RSA[1]),
        "1.2.840.113549.1.1.13" => Some(RSA[2]),
        "1.2.840.113549.1.1.10" => Some(pss(request)?),
        "1.2.840.10045.4.3.2" => on_curve(request, 0),
        "1.2.840.10045.4.3.3" => on_curve(request, 1),
        "1.2.840.10045.4.3.4" => on_curve(request, 2),
        _ => None,
    };
    let by = by.ok_or_else(|| {
        format!("its signature algorithm {algorithm} is not supported: sign it with SHA-256")
    })?;
    let info = &request.certification_request_info;
    let key = UnparsedPublicKey::new(by, &info.subject_pki.subject_public_key.data);
    key.verify(info.raw, &request.signature_value.data)
        .map_err(|_| {
            "its signature is invalid: it was changed, or made with another key".to_owned()
        })
}

fn on_curve(request: &X509CertificationRequest<'_>, hash: usize) -> Option<Algorithm> {
    let key = &request.certification_request_info.subject_pki;
    let curve = super::curve_of(key);
    let known = CURVES.iter().find(|(oid, _)| *oid == curve);
    known.map(|(_, algorithms)| algorithms[hash])
}

/// RSA-PSS with the salt that TLS 1.3 and all CAs want: as long as the hash. The library
/// checks no other.
fn pss(request: &X509CertificationRequest<'_>) -> Result<Algorithm, String> {
    let parsed = SignatureAlgorithm::try_from(&request.signature_algorithm);
    let Ok(SignatureAlgorithm::RSASSA_PSS(parameters)) = parsed else {
        return Err("its RSA-PSS parameters are not valid".to_owned());
    };
    let (index, length) = match parameters.hash_algorithm_oid().to_id_string().as_str() {
        "2.16.840.1.101.3.4.2.1" => (0, 32),
        "2.16.840.1.101.3.4.2.2" => (1, 48),
        "2.16.840.1.101.3.4.2.3" => (2, 64),
        _ => {
            return Err(
                "it is signed by RSA-PSS without SHA-256, SHA-384 or SHA-512: sign it with SHA-256"
                    .to_owned(),
            );
        }
    };
    match parameters.salt_length() == length {
        true => Ok(RSA_PSS[index]),
        false => Err(format!(
            "its RSA-PSS salt has {} bytes, and CAs take one as long as the hash, {length}: openssl req makes it with -sigopt rsa_pss_saltlen:-1",
            parameters.salt_length()
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::super::SigningRequest;

    fn openssl(directory: &Path, arguments: &[&str]) -> Option<Vec<u8>> {
        let mut openssl = Command::new("openssl");
        let output = openssl.args(arguments).current_dir(directory).output();
        let output = output.ok()?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        Some(output.stdout)
    }

    #[test]
    fn every_key_and_hash_of_a_ca_is_verified_and_others_say_why() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        let rsa = |bits: &'static str| vec!["-algorithm", "RSA", "-pkeyopt", bits];
        // Four primes are found in a tenth of the time of two.
        let four = ["-pkeyopt", "rsa_keygen_primes:4"];
        let long_rsa = |bits| [rsa(bits), four.to_vec()].concat();
        let curve = |curve: &'static str| vec!["-algorithm", "EC", "-pkeyopt", curve];
        let keys = [
            ("rsa", rsa("rsa_keygen_bits:2048")),
            ("rsa4", long_rsa("rsa_keygen_bits:4096")),
            ("rsa8", long_rsa("rsa_keygen_bits:4104")),
            ("p256", curve("ec_paramgen_curve:P-256")),
            ("p384", curve("ec_paramgen_curve:P-384")),
            ("p521", curve("ec_paramgen_curve:P-521")),
        ];
        for (name, options) in keys {
            let made = openssl(
                directory,
                &[&["genpkey", "-out", name], &options[..]].concat(),
            );
            if made.is_none() {
                eprintln!("SKIPPED: openssl is not installed");
                return;
            }
        }
        let pss = ["-sigopt", "rsa_padding_mode:pss", "-sigopt"];
        let salt = [&pss[..], &["rsa_pss_saltlen:-1"]].concat();
        let long = [&pss[..], &["rsa_pss_saltlen:100"]].concat();
        for (key, hash, options, cause) in [
            ("rsa", "sha256", &[][..], None),
            ("rsa", "sha384", &[], None),
            ("rsa4", "sha512", &[], None),
            ("rsa", "sha256", &salt, None),
            ("rsa", "sha384", &salt, None),
            ("rsa", "sha512", &salt, None),
            ("p256", "sha256", &[], None),
            ("p256", "sha512", &[], None),
            ("p384", "sha384", &[], None),
            ("p384", "sha512", &[], None),
            ("p521", "sha256", &[], None),
            ("p521", "sha512", &[], None),
            ("rsa", "sha512", &long, Some("salt has 100 bytes")),
            ("rsa", "sha1", &[], Some("SHA-1")),
            ("rsa", "sha1", &salt, Some("RSA-PSS without")),
            ("p256", "sha1", &[], Some("SHA-1")),
            ("rsa", "md5", &[], Some("MD5")),
            ("p384", "sha224", &[], Some("1.2.840.10045.4.3.1 is not")),
            ("rsa8", "sha256", &[], Some("4104 bits")),
        ] {
            let hash = format!("-{hash}");
            let name = "subjectAltName=DNS:example.com";
            let request = [
                "req", "-new", "-key", key, &hash, "-subj", "/", "-addext", name,
            ];
            let made = openssl(directory, &[&request[..], options].concat()).unwrap();
            let refused = SigningRequest::read(&made).err();
            match (refused, cause) {
                (None, None) => {}
                (Some(said), Some(cause)) => assert!(said.contains(cause), "{cause}: {said}"),
                (other, _) => panic!("{key} {hash} {options:?}: {other:?}"),
            }
        }
    }
}
