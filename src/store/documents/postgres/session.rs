//! A connection to PostgreSQL, with what it tells of changes.

use std::future::poll_fn;
use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio_postgres::{AsyncMessage, Client, NoTls};

use super::super::DocumentsError;
use super::super::exchange::{Effect, failed};
use super::CHANNEL;
use super::meaning::meaning;
use super::place::{Place, Server, Tls};
use crate::net::Stream;
use crate::net::secure::Secure;

/// Changes that are not read yet.
const BEHIND: usize = 64;
/// The first message of a client that wants TLS: its length and its number.
const WANTS_TLS: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
const TABLE: &str = "CREATE TABLE IF NOT EXISTS certs_documents (
    prefix text COLLATE \"C\", key text COLLATE \"C\", content bytea NOT NULL, version text NOT NULL,
    PRIMARY KEY (prefix, key))";

/// A connection, closed when dropped.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) client: Client,
    /// The keys that are written, each after its prefix and a slash.
    changes: broadcast::Receiver<String>,
    _task: JoinSet<()>,
}

impl Session {
    /// The changes from now on; it ends with the connection.
    pub(super) fn changes(&self) -> broadcast::Receiver<String> {
        self.changes.resubscribe()
    }

    /// Connects to the first server that lets us in.
    pub(super) async fn connect(place: &Place) -> Result<Self, DocumentsError> {
        let mut last = failed("it names no host");
        for server in place.servers() {
            match Self::connect_to(place, &server).await {
                Ok(session) => return Ok(session),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn connect_to(place: &Place, server: &Server) -> Result<Self, DocumentsError> {
        let stream = stream(place, server)
            .await
            .map_err(DocumentsError::Failed)?;
        let connected = place.config.connect_raw(stream, NoTls).await;
        let (client, mut connection) = connected.map_err(|error| meaning(&error, Effect::Reads))?;
        let (sender, changes) = broadcast::channel(BEHIND);
        let mut task = JoinSet::new();
        task.spawn(async move {
            while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await
            {
                if let AsyncMessage::Notification(change) = message {
                    let _ = sender.send(change.payload().to_owned());
                }
            }
        });
        let session = Self {
            client,
            changes,
            _task: task,
        };
        session.prepare().await?;
        Ok(session)
    }

    async fn prepare(&self) -> Result<(), DocumentsError> {
        let set = "SET statement_timeout = 10000; SET client_min_messages = warning";
        let set = self.client.batch_execute(set).await;
        set.map_err(|error| meaning(&error, Effect::Reads))?;
        if !self.has_table().await? {
            let made = self.client.batch_execute(TABLE).await;
            // Another machine may have made it in the same instant.
            if let Err(error) = made
                && !self.has_table().await?
            {
                return Err(meaning(&error, Effect::Reads));
            }
        }
        // A replica cannot, nor some poolers: then the caller's own questions find the changes.
        let _ = self
            .client
            .batch_execute(&format!("LISTEN {CHANNEL}"))
            .await;
        Ok(())
    }

    async fn has_table(&self) -> Result<bool, DocumentsError> {
        let sql = "SELECT to_regclass('certs_documents') IS NOT NULL";
        let row = self.client.query_typed_one(sql, &[]).await;
        let row = row.map_err(|error| meaning(&error, Effect::Reads))?;
        row.try_get(0).map_err(failed)
    }
}

async fn stream(place: &Place, server: &Server) -> io::Result<Box<dyn Stream>> {
    match server {
        // As libpq does: its server's sockets are open to all users, and what we send is sealed.
        Server::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
        Server::Tcp(host, port) => {
            let stream = place.resolver.connect(host, *port).await?;
            let stream: Box<dyn Stream> = Box::new(stream);
            match &place.tls {
                Tls::Never => Ok(stream),
                Tls::Preferred(secure) => secured(secure, host, stream, false).await,
                Tls::Always(secure) => secured(secure, host, stream, true).await,
            }
        }
    }
}

/// Asks for TLS; without it the connection stays plain unless it `must` be TLS.
async fn secured(
    secure: &Secure,
    host: &str,
    mut stream: Box<dyn Stream>,
    must: bool,
) -> io::Result<Box<dyn Stream>> {
    stream.write_all(&WANTS_TLS).await?;
    stream.flush().await?;
    match stream.read_u8().await? {
        b'S' => secure.connect(host, stream).await,
        b'N' if !must => Ok(stream),
        b'N' => Err(io::Error::other("the server offers no TLS (sslmode)")),
        _ => Err(io::Error::other("it does not speak PostgreSQL's protocol")),
    }
}
