//! Whether a connection is idle: from a request until the client has taken the whole
//! reply it is not, and is never closed for another.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};

use axum::body::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How far a connection is with its request.
#[derive(Debug, Default)]
pub(super) struct Progress(AtomicU8);

impl Progress {
    /// No request is in progress.
    const IDLE: u8 = 0;
    /// A request is being answered.
    pub(super) const ANSWERING: u8 = 1;
    /// The whole reply is made, and the client has not taken all of it.
    const SENDING: u8 = 2;

    pub(super) fn is_idle(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Self::IDLE
    }

    pub(super) fn set(&self, state: u8) {
        self.0.store(state, Ordering::Relaxed);
    }

    /// All that was made is sent.
    fn sent(&self) {
        let (from, to) = (Self::SENDING, Self::IDLE);
        let (done, other) = (Ordering::Relaxed, Ordering::Relaxed);
        let _ = self.0.compare_exchange(from, to, done, other);
    }
}

/// The body of a reply. hyper drops it when it has all of its bytes, before it sends them.
pub(super) struct Reply {
    pub(super) body: axum::body::Body,
    pub(super) progress: Arc<Progress>,
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.progress.set(Progress::SENDING);
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A client's connection. hyper flushes it after it has written all that it has.
pub(super) struct Watched<S> {
    pub(super) stream: S,
    pub(super) progress: Arc<Progress>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(Pin::new(&mut self.stream).poll_flush(context));
        self.progress.sent();
        Poll::Ready(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
