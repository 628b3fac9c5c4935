//! Where a process of a run is called at: one listener for control and data connections, which are told apart by what
//! they say first. Whoever says nothing in time, or something else, is closed.
//!
//! What comes is kept until somebody asks for it: of each process the newest control connection, and its newest data
//! connection. One for a generation that is over is refused; one for a generation that has not begun here yet waits
//! for it.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::line::Line;
use super::wire::{Answer, Down, Hello, Opening, Up, VERSION, read_opening, write_opening};

/// How long whoever connects may take to say what for. Others wait meanwhile: between processes of one private
/// network it is a moment.
const OPENING_WITHIN: Duration = Duration::from_secs(2);

/// How often it is looked whether somebody calls.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A connection to a process that offers its workers.
pub(crate) type Control = Line<Down, Up>;

/// What a process must be to be taken: what it says of itself, and how long it may be silent.
#[derive(Clone, Debug)]
pub(crate) struct Taking {
    pub(crate) ours: Hello,
    pub(crate) silence: Duration,
}

/// A listener, and who called.
pub(crate) struct Switch {
    held: Arc<Held>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct Held {
    /// Whether control connections are taken here, and whose.
    taking: Option<Taking>,
    calls: Mutex<Calls>,
    changed: Condvar,
}

#[derive(Default)]
struct Calls {
    controls: BTreeMap<u16, Control>,
    /// With their generations.
    data: BTreeMap<u16, (u64, TcpStream)>,
    /// The generation that is under way here; none yet.
    generation: Option<u64>,
}

impl Held {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Switch {
    /// Listens on `listener`.
    pub(crate) fn open(listener: TcpListener, taking: Option<Taking>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let held = Arc::new(Held { taking, calls: Mutex::default(), changed: Condvar::new() });
        let stop: Arc<AtomicBool> = Arc::default();
        let (shared, stopping) = (Arc::clone(&held), Arc::clone(&stop));
        let run = move || {
            while !stopping.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, from)) => {
                        if let Err(problem) = shared.take(stream) {
                            tracing::warn!(%from, problem, "a connection was closed");
                        }
                    }
                    Err(error) => {
                        if error.kind() != ErrorKind::WouldBlock {
                            tracing::warn!(%error, "a connection could not be taken");
                        }
                        std::thread::sleep(LOOK_EVERY);
                    }
                }
            }
        };
        let thread = std::thread::Builder::new().name("switch".to_owned()).spawn(run)?;
        Ok(Self { held, stop, thread: Some(thread) })
    }

    /// Control connections of all these processes, once they are there; until then who is missing. Waits at most
    /// `patience`.
    pub(crate) fn controls(&self, of: u16, patience: Duration) -> Result<BTreeMap<u16, Control>, Vec<u16>> {
        let mut gone = Vec::new();
        let mut calls = self.held.calls();
        let missing = |calls: &Calls| (1..of).filter(|k| !calls.controls.contains_key(k)).collect::<Vec<u16>>();
        let found = {
            let ended: Vec<u16> =
                calls.controls.iter().filter(|(_, line)| line.ended().is_some()).map(|(process, _)| *process).collect();
            gone.extend(ended.iter().filter_map(|process| calls.controls.remove(process)));
            if !missing(&calls).is_empty() {
                let waited = self.held.changed.wait_timeout(calls, patience);
                calls = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            let missing = missing(&calls);
            if missing.is_empty() { Ok(std::mem::take(&mut calls.controls)) } else { Err(missing) }
        };
        drop(calls);
        // Closing a line waits for its threads: not under the lock.
        drop(gone);
        found
    }

    /// From here on data connections of `generation` are taken, and older ones refused.
    pub(crate) fn begin(&self, generation: u64) {
        let mut calls = self.held.calls();
        calls.generation = Some(generation);
        let older: Vec<u16> =
            calls.data.iter().filter(|(_, (of, _))| *of < generation).map(|(process, _)| *process).collect();
        let older: Vec<_> = older.iter().filter_map(|process| calls.data.remove(process)).collect();
        drop(calls);
        for (of, stream) in older {
            refuse(stream, &outdated(of, generation));
        }
    }

    /// The data connection from `process` in `generation`; none within `patience`.
    pub(crate) fn data(&self, process: u16, generation: u64, patience: Duration) -> Option<TcpStream> {
        let is_there = |calls: &Calls| calls.data.get(&process).is_some_and(|(of, _)| *of == generation);
        let mut calls = self.held.calls();
        if !is_there(&calls) {
            calls = self.held.changed.wait_timeout(calls, patience).unwrap_or_else(PoisonError::into_inner).0;
        }
        if !is_there(&calls) {
            return None;
        }
        let (_, mut stream) = calls.data.remove(&process)?;
        drop(calls);
        // One that cannot be answered is gone: another one will come.
        write_opening(&mut stream, &Answer::Taken).ok()?;
        Some(stream)
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn outdated(theirs: u64, ours: u64) -> String {
    format!("generation {theirs} is over, generation {ours} is under way: connect to process 0 again")
}

fn refuse(mut stream: TcpStream, why: &str) {
    tracing::warn!(why, "a process was refused");
    // Who is refused and does not listen learns it from the end of the connection.
    let _ = write_opening(&mut stream, &Answer::Refused(why.to_owned()));
}

impl Held {
    fn take(&self, mut stream: TcpStream) -> Result<(), String> {
        let failed = |error: io::Error| error.to_string();
        stream.set_nonblocking(false).map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        stream.set_read_timeout(Some(OPENING_WITHIN)).map_err(failed)?;
        stream.set_write_timeout(Some(OPENING_WITHIN)).map_err(failed)?;
        let opening = match read_opening(&mut stream).map_err(|error| error.to_string())? {
            Ok(opening) => opening,
            Err(version) => {
                let differs =
                    format!("it speaks version {version} of the protocol between processes, this one {VERSION}");
                refuse(stream, &format!("{differs}: stop all processes and start the same program in each"));
                return Ok(());
            }
        };
        match opening {
            Opening::Control(hello) => {
                let Some(Taking { ours, silence }) = &self.taking else {
                    refuse(stream, "this is not process 0: the first address of --hosts must be that one's");
                    return Ok(());
                };
                if let Some(why) = hello.refusal(ours) {
                    refuse(stream, &why);
                    return Ok(());
                }
                write_opening(&mut stream, &Answer::Taken).map_err(|error| error.to_string())?;
                let line = Line::new(stream, *silence, &format!("process {}", hello.process))?;
                let before = self.calls().controls.insert(hello.process, line);
                self.changed.notify_all();
                drop(before);
            }
            Opening::Data { generation, from } => {
                let mut calls = self.calls();
                if let Some(ours) = calls.generation.filter(|ours| *ours > generation) {
                    drop(calls);
                    refuse(stream, &outdated(generation, ours));
                    return Ok(());
                }
                // What is written on it from now on is timely's.
                stream.set_read_timeout(None).map_err(failed)?;
                stream.set_write_timeout(None).map_err(failed)?;
                calls.data.insert(from, (generation, stream));
                drop(calls);
                self.changed.notify_all();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::SocketAddr;

    use super::super::wire::tests::hello;
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn ours() -> Hello {
        Hello { process: 0, ..hello() }
    }

    fn switch() -> (Switch, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let place = listener.local_addr().unwrap();
        (Switch::open(listener, Some(Taking { ours: ours(), silence: PATIENCE })).unwrap(), place)
    }

    fn call(place: SocketAddr, opening: &Opening) -> TcpStream {
        let mut stream = TcpStream::connect(place).unwrap();
        write_opening(&mut stream, opening).unwrap();
        stream
    }

    fn answer(stream: &mut TcpStream) -> Answer {
        read_opening(stream).unwrap().unwrap()
    }

    #[test]
    fn a_stale_data_connection_is_refused_and_an_early_one_waits() {
        let (switch, place) = switch();
        switch.begin(7);
        let mut stale = call(place, &Opening::Data { generation: 5, from: 1 });
        let Answer::Refused(why) = answer(&mut stale) else { panic!("it was taken") };
        assert_eq!(why, "generation 5 is over, generation 7 is under way: connect to process 0 again");
        let mut early = call(place, &Opening::Data { generation: 9, from: 1 });
        assert!(switch.data(1, 7, Duration::from_millis(300)).is_none(), "one of another generation was taken");
        switch.begin(9);
        let mut taken = switch.data(1, 9, PATIENCE).unwrap();
        assert_eq!(answer(&mut early), Answer::Taken);
        early.write_all(b"timely's").unwrap();
        let mut bytes = [0; 8];
        taken.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"timely's");
        // One that waited for a generation that was passed over.
        let mut overtaken = call(place, &Opening::Data { generation: 11, from: 1 });
        assert!(switch.data(1, 10, Duration::from_millis(300)).is_none());
        switch.begin(12);
        assert!(matches!(answer(&mut overtaken), Answer::Refused(_)));
    }

    #[test]
    fn a_process_that_differs_is_refused_and_the_newest_connection_of_one_that_does_not_counts() {
        let (switch, place) = switch();
        let mut other = call(place, &Opening::Control(Hello { process: 1, topology: [9; 32], ..ours() }));
        let Answer::Refused(why) = answer(&mut other) else { panic!("it was taken") };
        assert!(why.starts_with("process 1 cannot work with process 0: its topology is 090909090909"), "{why}");
        assert_eq!(switch.controls(2, Duration::from_millis(100)).err().unwrap(), [1]);
        let hello = Opening::Control(Hello { process: 1, ..ours() });
        let mut older = call(place, &hello);
        assert_eq!(answer(&mut older), Answer::Taken);
        let mut newer = call(place, &hello);
        assert_eq!(answer(&mut newer), Answer::Taken);
        // The older one is closed: its end comes behind at most a few signs of life.
        older.read_to_end(&mut Vec::new()).unwrap();
        let line = switch.controls(2, PATIENCE).ok().unwrap().remove(&1).unwrap();
        assert!(line.ended().is_none());
        drop(newer);
        assert!(line.inbox().recv().is_err());
    }

    #[test]
    fn strangers_are_closed_and_hold_nobody_up_for_long() {
        let (switch, place) = switch();
        let mut stranger = TcpStream::connect(place).unwrap();
        stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let silent = TcpStream::connect(place).unwrap();
        let mut friend = call(place, &Opening::Control(Hello { process: 1, ..ours() }));
        assert_eq!(answer(&mut friend), Answer::Taken);
        assert!(switch.controls(2, PATIENCE).is_ok());
        let mut rest = Vec::new();
        let _ = stranger.read_to_end(&mut rest);
        assert!(rest.is_empty());
        drop(silent);
    }

    #[test]
    fn another_version_is_refused_in_words_that_it_reads() {
        let (_switch, place) = switch();
        let mut bytes = Vec::new();
        write_opening(&mut bytes, &Opening::Control(ours())).unwrap();
        bytes[8] = 200;
        let mut stream = TcpStream::connect(place).unwrap();
        stream.write_all(&bytes).unwrap();
        let Answer::Refused(why) = answer(&mut stream) else { panic!("it was taken") };
        assert!(why.starts_with("it speaks version 200 of the protocol between processes, this one 1"), "{why}");
    }
}
