//! The renewal settings of an imported certificate: from the command line and the
//! environment, then the source, then the configuration's defaults.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::Valid;
use crate::certificate::KeyType;
use crate::challenge::{ChallengeSettings, http01, webroot};
use crate::cli::Call;
use crate::config::{CertificateSettings, Origin, Remembered};
use crate::deploy::target::DeployTarget;
use crate::failure::Failure;
use crate::files::trust;
use crate::identifier::Identifier;
use crate::import::{Http01, Remark, Tool};
use crate::lineage::Lineage;
use crate::text::printable;

/// A placeholder for the CA in the shared defaults.
const SOME_CA: &str = "https://ca.invalid/directory";

/// The default settings of an imported certificate. Its names are not checked against
/// HTTP-01 and its CA here: its renewal does that.
pub(super) fn base(call: &Call, of: Option<&Valid>) -> Result<CertificateSettings, Failure> {
    let placeholder = Identifier::parse("example.com").map_err(Failure::unexpected)?;
    let lineage = of.map(|one| one.certificate.lineage.clone());
    let lineage = lineage.unwrap_or_else(|| Lineage::of(&placeholder));
    let stored = Remembered::Record {
        lineage,
        names: vec![placeholder],
        directory: SOME_CA.parse().ok(),
        profile: of.and_then(|one| one.certificate.renewal.profile.clone()),
    };
    let settings = call.sources.remembered(&stored)?;
    match &settings.cannot_order {
        Some(cause) => Err(Failure::usage(cause.why.clone(), cause.hint.clone())),
        None => Ok(settings),
    }
}

/// The settings of one certificate; `account` is its CA's account with the e-mail
/// address. Options without a counterpart go to `remarks`.
pub(super) fn of(
    call: &Call,
    tool: Tool,
    one: &Valid,
    account: Option<Option<&str>>,
    remarks: &mut Vec<Remark>,
) -> Result<CertificateSettings, Failure> {
    let mut settings = base(call, Some(one))?;
    let (facts, renewal) = (one.bundle.facts(), &one.certificate.renewal);
    settings.names = facts.identifiers.iter().cloned().collect();
    settings.imported = Some(tool.name().to_owned());
    settings.origin = Some(Origin::Import);
    let ca = &mut settings.ca;
    ca.directory = one.directory.clone();
    // An account exists, so its terms were agreed to.
    ca.agree_tos |= account.is_some();
    let email = || account.flatten().map(str::to_owned);
    ca.email = ca.email.take().or_else(email);
    let chain = || renewal.preferred_chain.clone();
    ca.preferred_chain = ca.preferred_chain.take().or_else(chain);
    settings.reuse_key |= renewal.reuse_key;
    settings.partial |= renewal.partial;
    match one.bundle.key_type() {
        Some(kind) => settings.key = kind.into(),
        None => remarks.push(Remark::unsupported(
            "its key type",
            format!("unsupported: its renewal uses {}", KeyType::default()),
        )),
    }
    settings.profile = settings.profile.take().or_else(|| profile(one));
    challenge(&mut settings, renewal.http01.as_ref(), remarks);
    deploy(&mut settings, renewal.nginx, &renewal.programs, remarks);
    if account.is_none() && one.directory.is_public() && !settings.ca.agree_tos {
        let text = "no account of its CA is in the source: its renewal needs \
                    CERTS_AGREE_TOS=true to create one";
        remarks.push(Remark::unsupported("its account", text));
    }
    if settings.names.iter().any(Identifier::is_wildcard) {
        let text = "HTTP-01 cannot prove a wildcard: it is deployed until it expires and NOT renewed; once the renewal \
                    is due, certs renew fails, until certs issue names it again with --dns PROVIDER";
        remarks.push(Remark::manual("its renewal", text));
    }
    Ok(settings)
}

/// The profile in which the CA signs IP addresses, if there is one.
fn profile(one: &Valid) -> Option<String> {
    let mut names = one.bundle.facts().identifiers.iter();
    let has_address = names.any(|name| matches!(name, Identifier::Ip(_)));
    let profile = one.directory.address_profile();
    profile.filter(|_| has_address).map(str::to_owned)
}

/// The challenge settings of the source, unless the user set others.
fn challenge(
    settings: &mut CertificateSettings,
    method: Option<&Http01>,
    remarks: &mut Vec<Remark>,
) {
    if settings.challenge != ChallengeSettings::default() {
        return;
    }
    match method {
        None | Some(Http01::Listen(None)) => {}
        Some(Http01::Listen(Some(address))) => {
            settings.challenge = ChallengeSettings::Listen(http01::Settings::new(vec![*address]));
        }
        Some(Http01::Webroot(root)) => {
            of_webroot(settings, webroot::Settings::new(root.clone()), remarks);
        }
        Some(Http01::Webroots(each)) => {
            of_webroot(settings, webroot::Settings::of_each(each.clone()), remarks);
        }
    }
}

/// Removes the remarks about challenges if the command or the configuration says how they are
/// answered, and the source gives no way that certs has.
pub(super) fn drop_answered(settings: &CertificateSettings, one: &mut Valid) {
    let is_taken = one.certificate.renewal.http01.is_some();
    if !is_taken && settings.challenge != ChallengeSettings::default() {
        let remarks = &mut one.certificate.remarks;
        remarks.retain(|remark| !remark.is_of_challenge);
    }
}

fn of_webroot(
    settings: &mut CertificateSettings,
    webroot: webroot::Settings,
    remarks: &mut Vec<Remark>,
) {
    let webroot = ChallengeSettings::Webroot(webroot);
    if let Err(unfit) = webroot.check() {
        let why = printable(unfit.message.trim_start_matches("the webroot "));
        let text = format!("{why}: the renewal will use port 80; --webroot DIR names another");
        return remarks.push(Remark::unsupported("webroot", text));
    }
    for root in webroot.writes_in() {
        let text = format!("certs writes challenge answers below {}", root.display());
        remarks.push(Remark::stored("webroot", text));
    }
    settings.challenge = webroot;
}

fn deploy(
    settings: &mut CertificateSettings,
    nginx: bool,
    programs: &[std::path::PathBuf],
    remarks: &mut Vec<Remark>,
) {
    // What the user says of nginx replaces what the source implies.
    let is_given = settings.deploy.iter().any(|spec| spec.is_of("nginx"));
    let mut words: Vec<_> = { nginx && !is_given }
        .then(|| "nginx".to_owned())
        .into_iter()
        .collect();
    for program in programs {
        let shown = program.display().to_string();
        match fault(program) {
            None => words.push(format!("exec:{shown}")),
            Some(why) => remarks.push(Remark::unsupported(&shown, why)),
        }
    }
    for word in words {
        match word.parse::<DeployTarget>() {
            Ok(spec) if settings.deploy.contains(&spec) => {}
            Ok(spec) => {
                let text = format!("{word} after each renewal");
                remarks.push(Remark::stored("deployment", text));
                settings.deploy.push(spec);
            }
            Err(why) => remarks.push(Remark::unsupported(&word, why)),
        }
    }
}

/// Why a program must not run at renewals, if it must not.
fn fault(program: &Path) -> Option<String> {
    let found = match std::fs::metadata(program) {
        Ok(found) => found,
        Err(error) => return Some(format!("it cannot be run: {error}")),
    };
    if !found.is_file() || found.permissions().mode() & 0o111 == 0 {
        return Some("it is not executable, and was never run".to_owned());
    }
    trust::resolve(program).err().map(|error| {
        let hint = error.hint();
        format!("{error}; hint: {hint}, and import again with --deploy exec:/PROGRAM")
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::chown;

    use super::*;

    #[test]
    fn program_is_refused_if_another_user_may_change_it() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("hook");
        std::fs::write(&program, "").unwrap();
        let allow = |path: &Path, mode| {
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        };
        allow(&program, 0o644);
        assert!(fault(&program).unwrap().contains("not executable"));
        allow(&program, 0o755);
        assert_eq!(fault(&program), None);
        for mode in [0o777, 0o757] {
            allow(&program, mode);
            assert!(fault(&program).unwrap().contains("can be changed by"));
        }
        allow(&program, 0o755);
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&program, &link).unwrap();
        assert_eq!(fault(&link), None);
        allow(directory.path(), 0o757);
        assert!(fault(&program).is_some() && fault(&link).is_some());
        allow(directory.path(), 0o1757);
        assert_eq!(fault(&program), None);
        if rustix::process::geteuid().is_root() {
            chown(&program, Some(65_534), None).unwrap();
            assert!(fault(&link).is_some());
        }
    }
}
