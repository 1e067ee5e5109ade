//! The certificate of a block that has TLS already.

use super::super::server::{ServerBlock, is_own};
use super::super::tree::Placed;
use super::Planner;
use super::lines::place_of_start;
use super::listens::existing;
use crate::failure::Failure;

impl Planner<'_> {
    /// Sets the certificate of a block that has TLS.
    pub(super) fn keep_tls(&mut self, server: &ServerBlock) -> Result<(), Failure> {
        let place = self.tree.place(server.at);
        let lines = self.certificate_lines();
        let own = existing(&self.on(server, self.options.https_port));
        let inherits = server.inherited("ssl_certificate").next().is_some();
        let was = match self.pair_of(server)? {
            None if inherits && !self.pair.is_issued() => "of the http block".to_owned(),
            None => {
                let after = place_of_start(server, "listen");
                self.insert(server, after, &lines);
                self.done(format!("{place}: certificate paths added"));
                self.reach_tls(server, &own);
                return Ok(());
            }
            Some(pair) if self.is_ours(pair) => {
                self.reach_tls(server, &own);
                return Ok(());
            }
            Some([certificate, _]) => certificate.directive.argument().to_owned(),
        };
        let Some(pair) = self.pair_of(server)?.filter(|_| self.pair.is_issued()) else {
            self.note(format!(
                "{place}: it keeps its certificate {was} until certs has issued one; then run this command again"
            ));
            return Ok(());
        };
        for (one, line) in pair.into_iter().zip(lines) {
            if !is_own(server, one) {
                return Err(Failure::usage(
                    format!(
                        "{}: the certificate of the block at {place} is in a file that other blocks may include",
                        self.tree.place(one)
                    ),
                    "move ssl_certificate and ssl_certificate_key into the server block itself",
                ));
            }
            self.edit(one.file, one.directive.span.clone(), line);
        }
        self.done(format!("{place}: certificate paths replaced, before {was}"));
        self.reach_tls(server, &own);
        if was.contains("/letsencrypt/") {
            self.note(format!(
                "{place}: certbot still renews {was}; once certs has all of its certificates, systemctl disable --now certbot.timer stops that"
            ));
        }
        Ok(())
    }

    /// The directives of its own certificate and key.
    fn pair_of<'a>(&self, server: &ServerBlock<'a>) -> Result<Option<[Placed<'a>; 2]>, Failure> {
        let certificates: Vec<_> = server.of("ssl_certificate").collect();
        let keys: Vec<_> = server.of("ssl_certificate_key").collect();
        match (certificates.as_slice(), keys.as_slice()) {
            ([], []) => Ok(None),
            ([one], [other]) => Ok(Some([*one, *other])),
            (several, others) => {
                let (several, others) = (several.len(), others.len());
                let place = self.tree.place(server.at);
                Err(Failure::usage(
                    format!("{place}: the block has {several} certificates and {others} keys"),
                    "keep only one ssl_certificate and one ssl_certificate_key in that block",
                ))
            }
        }
    }

    fn is_ours(&self, pair: [Placed; 2]) -> bool {
        let files = ["fullchain.pem", "privkey.pem"].map(|name| self.pair.live.join(name));
        let mut pairs = pair.iter().zip(&files);
        pairs.all(|(one, file)| one.directive.argument() == file.to_string_lossy())
    }
}
