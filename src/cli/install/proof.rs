//! Looks at what nginx answers after a reload: challenges, the certificate and the redirect.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use super::draft::Draft;
use crate::certificate::Facts;
use crate::deploy::endpoint::Approach;
use crate::deploy::proxy_protocol::ProxyProtocol;
use crate::deploy::starttls::Protocol;
use crate::deploy::verify::{Offer, observe};
use crate::failure::Failure;
use crate::fingerprint::Fingerprint;
use crate::identifier::Identifier;
use crate::install::answer::{
    PAUSE, REPEATED, WITHIN, is_unreachable, wait_for_answers, wait_for_redirects,
};
use crate::install::plan::{InstallPlan, Reach};
use crate::install::program::{ErrorLog, Program};
use crate::install::tree::Tree;
use crate::net::sockets;

const EMERGENCY: &str = "[emerg]";
/// nginx has given up a reload.
const GIVEN_UP: &str = "still could not bind";

/// The looks after one reload.
pub(super) struct Looks<'a> {
    log: ErrorLog,
    program: &'a Program,
    main: &'a Path,
    /// The workers before the reload.
    workers: BTreeSet<u32>,
}

impl<'a> Looks<'a> {
    /// Looks after a reload that is still to come.
    pub(super) fn new(program: &'a Program, main: &'a Path, tree: &Tree) -> Self {
        Self {
            log: program.error_log(tree),
            program,
            main,
            workers: program.workers(main),
        }
    }

    /// Whether nginx runs, as far as this process sees.
    pub(super) fn is_running(&self) -> bool {
        !self.workers.is_empty()
    }

    /// Waits until new workers have replaced those from before the reload: these would answer
    /// by the old configuration, which may have the same certificate.
    pub(super) async fn replaced(&self) -> Result<(), Failure> {
        let is_refused = || {
            let said = self.log.lines_with(EMERGENCY);
            // nginx tries to bind an address several times.
            self.is_given_up() || said.iter().any(|line| !line.contains("bind() to"))
        };
        let (mut passed, within) = (Duration::ZERO, WITHIN + self.program.reloads_within());
        loop {
            let now = self.program.workers(self.main);
            if self.workers.is_empty() || (!now.is_empty() && now.is_disjoint(&self.workers)) {
                return Ok(());
            }
            if passed >= within || is_refused() {
                let cause = self.cause(&[]);
                return Err(Failure::usage(
                    format!(
                        "nginx got the signal to reload, and its old workers still serve{cause}; everything was undone"
                    ),
                    "see the error log of nginx, which says why it kept the old configuration; then run this command again",
                ));
            }
            tokio::time::sleep(PAUSE).await;
            passed += PAUSE;
        }
    }

    fn is_given_up(&self) -> bool {
        !self.log.lines_with(GIVEN_UP).is_empty()
    }

    /// What nginx says about the failure, and the process that has the port.
    fn cause(&self, at: &[Reach]) -> String {
        let said = [EMERGENCY, "certs-install-checks"].map(|word| self.log.lines_with(word));
        let said = said.iter().filter_map(|lines| lines.first());
        let mut cause: String = said.map(|line| format!("; nginx: {line}")).collect();
        let addresses = at
            .iter()
            .filter_map(|reach| reach.binds.or(reach.address.tcp()));
        for address in addresses.collect::<BTreeSet<_>>() {
            if let Some((program, pid)) = sockets::owner_at(address)
                && program != "nginx"
            {
                cause += &format!("; {address} is taken by {program} (process {pid})");
            }
        }
        cause
    }

    /// Whether a CA would get our answers.
    pub(super) async fn answers(&self, plan: &InstallPlan) -> Result<(), Failure> {
        let webroot = &plan.webroot;
        let found = wait_for_answers(webroot, &plan.plain, || self.is_given_up());
        let found = found
            .await
            .map_err(|error| Failure::unusable(webroot, &error))?;
        let Some(found) = found else {
            return Ok(());
        };
        let cause = self.cause(&plan.plain);
        let webroot = webroot.display();
        Err(Failure::usage(
            format!("a challenge is not answered from {webroot}: {found}{cause}"),
            match cause.contains("(13: Permission denied)") {
                true => "name a directory that nginx's workers can read with --webroot DIR",
                false => "start nginx, or remove what answers instead; then run this command again",
            },
        ))
    }

    /// Whether the new workers serve the certificate.
    pub(super) async fn served(&self, draft: &Draft) -> Result<(), Failure> {
        if draft.plan.tls.is_empty() {
            return Ok(());
        }
        let live = &draft.pair.live;
        let chain = live.join("fullchain.pem");
        let chain =
            std::fs::read_to_string(&chain).map_err(|error| Failure::unusable(&chain, &error))?;
        let wanted = Facts::of_chain(&chain)
            .map_err(Failure::unexpected)?
            .fingerprint;
        let (mut passed, mut seen) = (Duration::ZERO, 0);
        while seen < REPEATED {
            let mut other = None;
            for reach in &draft.plan.tls {
                other = other.or(look(reach, &wanted).await);
            }
            seen = if other.is_none() { seen + 1 } else { 0 };
            if let Some(found) = other
                && (passed >= WITHIN || self.is_given_up())
            {
                return Err(self.unserved(draft, &found));
            }
            tokio::time::sleep(PAUSE).await;
            passed += PAUSE;
        }
        Ok(())
    }

    fn unserved(&self, draft: &Draft, found: &str) -> Failure {
        let cause = self.cause(&draft.plan.tls);
        let message = format!(
            "nginx does not serve the certificate after its reload: {found}{cause}; everything was undone"
        );
        let hint = "free the address, or move the other server block; then run this command again";
        match draft.is_issued() {
            true => Failure::new(7, vec![(message, hint.to_owned())]),
            false => Failure::usage(message, hint),
        }
    }

    /// Why port 80 does not redirect, if it does not.
    pub(super) async fn redirects(&self, draft: &Draft) -> Option<String> {
        let covers = |reach: &&Reach| {
            let name = Identifier::parse(&reach.name);
            name.is_ok_and(|name| draft.pair.issued.iter().any(|one| name.is_covered_by(one)))
        };
        let at: Vec<Reach> = draft
            .plan
            .redirected
            .iter()
            .filter(covers)
            .cloned()
            .collect();
        wait_for_redirects(&at, || self.is_given_up()).await
    }
}

/// Refuses addresses that another program has: `nginx -t` does not see that.
pub(super) fn check_free(plan: &InstallPlan) -> Result<(), Failure> {
    for address in plan
        .tls
        .iter()
        .chain(&plan.plain)
        .filter_map(|reach| reach.binds)
    {
        let is_taken =
            TcpListener::bind(address).is_err_and(|error| error.kind() == ErrorKind::AddrInUse);
        let owner = sockets::owner_at(address).filter(|(program, _)| program != "nginx");
        if let (true, Some((program, pid))) = (is_taken, owner) {
            return Err(Failure::usage(
                format!(
                    "{address} is taken by {program} (process {pid}), and nginx could not listen there; nothing was changed"
                ),
                format!("stop {program} or move it to another port; then run this command again"),
            ));
        }
    }
    Ok(())
}

/// What is served instead.
async fn look(reach: &Reach, wanted: &Fingerprint) -> Option<String> {
    let (name, address) = (&reach.name, &reach.address);
    let identifier = Identifier::parse(name).ok()?;
    if let Some(Err(error)) = address.tcp().map(|at| TcpListener::bind((at.ip(), 0)))
        && is_unreachable(&error)
    {
        return None;
    }
    let approach = Approach {
        protocol: Protocol::Tls,
        proxy_protocol: reach.is_proxied.then_some(ProxyProtocol::V1),
    };
    let found = match observe(address, approach, &identifier, Offer::All).await {
        Ok(shown) if shown.facts.fingerprint == *wanted => return None,
        Ok(shown) => {
            let names: Vec<String> = shown
                .facts
                .identifiers
                .iter()
                .map(ToString::to_string)
                .collect();
            format!("another certificate, for {}", names.join(", "))
        }
        Err(unseen) => unseen.to_string(),
    };
    Some(format!("{name} at {address}: {found}"))
}
