//! A network between two processes that can be cut, fall silent and heal: a TCP proxy of a test's own.
#![allow(dead_code, reason = "each program takes what it needs")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long nothing is done before it is looked again.
const LOOK: Duration = Duration::from_millis(10);

/// What a network does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    /// It carries everything.
    Heals,
    /// It carries nothing, and says so to nobody: what is sent waits, as it does in a cable that was pulled.
    FallsSilent,
    /// Connections break, and no new ones come about.
    IsCut,
}

const ALL: [Network; 3] = [Network::Heals, Network::FallsSilent, Network::IsCut];
const ENDED: u8 = 3;

struct Shared {
    state: AtomicU8,
    target: Mutex<SocketAddr>,
    carriers: Mutex<Vec<JoinHandle<()>>>,
}

impl Shared {
    fn is(&self, state: Network) -> bool {
        self.state.load(Ordering::Relaxed) == state as u8
    }

    fn has_ended(&self) -> bool {
        self.state.load(Ordering::Relaxed) == ENDED
    }
}

/// A proxy; its threads end with it.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    accepts: Option<JoinHandle<()>>,
}

impl Proxy {
    /// One before `target`.
    pub(crate) fn before(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (state, target, carriers) = (AtomicU8::new(0), Mutex::new(target), Mutex::default());
        let shared = Arc::new(Shared { state, target, carriers });
        let own = Arc::clone(&shared);
        let accepts = std::thread::spawn(move || {
            while !own.has_ended() {
                match listener.accept() {
                    Ok((stream, _)) => connect(stream, &own),
                    Err(_) => std::thread::sleep(LOOK),
                }
            }
        });
        Self { address, shared, accepts: Some(accepts) }
    }

    /// New connections go there.
    pub(crate) fn aim(&self, target: SocketAddr) {
        *self.shared.target.lock().unwrap() = target;
    }

    /// From now on the network does this.
    pub(crate) fn set(&self, network: Network) {
        self.shared.state.store(ALL.iter().position(|known| *known == network).unwrap() as u8, Ordering::Relaxed);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.state.store(ENDED, Ordering::Relaxed);
        if let Some(accepts) = self.accepts.take() {
            accepts.join().unwrap();
        }
        let carriers = std::mem::take(&mut *self.shared.carriers.lock().unwrap());
        carriers.into_iter().for_each(|carrier| carrier.join().unwrap());
    }
}

/// Joins a new connection to one to the target. One that comes while the network is down, or whose target is, ends.
fn connect(stream: TcpStream, shared: &Arc<Shared>) {
    if shared.is(Network::IsCut) {
        return;
    }
    let target = *shared.target.lock().unwrap();
    let Ok(onward) = TcpStream::connect(target) else { return };
    let two = [(stream.try_clone(), onward.try_clone()), (onward.try_clone(), stream.try_clone())];
    let mut carriers = shared.carriers.lock().unwrap();
    carriers.retain(|carrier| !carrier.is_finished());
    for (from, to) in two {
        let (Ok(from), Ok(to)) = (from, to) else { return };
        let shared = Arc::clone(shared);
        carriers.push(std::thread::spawn(move || carry(from, to, &shared)));
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, shared: &Shared) {
    let _ = (from.set_nonblocking(false), from.set_read_timeout(Some(LOOK)), from.set_nodelay(true));
    let _ = to.set_nodelay(true);
    let mut bytes = vec![0; 64 << 10];
    while !shared.has_ended() && !shared.is(Network::IsCut) {
        if shared.is(Network::FallsSilent) {
            std::thread::sleep(LOOK);
            continue;
        }
        match from.read(&mut bytes) {
            Ok(0) => {
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            // What was read is carried on only if the network is still there.
            Ok(count) => {
                while shared.is(Network::FallsSilent) {
                    std::thread::sleep(LOOK);
                }
                if to.write_all(&bytes[..count]).is_err() {
                    break;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
