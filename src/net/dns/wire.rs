//! One exchange of DNS messages (RFC 1035 section 4.2, RFC 7766): over UDP, and over TCP if
//! the answer does not fit. A reply counts only from the server that was asked, with the
//! identifier and the question of the request.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, Query};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// The largest UDP reply that no network fragments.
pub(crate) const LARGEST_DATAGRAM: u16 = 1232;
/// How long each UDP request waits for its reply: the second one is for a lost packet.
const TRIES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];
/// The deadline of an exchange over TCP.
const STREAM: Duration = Duration::from_secs(5);

/// Asks `server` for the records of `kind` at `name`. `recursive`: the server is a resolver.
///
/// # Errors
/// When it does not answer, or not with a valid reply to this question; of the kind
/// `FileTooLarge` when its answer has more than 64 KiB.
pub(crate) async fn ask(
    server: SocketAddr,
    name: &Name,
    kind: RecordType,
    recursive: bool,
) -> io::Result<Message> {
    let mut query = Message::query();
    query.metadata.recursion_desired = recursive;
    query.add_query(Query::query(name.clone(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(LARGEST_DATAGRAM);
    query.set_edns(edns);
    let bytes = query.to_vec().map_err(io::Error::other)?;
    let reply = match over_udp(server, &query, &bytes).await? {
        reply if reply.truncation => read(&over_tcp(server, &bytes).await?)?,
        reply => reply,
    };
    // Over TCP it had 64 KiB.
    if reply.truncation {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "with more than 64 KiB",
        ));
    }
    match answers(&query, &reply) {
        true => Ok(reply),
        false => Err(io::Error::other("it answers another question")),
    }
}

async fn over_udp(server: SocketAddr, query: &Message, bytes: &[u8]) -> io::Result<Message> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let mut buffer = [0; LARGEST_DATAGRAM as usize];
    for patience in TRIES {
        // A port of its own for each request: it must be guessed too.
        let socket = UdpSocket::bind(any).await?;
        socket.connect(server).await?;
        socket.send(bytes).await?;
        let reply = timeout(patience, async {
            loop {
                let length = socket.recv(&mut buffer).await?;
                // Another packet is not the reply, and ends nothing.
                if let Ok(reply) = read(&buffer[..length])
                    && answers(query, &reply)
                {
                    return Ok(reply);
                }
            }
        });
        if let Ok(ended) = reply.await {
            return ended;
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "no answer"))
}

/// Sends `request` over TCP and returns the reply, unread.
///
/// # Errors
/// Those of the connection, and a deadline.
pub(crate) async fn over_tcp(server: SocketAddr, request: &[u8]) -> io::Result<Vec<u8>> {
    let exchange = async {
        let mut stream = TcpStream::connect(server).await?;
        stream.write_all(&framed(request)?).await?;
        let mut reply = vec![0; stream.read_u16().await?.into()];
        stream.read_exact(&mut reply).await?;
        Ok(reply)
    };
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no answer");
    timeout(STREAM, exchange).await.map_err(late)?
}

/// A message with its length before it, as TCP carries it.
pub(crate) fn framed(message: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    Ok([&length.to_be_bytes(), message].concat())
}

/// Parses a message.
pub(crate) fn read(bytes: &[u8]) -> io::Result<Message> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, format!("{error}"));
    Message::from_vec(bytes).map_err(invalid)
}

fn answers(query: &Message, reply: &Message) -> bool {
    let is_reply = reply.message_type == MessageType::Response && reply.id == query.id;
    // A server that does not understand a question may leave it out.
    is_reply && (reply.queries == query.queries || reply.queries.is_empty())
}

#[cfg(test)]
pub(super) mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// A server whose answers never fit; it ends with the runtime.
    pub(in super::super) async fn boundless_server() -> SocketAddr {
        let stream = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = stream.local_addr().unwrap();
        let datagrams = UdpSocket::bind(server).await.unwrap();
        let truncated = |request: &[u8]| {
            let mut reply = read(request).unwrap();
            reply.metadata.message_type = MessageType::Response;
            reply.metadata.truncation = true;
            reply.to_vec().unwrap()
        };
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            loop {
                let (length, client) = datagrams.recv_from(&mut buffer).await.unwrap();
                let reply = truncated(&buffer[..length]);
                datagrams.send_to(&reply, client).await.unwrap();
                let (mut client, _) = stream.accept().await.unwrap();
                let mut request = vec![0; client.read_u16().await.unwrap().into()];
                client.read_exact(&mut request).await.unwrap();
                let reply = framed(&truncated(&request)).unwrap();
                client.write_all(&reply).await.unwrap();
            }
        });
        server
    }

    #[tokio::test]
    async fn reply_that_does_not_fit_into_tcp_is_an_error() {
        let server = boundless_server().await;
        let name = Name::from_ascii("a.example.").unwrap();
        let reply = ask(server, &name, RecordType::TXT, false).await;
        let error = reply.unwrap_err();
        assert_eq!(error.to_string(), "with more than 64 KiB");
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }
}
