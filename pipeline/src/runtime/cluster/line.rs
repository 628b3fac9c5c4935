//! A control connection: messages both ways, signs of life while there are none, and its end said once.
//!
//! One thread writes and one reads, so that neither side ever waits for the other to listen. Silence is what the
//! reading one measures: nothing for the whole limit, not even a sign of life, though the other side gives one ten
//! times in that time. A side that is frozen, a cable that is cut and a process that is gone are the same to it.

use std::io::Write as _;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::wire::{ALIVE, MESSAGE_BYTES_MAX, WireError, decode, frame, read_frame};

/// Messages that wait on each side. Beyond it whoever says more waits, and in the end the one who decides too much.
const WAITING_MAX: usize = 64;

/// Signs of life within the limit.
const SIGNS: u32 = 10;

/// The longest pause between two of them.
const SIGN_EVERY: Duration = Duration::from_secs(1);

/// One side of a control connection. Dropping it closes the connection.
pub(crate) struct Line<Out, In> {
    stream: TcpStream,
    out: Option<Sender<Out>>,
    inbox: Receiver<In>,
    ended: Arc<OnceLock<String>>,
    threads: Vec<JoinHandle<()>>,
}

impl<Out, In> Line<Out, In>
where
    Out: Serialize + Send + 'static,
    In: DeserializeOwned + Send + 'static,
{
    /// A line over `stream`, which is given up after a silence of that length. `name` is who is at the other end.
    pub(crate) fn new(stream: TcpStream, silence: Duration, name: &str) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("the control connection to {name} cannot be used: {error}");
        stream.set_nodelay(true).map_err(failed)?;
        stream.set_read_timeout(Some(silence)).map_err(failed)?;
        stream.set_write_timeout(Some(silence)).map_err(failed)?;
        let (out, outbox) = bounded::<Out>(WAITING_MAX);
        let (heard, inbox) = bounded::<In>(WAITING_MAX);
        let ended: Arc<OnceLock<String>> = Arc::default();
        let (mut to, mut from) = (stream.try_clone().map_err(failed)?, stream.try_clone().map_err(failed)?);
        let every = (silence / SIGNS).min(SIGN_EVERY);
        let end = Arc::clone(&ended);
        let writes = move || {
            let ended = loop {
                let bytes = match outbox.recv_timeout(every) {
                    Ok(message) => frame(&message),
                    Err(RecvTimeoutError::Timeout) => Ok(ALIVE.to_vec()),
                    Err(RecvTimeoutError::Disconnected) => return,
                };
                if let Err(error) = bytes.and_then(|bytes| Ok(to.write_all(&bytes)?)) {
                    break error;
                }
            };
            let _ = end.set(said(ended, silence));
            // The reading thread hears it as an end.
            let _ = to.shutdown(Shutdown::Both);
        };
        let end = Arc::clone(&ended);
        let reads = move || {
            let ended = loop {
                let message = match read_frame(&mut from, MESSAGE_BYTES_MAX) {
                    Ok(bytes) if bytes.is_empty() => continue,
                    Ok(bytes) => decode(&bytes),
                    Err(error) => break error,
                };
                match message {
                    Ok(message) => {
                        if heard.send(message).is_err() {
                            return;
                        }
                    }
                    Err(error) => break error,
                }
            };
            let _ = end.set(said(ended, silence));
            let _ = from.shutdown(Shutdown::Both);
        };
        let thread = |name: String, body: Box<dyn FnOnce() + Send>| std::thread::Builder::new().name(name).spawn(body);
        let mut line = Self { stream, out: Some(out), inbox, ended, threads: Vec::new() };
        line.threads.push(thread(format!("to {name}"), Box::new(writes)).map_err(failed)?);
        line.threads.push(thread(format!("from {name}"), Box::new(reads)).map_err(failed)?);
        Ok(line)
    }

    /// Says something.
    ///
    /// # Errors
    /// When the line has ended: how.
    pub(crate) fn say(&self, message: Out) -> Result<(), String> {
        let ended = || self.ended().unwrap_or_else(|| "it was closed".to_owned());
        match &self.out {
            Some(out) if self.ended.get().is_none() => out.send(message).map_err(|_| ended()),
            _ => Err(ended()),
        }
    }

    /// The next message comes here; its end is the line's.
    pub(crate) const fn inbox(&self) -> &Receiver<In> {
        &self.inbox
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&self) -> Option<String> {
        self.ended.get().cloned()
    }
}

fn said(error: WireError, silence: Duration) -> String {
    use std::io::ErrorKind::{TimedOut, WouldBlock};
    match error {
        WireError::Io(error) if matches!(error.kind(), TimedOut | WouldBlock) => format!("silence for {silence:.0?}"),
        error => error.to_string(),
    }
}

impl<Out, In> Drop for Line<Out, In> {
    fn drop(&mut self) {
        self.out = None;
        let _ = self.stream.shutdown(Shutdown::Both);
        // A reading thread that waits for room finds that nobody listens any more.
        self.inbox = bounded(0).1;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (one, listener.accept().unwrap().0)
    }

    fn line(stream: TcpStream, silence_ms: u64) -> Line<String, String> {
        Line::new(stream, Duration::from_millis(silence_ms), "the test").unwrap()
    }

    #[test]
    fn an_idle_line_lives_and_a_silent_one_ends() {
        let (one, two) = pair();
        // A sign every 300 ms: a busy machine is not taken for a silent line.
        let (one, two) = (line(one, 3_000), line(two, 3_000));
        // Longer than the limit.
        assert_eq!(one.inbox().recv_timeout(Duration::from_secs(4)), Err(RecvTimeoutError::Timeout));
        two.say("still here".to_owned()).unwrap();
        assert_eq!(one.inbox().recv().unwrap(), "still here");
        assert_eq!((one.ended(), two.ended()), (None, None));

        let (one, _frozen) = pair();
        let one = line(one, 200);
        assert!(one.inbox().recv().is_err());
        assert_eq!(one.ended().unwrap(), "silence for 200ms");
        assert_eq!(one.say("nobody hears".to_owned()).unwrap_err(), "silence for 200ms");
    }

    #[test]
    fn both_sides_hear_the_end_and_garbage_is_one() {
        let (one, two) = pair();
        let (one, two) = (line(one, 60_000), line(two, 60_000));
        drop(one);
        assert!(two.inbox().recv().is_err());
        assert!(two.ended().is_some());

        let (one, mut two) = pair();
        let one = line(one, 60_000);
        two.write_all(&[2, 0, 0, 0, 9, 9]).unwrap();
        assert!(one.inbox().recv().is_err());
        assert!(one.ended().unwrap().contains("a message that cannot be read"), "{:?}", one.ended());

        let (one, mut two) = pair();
        let one = line(one, 60_000);
        two.write_all(&[255; 4]).unwrap();
        assert!(one.inbox().recv().is_err());
        assert!(one.ended().unwrap().starts_with("a message of 4294967295 bytes"), "{:?}", one.ended());
    }

    #[test]
    fn a_line_that_nobody_reads_can_be_closed() {
        let (one, two) = pair();
        let (one, two) = (line(one, 60_000), line(two, 60_000));
        for number in 0..3 * WAITING_MAX {
            one.out.as_ref().unwrap().try_send(format!("{number}")).ok();
        }
        drop(two);
        drop(one);
    }
}
