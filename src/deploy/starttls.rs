//! STARTTLS: from a mail server's plain greeting to the start of TLS, by SMTP (RFC 3207),
//! IMAP (RFC 9051 section 6.2.1) or POP3 (RFC 2595).

use std::fmt;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::text::printable;

const LONGEST_LINE: usize = 2048;
const MOST_LINES: usize = 100;

/// The protocol before TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// TLS from the first byte: HTTPS, TURN over TLS, SMTPS, IMAPS, POP3S.
    #[default]
    Tls,
    /// SMTP and submission.
    Smtp,
    /// IMAP.
    Imap,
    /// POP3.
    Pop3,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tls => "tls",
            Self::Smtp => "smtp",
            Self::Imap => "imap",
            Self::Pop3 => "pop3",
        })
    }
}

impl Protocol {
    /// The protocol that the scheme of an endpoint names.
    pub(super) fn of_scheme(scheme: &str) -> Option<Self> {
        match scheme {
            "tls" | "https" | "turns" | "smtps" | "imaps" | "pop3s" => Some(Self::Tls),
            "smtp" => Some(Self::Smtp),
            "imap" => Some(Self::Imap),
            "pop3" => Some(Self::Pop3),
            _ => None,
        }
    }
}

/// Runs the protocol until the next byte belongs to TLS.
pub(super) async fn begin(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    protocol: Protocol,
) -> Result<(), String> {
    let last = match protocol {
        Protocol::Tls => return Ok(()),
        Protocol::Smtp => {
            exchange(stream, None, "220").await?;
            let offers = exchange(stream, Some("EHLO certs.invalid"), "250").await?;
            let offered = |line: &String| line[3..].trim_start_matches(['-', ' ']).to_uppercase();
            if !offers.iter().any(|line| offered(line) == "STARTTLS") {
                return Err("it does not offer STARTTLS".to_owned());
            }
            exchange(stream, Some("STARTTLS"), "220").await
        }
        Protocol::Imap => {
            exchange(stream, None, "* OK").await?;
            exchange(stream, Some("a STARTTLS"), "a OK").await
        }
        Protocol::Pop3 => {
            exchange(stream, None, "+OK").await?;
            exchange(stream, Some("STLS"), "+OK").await
        }
    };
    last.map(drop)
}

/// Sends `command` and waits for its reply, whose lines begin with `wanted`. Untagged lines
/// of IMAP are skipped.
async fn exchange(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    command: Option<&str>,
    wanted: &str,
) -> Result<Vec<String>, String> {
    let is_code = wanted.bytes().all(|byte| byte.is_ascii_digit());
    send(stream, command).await?;
    let mut lines = Vec::new();
    for _ in 0..MOST_LINES {
        let line = line(stream).await?;
        match line.strip_prefix(wanted) {
            // Another line of SMTP follows; only its replies begin with a code.
            Some(rest) if rest.starts_with('-') && is_code => lines.push(line),
            Some(_) => {
                lines.push(line);
                return Ok(lines);
            }
            None if command.is_some() && line.starts_with("* ") => {}
            None => return Err(format!("it replied: {}", printable(&line))),
        }
    }
    Err("its reply is too long".to_owned())
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), command: Option<&str>) -> Result<(), String> {
    let line = command.map_or(String::new(), |command| format!("{command}\r\n"));
    let sent = stream.write_all(line.as_bytes()).await;
    sent.map_err(|error| error.to_string())
}

/// Reads one line, and no byte beyond it.
async fn line(stream: &mut (impl AsyncRead + Unpin)) -> Result<String, String> {
    let mut line = Vec::new();
    while line.len() < LONGEST_LINE {
        match stream.read_u8().await.map_err(|error| error.to_string())? {
            b'\n' => return Ok(String::from_utf8_lossy(&line).trim_end().to_owned()),
            byte => line.push(byte),
        }
    }
    Err("its line is too long".to_owned())
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    /// The result with a server that sends `sent` at once, and the bytes it received.
    async fn converse(protocol: Protocol, sent: &str) -> (Result<(), String>, String) {
        let (mut near, mut far) = duplex(1 << 16);
        far.write_all(sent.as_bytes()).await.unwrap();
        far.shutdown().await.unwrap();
        let ended = begin(&mut near, protocol).await;
        drop(near);
        let mut heard = String::new();
        far.read_to_string(&mut heard).await.unwrap();
        (ended, heard)
    }

    #[tokio::test]
    async fn starttls_stops_before_the_first_byte_of_tls() {
        let smtp = "220-hi\r\n220 mx\r\n250-mx\r\n250-SIZE 1\r\n250 STARTTLS\r\n220 go\r\n";
        let (ended, heard) = converse(Protocol::Smtp, smtp).await;
        assert_eq!(ended, Ok(()));
        assert_eq!(heard, "EHLO certs.invalid\r\nSTARTTLS\r\n");
        let imap = "* OK hi\r\n* CAPABILITY x\r\na OK begin\r\n";
        let (ended, heard) = converse(Protocol::Imap, imap).await;
        assert_eq!((ended, heard.as_str()), (Ok(()), "a STARTTLS\r\n"));
        let (ended, heard) = converse(Protocol::Pop3, "+OK hi\r\n+OK begin\r\n").await;
        assert_eq!((ended, heard.as_str()), (Ok(()), "STLS\r\n"));
        // Only SMTP continues a reply by a hyphen.
        for (protocol, sent) in [
            (Protocol::Imap, "* OK-ready\r\na OK-begin\r\n"),
            (Protocol::Pop3, "+OK-ready\r\n+OK-begin\r\n"),
        ] {
            assert_eq!(converse(protocol, sent).await.0, Ok(()));
        }
        assert_eq!(converse(Protocol::Tls, "").await, (Ok(()), String::new()));
    }

    #[tokio::test]
    async fn starttls_reports_the_servers_reply_and_bounds_it() {
        for (protocol, sent, message) in [
            (
                Protocol::Smtp,
                "554 no\u{7}\r\n",
                "it replied: 554 no\\u{7}",
            ),
            (
                Protocol::Smtp,
                "220 mx\r\n250 mx\r\n",
                "it does not offer STARTTLS",
            ),
            (Protocol::Imap, "* BYE\r\n", "it replied: * BYE"),
            (Protocol::Imap, "* OK\r\na BAD\r\n", "it replied: a BAD"),
            (Protocol::Pop3, "-ERR\r\n", "it replied: -ERR"),
        ] {
            assert_eq!(converse(protocol, sent).await.0, Err(message.to_owned()));
        }
        for flood in ["220-x\r\n".repeat(1000), "2".repeat(10_000)] {
            let message = converse(Protocol::Smtp, &flood).await.0.unwrap_err();
            assert!(message.contains("is too long"), "{message}");
        }
        assert!(converse(Protocol::Smtp, "22").await.0.is_err());
    }
}
