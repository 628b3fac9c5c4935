//! Workers of several processes as one engine: timely's own channels over sockets that the host has connected.
//!
//! # Cast
//! A *seat* is a process's place among the others, with one connected socket to each of them: a *link*. Who may sit
//! where, and in which generation, the host has found out before.
//!
//! # Protocol
//! 1. Each process starts its workers on its seat. From here on the sockets are timely's.
//! 2. A link that breaks is said once (`broken`). It stops nobody by itself: to timely a broken link looks like
//!    one on which nothing comes any more, so that no thread panics and no epoch ends early.
//! 3. The host ends the workers of this process ([`super::dataflow::Running::join`]): they give their dataflow up
//!    where it stands, links are closed, and only then what timely's reading threads wait for, a proper end of the
//!    stream, is made up.
//!
//! # Invariants
//! - What a broken link cut off is never given to a worker that still runs: the made-up end comes after the workers'.
//! - An epoch is done only when every worker of every process has released it itself, whatever links do.
//!
//! # Not promised
//! That a peer is the one that it says it is, or sends what timely sent: links belong on a private network.

use std::any::Any;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use timely::WorkerConfig;
use timely::communication::allocator::zero_copy::initialize::initialize_networking_from_sockets;
use timely::communication::allocator::zero_copy::stream::Stream;
use timely::communication::allocator::{AllocatorBuilder, ProcessBuilder};
use timely::communication::initialize::Hooks;

use super::aside::caught;
use super::dataflow::{Report, Running, WorkerIo, run};
use crate::ingest::Source;

/// What carries data between processes, and its version: two versions do not speak the same bytes.
pub const ENGINE: &str = "timely 0.32.0";

/// Six numbers of eight bytes: what timely writes before each message. The fifth is the length of what follows, and
/// none is the end of the stream.
const HEADER_BYTES: usize = 48;
const LENGTH_AT: usize = 32;

/// A process's place in the engine.
pub struct Seat {
    /// Its number.
    pub process: usize,
    /// A connection to each process, by number; none to itself.
    pub links: Vec<Option<TcpStream>>,
    /// Hears that a link broke, and how. Called from the link's own threads, perhaps more than once.
    pub broken: Arc<dyn Fn(String) + Send + Sync>,
}

/// How the workers of one process end.
pub(super) struct Ending {
    /// Workers are to give up.
    pub(super) abort: AtomicBool,
    sockets: Vec<TcpStream>,
    broken: Arc<dyn Fn(String) + Send + Sync>,
    over: Mutex<bool>,
    changed: Condvar,
}

impl Ending {
    /// Workers give up, and nothing passes the links any more.
    pub(super) fn abort(&self) {
        self.abort.store(true, Ordering::Relaxed);
        for socket in &self.sockets {
            // One that is closed already needs no closing.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// No worker runs any more.
    pub(super) fn over(&self) {
        *self.over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    fn wait_until_over(&self) {
        let mut over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        while !*over {
            over = self.changed.wait(over).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn broken(&self, process: usize, how: &str) {
        if !self.abort.load(Ordering::Relaxed) {
            (self.broken)(format!("the data connection to process {process} broke: {how}"));
        }
    }
}

/// Lets timely's own threads end, once no worker runs.
pub(super) fn close(ending: &Ending, threads: Box<dyn Any + Send>) -> Result<(), String> {
    ending.over();
    caught(|| drop(threads)).map_err(|died| format!("a thread of a data connection panicked: {died:?}"))
}

/// Starts this process's workers among those of all processes. Every process starts as many.
///
/// # Errors
/// When timely cannot start them.
pub fn start_in(workers: Vec<WorkerIo>, sources: Vec<Source>, seat: Seat) -> Result<Running, String> {
    let Seat { process, links, broken } = seat;
    let count = workers.len();
    let sockets: io::Result<Vec<_>> = links.iter().flatten().map(TcpStream::try_clone).collect();
    let sockets = sockets.map_err(|error| format!("a data connection cannot be shared: {error}"))?;
    let (over, changed) = (Mutex::new(false), Condvar::new());
    let ending = Arc::new(Ending { abort: AtomicBool::new(false), sockets, broken, over, changed });
    let link = |(to, stream): (usize, Option<TcpStream>)| {
        stream.map(|stream| Link {
            stream,
            to,
            ending: Arc::clone(&ending),
            frames: Frames::default(),
            is_broken: false,
        })
    };
    let links = links.into_iter().enumerate().map(link).collect();
    let hooks = Hooks::default();
    let builders = ProcessBuilder::new_typed_vector(count, hooks.refill.clone(), None);
    let (builders, threads) = initialize_networking_from_sockets(builders, links, process, count, hooks)
        .map_err(|error| format!("data connections cannot be used: {error}"))?;
    let builders = builders.into_iter().map(AllocatorBuilder::Tcp).collect();
    let sources: Arc<[Source]> = sources.into();
    let workers: Mutex<Vec<Option<WorkerIo>>> = Mutex::new(workers.into_iter().map(Some).collect());
    let shared = Arc::clone(&ending);
    let body = move |worker: &mut timely::worker::Worker| {
        let index = worker.index();
        let io = workers.lock().ok().and_then(|mut all| all.get_mut(index - process * count).and_then(Option::take));
        let Some(io) = io else { return };
        let reports = io.reports.clone();
        // A panic would travel to the others as one of timely's own, without a word.
        let ran = catch_unwind(AssertUnwindSafe(|| run(worker, io, Arc::clone(&sources), &shared.abort)));
        if let Err(payload) = ran {
            let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
            let _ = reports.send(Report::Failed(index, format!("it panicked: {text}")));
            worker.installed_dataflows().into_iter().for_each(|dataflow| worker.drop_dataflow(dataflow));
        }
    };
    let guards = timely::execute::execute_from(builders, Box::new(()), WorkerConfig::default(), body)?;
    Ok(Running::of_several(guards, ending, Box::new(threads)))
}

/// One end of a connection, as timely reads and writes it: never an error, and at the end a proper one.
struct Link {
    stream: TcpStream,
    to: usize,
    ending: Arc<Ending>,
    frames: Frames,
    is_broken: bool,
}

impl Link {
    fn lose(&mut self, how: &str) {
        self.is_broken = true;
        self.ending.broken(self.to, how);
    }
}

impl Read for Link {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while !self.is_broken {
            match self.stream.read(into) {
                Ok(0) if self.frames.has_ended || into.is_empty() => return Ok(0),
                Ok(0) => self.lose("it was closed"),
                Ok(count) => {
                    self.frames.pass(&into[..count]);
                    return Ok(count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) if self.frames.has_ended => return Ok(0),
                Err(error) => self.lose(&error.to_string()),
            }
        }
        self.ending.wait_until_over();
        let count = self.frames.until_the_end(into.len());
        into[..count].fill(0);
        self.frames.pass(&into[..count]);
        Ok(count)
    }
}

impl Write for Link {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        while !self.is_broken {
            match self.stream.write(bytes) {
                Ok(count) => return Ok(count),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => self.lose(&error.to_string()),
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for Link {
    fn try_clone(&self) -> io::Result<Self> {
        let (stream, ending) = (self.stream.try_clone()?, Arc::clone(&self.ending));
        Ok(Self { stream, to: self.to, ending, frames: Frames::default(), is_broken: false })
    }

    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.stream.set_nonblocking(nonblocking)
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        let _ = self.stream.shutdown(how);
        Ok(())
    }
}

/// Where in timely's messages a stream stands.
#[derive(Default)]
struct Frames {
    /// How much was read of the header that is open, and the length in it.
    have: usize,
    length: [u8; 8],
    /// What is to come of the message that is open.
    left: u64,
    has_ended: bool,
}

impl Frames {
    fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let taken = if self.left > 0 {
                let taken = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
                self.left -= taken as u64;
                taken
            } else {
                let taken = bytes.len().min(HEADER_BYTES - self.have);
                for (at, byte) in (self.have..).zip(&bytes[..taken]) {
                    if let Some(place) = at.checked_sub(LENGTH_AT).and_then(|at| self.length.get_mut(at)) {
                        *place = *byte;
                    }
                }
                self.have += taken;
                taken
            };
            if self.have == HEADER_BYTES {
                self.have = 0;
                self.left = u64::from_be_bytes(self.length);
                self.has_ended |= self.left == 0;
            }
            bytes = &bytes[taken..];
        }
    }

    /// How many zeros may follow at once, so that the open message is filled up and the last header ends the stream.
    fn until_the_end(&self, at_most: usize) -> usize {
        if self.has_ended {
            return 0;
        }
        let open =
            if self.left > 0 { usize::try_from(self.left).unwrap_or(usize::MAX) } else { HEADER_BYTES - self.have };
        open.min(at_most)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Duration;

    use super::*;
    use crate::harness::dataflow::Assigned;
    use crate::harness::feed::{Feed, Lot, RawRecord};
    use crate::ingest::Path;

    fn message(length: u64) -> Vec<u8> {
        let header = [1, 2, 3, 4, length, 6_u64].map(u64::to_be_bytes).concat();
        [header, vec![7; usize::try_from(length).unwrap()]].concat()
    }

    #[test]
    fn the_version_is_the_one_that_is_built() {
        let lock = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock");
        let lock = std::fs::read_to_string(lock).unwrap();
        let (name, version) = ENGINE.split_once(' ').unwrap();
        assert!(lock.contains(&format!("name = \"{name}\"\nversion = \"{version}\"\n")));
    }

    #[test]
    fn a_stream_that_is_cut_off_anywhere_is_filled_up_to_a_proper_end() {
        let whole = [message(5), message(700), message(1)].concat();
        for cut in 0..whole.len() {
            let mut frames = Frames::default();
            frames.pass(&whole[..cut]);
            let mut made_up = 0;
            loop {
                let count = frames.until_the_end(64);
                if count == 0 {
                    break;
                }
                frames.pass(&[0; 64][..count]);
                made_up += count;
            }
            assert!(frames.has_ended && made_up >= 1 && frames.have == 0 && frames.left == 0, "cut at {cut}");
        }
        let mut frames = Frames::default();
        // In pieces of any size.
        for piece in [&whole[..], &message(0)].concat().chunks(7) {
            assert!(!frames.has_ended);
            frames.pass(piece);
        }
        assert!(frames.has_ended);
    }

    #[test]
    fn a_broken_link_is_said_and_ends_properly_only_once_the_workers_have_ended() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let (says, said) = std::sync::mpsc::sync_channel(9);
        let ending = Arc::new(Ending {
            abort: AtomicBool::new(false),
            sockets: vec![stream.try_clone().unwrap()],
            broken: Arc::new(move |how| says.try_send(how).unwrap()),
            over: Mutex::new(false),
            changed: Condvar::new(),
        });
        let shared = Arc::clone(&ending);
        let mut link = Link { stream, to: 1, ending: shared, frames: Frames::default(), is_broken: false };
        peer.write_all(&message(5)[..50]).unwrap();
        drop(peer);
        let reads = std::thread::spawn(move || {
            let mut read = Vec::new();
            link.read_to_end(&mut read).unwrap();
            link.write_all(b"into nothing").unwrap();
            read
        });
        let how = said.recv_timeout(Duration::from_secs(20)).expect("nobody said that the link broke");
        assert!(!reads.is_finished(), "a made-up end reached workers that run");
        ending.abort();
        ending.over();
        let read = reads.join().unwrap();
        assert_eq!((read.len(), &read[50..]), (48 + 5 + 48, &[0; 51][..]));
        assert_eq!(how, "the data connection to process 1 broke: it was closed");
    }

    /// A partition with nothing in it, or one that kills whoever reads it.
    struct Partition(bool);

    impl Feed for Partition {
        fn poll(&mut self, _: usize, _: &mut Vec<RawRecord>) -> Result<u64, String> {
            assert!(!self.0, "a page is torn");
            Ok(0)
        }
    }

    #[test]
    fn a_worker_that_panics_says_so_and_both_processes_can_be_ended() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (two, _) = listener.accept().unwrap();
        let wiring = crate::script::straight(&[("validate", serde_json::json!({}), None)]);
        let (report, reports) = crossbeam_channel::bounded(16);
        let (_command, commands) = crossbeam_channel::bounded(1);
        let start = |process: usize, links| {
            let lot = Lot { source: 0, partition: u32::try_from(process).unwrap() };
            let feed = Box::new(Partition(process == 1));
            let io = WorkerIo {
                chain: wiring.chain(Path::Decide).unwrap(),
                assigned: vec![Assigned { lot, from: 0, feed, rank: 1, at_least_permille: 0 }],
                commands: commands.clone(),
                reports: report.clone(),
            };
            start_in(vec![io], wiring.sources.clone(), Seat { process, links, broken: Arc::new(|_| {}) }).unwrap()
        };
        let running = [start(0, vec![None, Some(one)]), start(1, vec![Some(two), None])];
        let failed = reports.iter().find_map(|report| match report {
            Report::Failed(worker, problem) => Some((worker, problem)),
            _ => None,
        });
        assert_eq!(failed, Some((1, "it panicked: a page is torn".to_owned())));
        for running in running {
            running.join().unwrap();
        }
    }
}
