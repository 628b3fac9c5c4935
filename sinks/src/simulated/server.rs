//! The listeners: TLS with ALPN, HTTP/2 and HTTP/1.1, and the misbehaviour that lives on the wire.
//!
//! Every task has an owner: [`super::Simulated`] owns the listeners, a listener its connections, a
//! connection its streams. Who ends, ends and awaits what it owns.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{Listener, Shared};

/// Largest request that is read: fifty mails of a third of a mebibyte.
const REQUEST_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Most connections of one listener; further ones wait in the system's queue.
const CONNECTIONS_MAX: usize = 1024;
/// How long a client may take to shake hands.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a listener does with a request.
pub(super) enum Reply {
    Answer(Box<Response<Full<Bytes>>>),
    /// Answers and retires the connection: GOAWAY.
    Retire(Box<Response<Full<Bytes>>>),
    /// Never answers; ends with the connection.
    Never,
    /// Tears the connection.
    Reset,
    /// Refuses the stream.
    Refuse,
}

impl From<Response<Full<Bytes>>> for Reply {
    fn from(response: Response<Full<Bytes>>) -> Self {
        Self::Answer(Box::new(response))
    }
}

/// Accepts connections until `stop`, then ends and awaits them.
pub(super) async fn listen(
    which: Listener,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
    stop: CancellationToken,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((tcp, _)) => {
                    connections.spawn(connection(which, tcp, tls.clone(), shared.clone()));
                }
                // Out of file descriptors: let the connections at hand end before asking again.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
        }
    }
    connections.shutdown().await;
}

async fn connection(which: Listener, tcp: TcpStream, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let _ = tcp.set_nodelay(true); // small answers leave at once; without it they only leave later
    let Some(tls) = tls else { return serve(which, tcp, false, shared).await };
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(tcp)).await else { return };
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    serve(which, stream, http2, shared).await;
}

async fn serve<S>(which: Listener, stream: S, http2: bool, shared: Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    shared.connected(which);
    let fate = Fate::default();
    let streams = Streams::default();
    let streams_max = shared.config.streams_max;
    let service = service_fn({
        let fate = fate.clone();
        move |request| respond(which, shared.clone(), fate.clone(), request)
    });
    let io = TokioIo::new(stream);
    // A connection's end, clean or not, is the client's affair.
    macro_rules! run {
        ($connection:expr) => {{
            let mut connection = pin!($connection);
            tokio::select! {
                () = fate.torn.cancelled() => {}
                _ = connection.as_mut() => {}
                () = fate.retired.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    tokio::select! {
                        () = fate.torn.cancelled() => {}
                        _ = connection => {}
                    }
                }
            }
        }};
    }
    if http2 {
        let mut builder = hyper::server::conn::http2::Builder::new(streams.clone());
        builder.timer(TokioTimer::new()).max_concurrent_streams(streams_max);
        run!(builder.serve_connection(io, service));
    } else {
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder.timer(TokioTimer::new());
        run!(builder.serve_connection(io, service));
    }
    streams.end().await;
}

/// What its requests do to a connection.
#[derive(Clone, Default)]
struct Fate {
    torn: CancellationToken,
    retired: CancellationToken,
}

async fn respond(
    which: Listener,
    shared: Arc<Shared>,
    fate: Fate,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, h2::Error> {
    let (parts, body) = request.into_parts();
    let Ok(body) = Limited::new(body, REQUEST_BYTES_MAX).collect().await else {
        return Ok(plain(StatusCode::PAYLOAD_TOO_LARGE, "the request is too large or was cut short"));
    };
    let (latency, reply) = shared.handle(which, &Request::from_parts(parts, body.to_bytes()));
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
    match reply {
        Reply::Answer(response) => Ok(*response),
        Reply::Retire(response) => {
            fate.retired.cancel();
            Ok(*response)
        }
        Reply::Never => match std::future::pending::<Infallible>().await {},
        Reply::Reset => {
            fate.torn.cancel();
            match std::future::pending::<Infallible>().await {}
        }
        Reply::Refuse => Err(h2::Reason::REFUSED_STREAM.into()),
    }
}

/// The same answer, and the connection's retirement.
pub(super) fn retire(reply: Reply) -> Reply {
    match reply {
        Reply::Answer(response) => Reply::Retire(response),
        other => other,
    }
}

/// A short text as an answer.
pub(super) fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response
}

/// Runs the streams of one HTTP/2 connection, and owns them.
#[derive(Clone, Default)]
struct Streams(Arc<Mutex<JoinSet<()>>>);

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let mut streams = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while streams.try_join_next().is_some() {}
        streams.spawn(stream);
    }
}

impl Streams {
    async fn end(&self) {
        let mut streams = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        streams.shutdown().await;
    }
}
