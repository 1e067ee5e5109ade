//! STARTTLS: from a mail server's plain greeting to the start of TLS, by SMTP (RFC 3207),
//! IMAP (RFC 9051 section 6.2.1) or POP3 (RFC 2595).

use std::fmt;
use std::str::FromStr;

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

impl FromStr for Protocol {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "tls" | "https" | "turns" | "smtps" | "imaps" | "pop3s" => Ok(Self::Tls),
            "smtp" => Ok(Self::Smtp),
            "imap" => Ok(Self::Imap),
            "pop3" => Ok(Self::Pop3),
            _ => Err(()),
        }
    }
}

/// Runs the protocol until the next byte belongs to TLS.
///
/// # Errors
/// The server's own reply, or what is missing in it.
pub(super) async fn begin(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    protocol: Protocol,
) -> Result<(), String> {
    match protocol {
        Protocol::Tls => Ok(()),
        Protocol::Smtp => {
            smtp(stream, None, "220").await?;
            let offers = smtp(stream, Some("EHLO certs.invalid"), "250").await?;
            if !offers.iter().any(|line| {
                line[3..]
                    .trim_start_matches(['-', ' '])
                    .eq_ignore_ascii_case("STARTTLS")
            }) {
                return Err("it does not offer STARTTLS".to_owned());
            }
            smtp(stream, Some("STARTTLS"), "220").await.map(drop)
        }
        Protocol::Imap => {
            request(stream, None, "* OK").await?;
            request(stream, Some("a STARTTLS"), "a OK").await
        }
        Protocol::Pop3 => {
            request(stream, None, "+OK").await?;
            request(stream, Some("STLS"), "+OK").await
        }
    }
}

/// The lines of a reply, each with its code.
async fn smtp(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    command: Option<&str>,
    code: &str,
) -> Result<Vec<String>, String> {
    send(stream, command).await?;
    let mut lines = Vec::new();
    while lines.len() < MOST_LINES {
        let line = line(stream).await?;
        if !line.starts_with(code) {
            return Err(format!("it replied: {}", printable(&line)));
        }
        let continues = line.as_bytes().get(3) == Some(&b'-');
        lines.push(line);
        if !continues {
            return Ok(lines);
        }
    }
    Err("its reply is too long".to_owned())
}

/// Sends `command` and waits for its reply; other lines, such as untagged ones of IMAP,
/// are skipped.
async fn request(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    command: Option<&str>,
    wanted: &str,
) -> Result<(), String> {
    send(stream, command).await?;
    for _ in 0..MOST_LINES {
        let line = line(stream).await?;
        if line.starts_with(wanted) {
            return Ok(());
        }
        if command.is_none() || !line.starts_with("* ") {
            return Err(format!("it replied: {}", printable(&line)));
        }
    }
    Err("its reply is too long".to_owned())
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), command: Option<&str>) -> Result<(), String> {
    let Some(command) = command else {
        return Ok(());
    };
    let line = format!("{command}\r\n");
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
