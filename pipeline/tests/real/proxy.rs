//! A network between two processes that can be cut, fall silent and heal: a TCP proxy of a test's own.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::thread::JoinHandle;

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

struct State {
    /// What it does; none once it is taken away.
    network: Option<Network>,
    /// Whoever carries one direction of a connection, and where it reads.
    carriers: Vec<(Weak<TcpStream>, JoinHandle<()>)>,
}

impl State {
    fn connects(&self) -> bool {
        matches!(self.network, Some(Network::Heals | Network::FallsSilent))
    }
}

struct Shared {
    target: SocketAddr,
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    /// Whoever reads or writes where nothing connects any more is woken by the end of its connection.
    fn change(&self, network: Option<Network>) {
        let mut state = self.state.lock().unwrap();
        state.network = network;
        if !state.connects() {
            for stream in state.carriers.iter().filter_map(|(stream, _)| stream.upgrade()) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
        self.changed.notify_all();
    }

    /// Waits while the network is silent; says whether it carries then.
    fn carries(&self) -> bool {
        let state = self.state.lock().unwrap();
        let is_silent = |state: &mut State| state.network == Some(Network::FallsSilent);
        self.changed.wait_while(state, is_silent).unwrap().network == Some(Network::Heals)
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
        let address = listener.local_addr().unwrap();
        let state = Mutex::new(State { network: Some(Network::Heals), carriers: Vec::new() });
        let shared = Arc::new(Shared { target, state, changed: Condvar::new() });
        let own = Arc::clone(&shared);
        let accepts = std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Some(network) = own.state.lock().unwrap().network else { return };
                // One that ended before it was taken is no connection.
                if let (Ok(stream), Network::Heals | Network::FallsSilent) = (stream, network) {
                    connect(stream, &own);
                }
            }
        });
        Self { address, shared, accepts: Some(accepts) }
    }

    /// From now on the network does this.
    pub(crate) fn set(&self, network: Network) {
        self.shared.change(Some(network));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.change(None);
        // Whoever accepts waits for a connection: this is the last one.
        let last = TcpStream::connect(self.address).unwrap();
        if let Some(accepts) = self.accepts.take() {
            accepts.join().unwrap();
        }
        drop(last);
        let carriers = std::mem::take(&mut self.shared.state.lock().unwrap().carriers);
        carriers.into_iter().for_each(|(_, carrier)| carrier.join().unwrap());
    }
}

/// Joins a new connection to one to the target. One whose target is down ends, and so does one that was on its way
/// when the network was cut.
fn connect(stream: TcpStream, shared: &Arc<Shared>) {
    let Ok(onward) = TcpStream::connect(shared.target) else { return };
    let (near, far) = (Arc::new(stream), Arc::new(onward));
    let mut state = shared.state.lock().unwrap();
    if !state.connects() {
        return;
    }
    state.carriers.retain(|(_, carrier)| !carrier.is_finished());
    for (from, to) in [(&near, &far), (&far, &near)] {
        let (stream, from, to, shared) = (Arc::downgrade(from), Arc::clone(from), Arc::clone(to), Arc::clone(shared));
        state.carriers.push((stream, std::thread::spawn(move || carry(&from, &to, &shared))));
    }
}

fn carry(mut from: &TcpStream, mut to: &TcpStream, shared: &Shared) {
    let _ = to.set_nodelay(true);
    let mut bytes = vec![0; 64 << 10];
    while shared.carries() {
        let read = from.read(&mut bytes);
        // What was read, and be it the end, is carried on only if the network is still there.
        if !shared.carries() {
            break;
        }
        match read {
            Ok(0) => {
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            Ok(count) if to.write_all(&bytes[..count]).is_ok() => {}
            _ => break,
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
