//! A client of D-Bus for systemd's interface: it calls methods whose arguments are
//! texts, and waits for signals. The D-Bus Specification has the addresses, the
//! authentication and the messages.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::io::{Error, Result};
use std::os::unix::ffi::OsStringExt;

use percent_encoding::percent_decode_str;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, copy_buf, sink};
use tokio::net::UnixStream;

use crate::net::unix;

const SYSTEM: &str = "unix:path=/var/run/dbus/system_bus_socket";
/// The processes of one machine write numbers in its own byte order.
const BYTE_ORDER: u8 = if cfg!(target_endian = "big") {
    b'B'
} else {
    b'l'
};
/// More than any message of systemd needs.
const LONGEST: u32 = 1 << 20;
/// The longest line of the authentication.
const LONGEST_LINE: u64 = 1024;
/// The most signals that may arrive before a reply; the oldest ones go first.
const MOST_SIGNALS: usize = 1000;

/// The bus's own name and interface.
const BUS: &str = "org.freedesktop.DBus";

const METHOD_CALL: u8 = 1;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

/// The fields of a message's header.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SENDER: u8 = 7;
const SIGNATURE: u8 = 8;

/// A connection to a bus.
pub(super) struct Bus {
    stream: BufReader<UnixStream>,
    serial: u32,
    /// The sender, interface and member of the followed signals.
    followed: [(u8, String); 3],
    /// Those that arrived before a reply.
    signals: VecDeque<Message>,
}

/// A received message.
pub(super) struct Message {
    kind: u8,
    fields: BTreeMap<u8, String>,
    body: Vec<u8>,
}

impl Bus {
    /// Connects to the bus at `address`; `None` is the system's bus.
    pub(super) async fn connect(address: Option<&str>) -> Result<Self> {
        // D-Bus defines this variable for every client.
        #[allow(clippy::disallowed_methods)]
        let system = || std::env::var("DBUS_SYSTEM_BUS_ADDRESS").unwrap_or_else(|_| SYSTEM.into());
        let address = address.map_or_else(system, str::to_owned);
        let stream = unix::connect(socket(&address)?.as_ref()).await;
        let stream =
            stream.map_err(|error| Error::new(error.kind(), format!("{address}: {error}")));
        let mut bus = Self {
            stream: BufReader::new(stream?),
            serial: 0,
            followed: [SENDER, INTERFACE, MEMBER].map(|field| (field, String::new())),
            signals: VecDeque::new(),
        };
        // Without an identity the bus takes the peer's, as it sees it in its user namespace.
        let authentication = b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n";
        bus.stream.write_all(authentication).await?;
        for expected in ["DATA", "OK"] {
            let mut line = String::new();
            let mut bounded = (&mut bus.stream).take(LONGEST_LINE);
            bounded.read_line(&mut line).await?;
            if !line.starts_with(expected) {
                let detail = format!("{address} refused this user: {}", line.trim_end());
                return Err(Error::other(detail));
            }
        }
        bus.call_bus("Hello", &[]).await?;
        Ok(bus)
    }

    /// Calls a method of the bus itself.
    pub(super) async fn call_bus(&mut self, method: &str, arguments: &[&str]) -> Result<Message> {
        let path = "/org/freedesktop/DBus";
        self.call(BUS, path, BUS, method, arguments).await
    }

    /// The unique name of the process that owns `service`.
    pub(super) async fn owner(&mut self, service: &str) -> Result<String> {
        self.call_bus("GetNameOwner", &[service])
            .await?
            .values()
            .text()
    }

    /// The reply of `service`, by its unique name, to a call. An error's name and text
    /// become the message.
    pub(super) async fn call(
        &mut self,
        service: &str,
        path: &str,
        interface: &str,
        method: &str,
        arguments: &[&str],
    ) -> Result<Message> {
        self.serial += 1;
        let fields = [
            (DESTINATION, b's', service),
            (PATH, b'o', path),
            (INTERFACE, b's', interface),
            (MEMBER, b's', method),
        ];
        let call = encode(self.serial, &fields, arguments);
        self.stream.write_all(&call).await?;
        let serial = self.serial.to_string();
        loop {
            let message = self.read().await?;
            // The bus itself replies for a service that it does not reach.
            let is_theirs = [service, BUS].contains(&message.field(SENDER));
            if self.is_followed(&message) {
                self.signals.push_back(message);
                if self.signals.len() > MOST_SIGNALS {
                    self.signals.pop_front();
                }
            } else if message.kind != SIGNAL && is_theirs && message.field(REPLY_SERIAL) == serial {
                if message.kind != ERROR {
                    return Ok(message);
                }
                let text = message.values().text();
                let text = text.unwrap_or_else(|_| "no details".to_owned());
                let name = message.field(ERROR_NAME);
                return Err(Error::other(format!("{name}: {text}")));
            }
        }
    }

    /// Has the signals `member` of `sender`, a unique name, delivered from now on.
    pub(super) async fn follow(
        &mut self,
        sender: &str,
        interface: &str,
        member: &str,
    ) -> Result<()> {
        let rule =
            format!("type='signal',sender='{sender}',interface='{interface}',member='{member}'");
        let fields = [(SENDER, sender), (INTERFACE, interface), (MEMBER, member)];
        self.followed = fields.map(|(field, value)| (field, value.to_owned()));
        self.call_bus("AddMatch", &[&rule]).await.map(drop)
    }

    /// Any process may send a signal to this one, whatever it follows.
    fn is_followed(&self, message: &Message) -> bool {
        let mut fields = self.followed.iter();
        message.kind == SIGNAL && fields.all(|(field, value)| message.field(*field) == value)
    }

    /// The next followed signal.
    pub(super) async fn signal(&mut self) -> Result<Message> {
        if let Some(message) = self.signals.pop_front() {
            return Ok(message);
        }
        loop {
            let message = self.read().await?;
            if self.is_followed(&message) {
                return Ok(message);
            }
        }
    }

    /// The next message; those that cannot be read are skipped, since any process may send
    /// them.
    async fn read(&mut self) -> Result<Message> {
        loop {
            if let Some(message) = self.read_or_skip().await? {
                return Ok(message);
            }
        }
    }

    async fn read_or_skip(&mut self) -> Result<Option<Message>> {
        let mut start = [0; 16];
        let read = self.stream.read_exact(&mut start).await;
        read.map_err(|error| Error::new(error.kind(), format!("the bus was closed: {error}")))?;
        let number = |at: usize| {
            let octets = start[at..].first_chunk().copied().unwrap_or_default();
            match start[0] {
                b'l' => Ok(u32::from_le_bytes(octets)),
                b'B' => Ok(u32::from_be_bytes(octets)),
                _ => Err(unreadable()),
            }
        };
        let (body, header) = (number(4)?, number(12)?);
        let padded = u64::from(header).next_multiple_of(8);
        if start[0] != BYTE_ORDER || body.max(header) > LONGEST {
            let mut rest = (&mut self.stream).take(padded + u64::from(body));
            copy_buf(&mut rest, &mut sink()).await?;
            return Ok(None);
        }
        let mut fields = vec![0; padded as usize];
        self.stream.read_exact(&mut fields).await?;
        let mut body = vec![0; body as usize];
        self.stream.read_exact(&mut body).await?;
        let fields = read_fields(&fields[..header as usize]);
        let message = |fields| Message {
            kind: start[1],
            fields,
            body,
        };
        Ok(fields.ok().map(message))
    }
}

fn read_fields(header: &[u8]) -> Result<BTreeMap<u8, String>> {
    let (mut values, mut fields) = (Values(header, 0), BTreeMap::new());
    while values.1 < header.len() {
        values.align(8);
        let code = values.octets(1)?[0];
        fields.insert(code, values.variant()?);
    }
    Ok(fields)
}

impl Message {
    fn field(&self, code: u8) -> &str {
        self.fields.get(&code).map_or("", String::as_str)
    }

    /// The values of the body.
    pub(super) fn values(&self) -> Values<'_> {
        Values(&self.body, 0)
    }
}

/// The path of the socket at the first `unix:` address of `addresses`; that of an abstract
/// one begins with a zero octet.
fn socket(addresses: &str) -> Result<OsString> {
    let path = |address: &str| {
        let mut keys = address.strip_prefix("unix:")?.split(',');
        keys.find_map(|key| match key.split_once('=')? {
            ("path", path) => Some(percent_decode_str(path).collect()),
            ("abstract", name) => Some([0].into_iter().chain(percent_decode_str(name)).collect()),
            _ => None,
        })
    };
    let invalid = || Error::other(format!("`{addresses}` is not a `unix:` address of D-Bus"));
    let path = addresses.split(';').find_map(path);
    path.map(OsString::from_vec).ok_or_else(invalid)
}

/// A call with the texts `arguments`.
fn encode(serial: u32, fields: &[(u8, u8, &str)], arguments: &[&str]) -> Vec<u8> {
    let mut body = Vec::new();
    for argument in arguments {
        push_text(&mut body, argument);
    }
    let mut message = vec![BYTE_ORDER, METHOD_CALL, 0, 1];
    for number in [body.len() as u32, serial, 0] {
        message.extend(number.to_ne_bytes());
    }
    for (code, kind, value) in fields {
        pad(&mut message, 8);
        message.extend([*code, 1, *kind, 0]);
        push_text(&mut message, value);
    }
    if !arguments.is_empty() {
        pad(&mut message, 8);
        message.extend([SIGNATURE, 1, b'g', 0, arguments.len() as u8]);
        message.extend("s".repeat(arguments.len()).bytes().chain([0]));
    }
    let header = message.len() as u32 - 16;
    message[12..16].copy_from_slice(&header.to_ne_bytes());
    pad(&mut message, 8);
    [message, body].concat()
}

fn pad(bytes: &mut Vec<u8>, multiple: usize) {
    bytes.resize(bytes.len().next_multiple_of(multiple), 0);
}

fn push_text(bytes: &mut Vec<u8>, text: &str) {
    pad(bytes, 4);
    bytes.extend((text.len() as u32).to_ne_bytes());
    bytes.extend(text.bytes().chain([0]));
}

fn unreadable() -> Error {
    Error::other("the bus sent an invalid message")
}

/// Reads values one after the other, from a position.
pub(super) struct Values<'a>(&'a [u8], usize);

impl<'a> Values<'a> {
    fn align(&mut self, multiple: usize) {
        self.1 = self.1.next_multiple_of(multiple);
    }

    fn octets(&mut self, count: usize) -> Result<&'a [u8]> {
        let rest = self.0.get(self.1..).unwrap_or_default();
        let octets = rest.get(..count).ok_or_else(unreadable)?;
        self.1 += count;
        Ok(octets)
    }

    pub(super) fn number(&mut self) -> Result<u32> {
        self.align(4);
        let octets = self.octets(4)?.try_into();
        octets.map(u32::from_ne_bytes).map_err(|_| unreadable())
    }

    /// A text, or the path of an object.
    pub(super) fn text(&mut self) -> Result<String> {
        let length = self.number()?;
        self.terminated(length as usize)
    }

    /// A value of a type that is named before it, as a text.
    pub(super) fn variant(&mut self) -> Result<String> {
        match self.signature()?.as_str() {
            "s" | "o" => self.text(),
            "g" => self.signature(),
            "u" => self.number().map(|number| number.to_string()),
            _ => Err(unreadable()),
        }
    }

    fn signature(&mut self) -> Result<String> {
        let length = self.octets(1)?[0];
        self.terminated(length.into())
    }

    fn terminated(&mut self, length: usize) -> Result<String> {
        let text = String::from_utf8(self.octets(length)?.to_vec());
        self.octets(1)?;
        text.map_err(|_| unreadable())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::ProptestConfig;
    use tokio::net::UnixListener;

    use super::*;

    /// A message with the fields and texts as given.
    fn message(kind: u8, serial: u32, sender: &str, member: &str, texts: &[&str]) -> Vec<u8> {
        let mut message = vec![BYTE_ORDER, kind, 0, 1];
        let mut body = Vec::new();
        for text in texts {
            push_text(&mut body, text);
        }
        for number in [body.len() as u32, 9, 0] {
            message.extend(number.to_ne_bytes());
        }
        for (code, value) in [
            (SENDER, sender),
            (INTERFACE, "a.b"),
            (MEMBER, member),
            (ERROR_NAME, "a.Failure"),
        ] {
            pad(&mut message, 8);
            message.extend([code, 1, b's', 0]);
            push_text(&mut message, value);
        }
        pad(&mut message, 8);
        message.extend([REPLY_SERIAL, 1, b'u', 0]);
        message.extend(serial.to_ne_bytes());
        let header = message.len() as u32 - 16;
        message[12..16].copy_from_slice(&header.to_ne_bytes());
        pad(&mut message, 8);
        [message, body].concat()
    }

    /// A bus that answers with `bytes`, whatever it reads; its address.
    fn bus(directory: &tempfile::TempDir, bytes: Vec<u8>) -> String {
        let path = directory.path().join("a bus");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(&bytes).await.unwrap();
            // Reads on: a closed socket would reset the connection.
            let mut read = [0; 1024];
            while stream.read(&mut read).await.is_ok_and(|read| read > 0) {}
        });
        let path = path.display().to_string().replace(' ', "%20");
        format!("unix:guid=0,path={path}")
    }

    fn hello() -> Vec<u8> {
        let hello = message(2, 1, BUS, "", &[":1.7"]);
        [b"DATA\r\nOK 0123\r\n".as_slice(), &hello].concat()
    }

    async fn call(bus: &mut Bus) -> Result<Message> {
        bus.call(":1.1", "/a", "a.b", "Method", &["text", ""]).await
    }

    fn signal(sender: &str, member: &str, text: &str) -> Vec<u8> {
        message(SIGNAL, 0, sender, member, &[text])
    }

    /// The bus that sends `bytes`, after `Hello` and `AddMatch` for `Ended` of `:1.1`.
    async fn following(directory: &tempfile::TempDir, bytes: &[Vec<u8>]) -> Bus {
        let bytes = [hello(), message(2, 2, BUS, "", &[]), bytes.concat()];
        let address = bus(directory, bytes.concat());
        let mut bus = Bus::connect(Some(&address)).await.unwrap();
        bus.follow(":1.1", "a.b", "Ended").await.unwrap();
        bus
    }

    #[tokio::test]
    async fn call_returns_its_reply_and_keeps_earlier_signals() {
        let directory = tempfile::tempdir().unwrap();
        let bytes = [
            signal(":1.9", "Ended", "forged"),
            signal(":1.1", "Ended", "first"),
            message(2, 2, ":1.1", "", &["a late reply"]),
            message(2, 3, ":1.9", "", &["a forged reply"]),
            message(ERROR, 3, ":1.9", "", &["a forged error"]),
            message(2, 3, ":1.1", "", &["reply"]),
            signal(":1.1", "Other", "other"),
            signal(":1.9", "Ended", "forged"),
            signal(":1.1", "Ended", "second"),
        ];
        let mut bus = following(&directory, &bytes).await;
        let reply = call(&mut bus).await.unwrap();
        assert_eq!(reply.values().text().unwrap(), "reply");
        for expected in ["first", "second"] {
            let signal = bus.signal().await.unwrap();
            assert_eq!(signal.values().text().unwrap(), expected);
        }
    }

    /// Any local user may send a signal to any connection of the system's bus.
    #[tokio::test]
    async fn hostile_signals_are_skipped_and_not_stored() {
        let long = signal(":1.9", "Ended", &"x".repeat(LONGEST as usize));
        let mut other_order = signal(":1.9", "Ended", "swapped");
        for number in [4, 8, 12] {
            other_order[number..number + 4].reverse();
        }
        other_order[0] = b'l' + b'B' - BYTE_ORDER;
        let mut unknown_type = signal(":1.9", "Ended", "type");
        // The type of the first field of the header.
        unknown_type[18] = b'd';
        let hostile = [long, other_order, unknown_type].concat();
        let flood = signal(":1.9", "Ended", "flood").repeat(3 * MOST_SIGNALS);
        let busy = signal(":1.1", "Ended", "earlier").repeat(2 * MOST_SIGNALS);
        let bytes = [
            hostile.clone(),
            flood.clone(),
            busy,
            signal(":1.1", "Ended", "before"),
            message(2, 3, ":1.1", "", &["reply"]),
            hostile,
            flood,
            signal(":1.1", "Ended", "after"),
        ];
        let directory = tempfile::tempdir().unwrap();
        let mut bus = following(&directory, &bytes).await;
        let reply = call(&mut bus).await.unwrap();
        assert_eq!(reply.values().text().unwrap(), "reply");
        assert_eq!(bus.signals.len(), MOST_SIGNALS);
        bus.signals.drain(..MOST_SIGNALS - 1);
        for expected in ["before", "after"] {
            let signal = bus.signal().await.unwrap();
            assert_eq!(signal.values().text().unwrap(), expected);
        }
    }

    #[tokio::test]
    async fn endless_line_of_the_authentication_is_cut() {
        let directory = tempfile::tempdir().unwrap();
        let address = bus(&directory, vec![b'x'; 1 << 20]);
        let error = Bus::connect(Some(&address)).await.err().unwrap();
        assert!(error.to_string().len() < 2000, "{error}");
    }

    #[tokio::test]
    async fn error_reply_becomes_name_and_text() {
        for (texts, shown) in [(&["no unit"][..], "no unit"), (&[], "no details")] {
            let directory = tempfile::tempdir().unwrap();
            let error = message(ERROR, 2, ":1.1", "", texts);
            let address = bus(&directory, [hello(), error].concat());
            let mut bus = Bus::connect(Some(&address)).await.unwrap();
            let error = call(&mut bus).await.err().unwrap();
            assert_eq!(error.to_string(), format!("a.Failure: {shown}"));
        }
    }

    #[tokio::test]
    async fn refused_user_is_reported() {
        let directory = tempfile::tempdir().unwrap();
        let address = bus(&directory, b"REJECTED EXTERNAL\r\n".to_vec());
        let error = Bus::connect(Some(&address)).await.err().unwrap();
        let expected = format!("{address} refused this user: REJECTED EXTERNAL");
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn addresses_lead_to_paths_and_abstract_names() {
        for (address, path) in [
            ("unix:path=/run/bus,guid=1", "/run/bus"),
            ("unix:guid=1,path=/a%20b%2f", "/a b/"),
            ("unix:abstract=/tmp/bus", "\0/tmp/bus"),
            ("tcp:host=a;unix:dir=/a;unix:path=/b;unix:path=/c", "/b"),
        ] {
            assert_eq!(socket(address).unwrap(), path, "{address}");
        }
        for address in [
            "",
            "unix:",
            "unix:dir=/a",
            "tcp:host=a,path=/a",
            "unixexec:path=/a",
        ] {
            assert!(socket(address).is_err(), "{address}");
        }
    }

    /// What `bus` sends is read to its end or refused, and never a panic.
    async fn is_read(bytes: Vec<u8>) -> BTreeSet<String> {
        let directory = tempfile::tempdir().unwrap();
        let address = bus(&directory, [hello(), bytes].concat());
        let mut bus = Bus::connect(Some(&address)).await.unwrap();
        bus.stream.get_mut().shutdown().await.unwrap();
        let mut texts = BTreeSet::new();
        while let Ok(message) = bus.read().await {
            let mut values = message.values();
            while let Ok(text) = values.variant() {
                texts.insert(text);
            }
        }
        texts
    }

    proptest::proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_octets_are_read_or_refused(
            start in proptest::collection::vec(proptest::num::u8::ANY, 0..12),
            rest in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
            place in 0..80_usize,
        ) {
            let mut bytes = message(2, 2, ":1.1", "", &["text"]);
            bytes.splice(place..(place + start.len()).min(bytes.len()), start);
            bytes.extend(rest);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(is_read(bytes));
        }
    }
}
