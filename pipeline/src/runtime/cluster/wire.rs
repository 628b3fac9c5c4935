//! What processes of one run say to each other, in bytes: frames of a length (`u32`, little-endian) and a message, in
//! postcard. A frame of no bytes is a sign of life.
//!
//! Whoever connects says first what it wants and who it is ([`Opening`]). That, and a refusal, are read by other
//! builds, so that their bytes are golden. All else is between equal programs: nothing of it outlives them.
//!
//! *Invariant:* a length is believed only up to a bound, and memory is taken as bytes come, not as they are announced.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tidings_operators::harness::aside::{Killed, Skip};
use tidings_operators::harness::dataflow::{Cut, Report};
use tidings_operators::harness::delta::Delta;
use tidings_operators::harness::feed::{Extent, Lot};
use tidings_operators::harness::ordinal::Ordinal;
use tidings_operators::harness::output::{EpochOutput, Said, To};
use tidings_operators::rules::Rules;
use tidings_schemas::ids::KeyGroup;
use tidings_schemas::lifecycle::Unit;
use tidings_schemas::rows::{Place, Rows};
use tidings_schemas::time::Instant;

use crate::cutlog::Hash;

/// The version of what follows the name: of frames, of openings and of refusals.
pub(crate) const VERSION: u16 = 1;

/// What a connection begins with, so that a stranger's is told from a friend's at its first bytes.
const NAME: [u8; 4] = *b"tdgs";

/// Bytes of an opening, or of its answer: a few hashes and numbers, or a sentence. Who sends more is a stranger.
pub(crate) const OPENING_BYTES_MAX: usize = 4096;

/// Bytes of any other message. What may be longer travels in pages of about [`PAGE_BYTES`], and the largest single
/// thing in one is a record or an image, of which the log takes 1 MiB. Who sends more is not one of us.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Bytes after which a page is full: large enough that pages cost nothing, small enough to come one after another.
pub(crate) const PAGE_BYTES: usize = 1 << 20;

/// Why bytes are not what they should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    /// The connection.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The other side closed it between two messages.
    #[error("it was closed")]
    Closed,
    /// A length beyond the bound.
    #[error("a message of {0} bytes, at most {1} are taken: whoever is there is none of us")]
    TooLong(usize, usize),
    /// Other bytes than expected.
    #[error("a message that cannot be read ({0}): whoever is there is none of us")]
    Garbage(String),
}

/// Who connects, and what for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Opening {
    /// A process that offers its workers to process 0.
    Control(Hello),
    /// The connection between two processes' workers, of one generation.
    Data {
        /// The generation.
        generation: u64,
        /// The process that connects.
        from: u16,
    },
}

/// What a process is, as far as it must be like the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) process: u16,
    pub(crate) processes: u16,
    /// Workers of each process.
    pub(crate) workers: u16,
    pub(crate) build: Hash,
    pub(crate) engine: String,
    pub(crate) topology: Hash,
    pub(crate) calendar: Hash,
}

impl Hello {
    /// Why a process that says this cannot work with us: everything that differs, and what to do.
    pub(crate) fn refusal(&self, ours: &Self) -> Option<String> {
        let mut differs: Vec<String> = Vec::new();
        let mut number = |what: &str, theirs: u16, ours: u16| {
            if theirs != ours {
                differs.push(format!("it runs with --{what} {theirs}, process 0 with --{what} {ours}"));
            }
        };
        number("processes", self.processes, ours.processes);
        number("workers", self.workers, ours.workers);
        let short = |hash: &Hash| blake3::Hash::from(*hash).to_hex()[..12].to_owned();
        let mut hash = |what: &str, theirs: &Hash, ours: &Hash, remedy: &str| {
            if theirs != ours {
                differs.push(format!("its {what} is {}, process 0's is {}: {remedy}", short(theirs), short(ours)));
            }
        };
        hash("topology", &self.topology, &ours.topology, "give both the same files and variables");
        hash("calendar data", &self.calendar, &ours.calendar, "run the same program in both");
        hash("build", &self.build, &ours.build, "stop all processes and start the same program in each");
        if self.engine != ours.engine {
            differs.push(format!("its engine is {}, process 0's is {}", self.engine, ours.engine));
        }
        if self.process == 0 || self.process >= ours.processes {
            let last = ours.processes - 1;
            differs.push(format!("it says that it is process {}; others than this one are 1 to {last}", self.process));
        }
        let process = self.process;
        (!differs.is_empty()).then(|| format!("process {process} cannot work with process 0: {}", differs.join("; ")))
    }
}

/// What is answered to an opening, where it is answered at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// It cannot be: why, and what to do.
    Refused(String),
    /// It is taken.
    Taken,
}

/// A partition that a worker is to read.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LotToRead {
    pub(crate) lot: Lot,
    pub(crate) topic: String,
    pub(crate) from: u64,
    pub(crate) rank: u8,
    pub(crate) at_least_permille: u16,
}

/// From process 0.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Down {
    /// A generation begins, in which these are the workers of whoever hears it.
    Welcome {
        generation: u64,
        /// Each worker's number, and what it reads.
        workers: Vec<(u16, Vec<LotToRead>)>,
        /// The rules under which the state was written that follows; none where there is no state.
        restored: Option<Hash>,
        /// Operators whose state may be dropped; none where it was dropped before.
        may_drop: Option<BTreeSet<String>>,
    },
    /// State of its workers' key groups: a chunk.
    State(Vec<u8>),
    /// That was all.
    Loaded,
    /// All are loaded: connect to the others and start.
    Start,
    /// A cut, for all its workers.
    Release(CutOnWire),
    /// Its workers are to stop.
    Stop,
}

/// A cut, without what every process has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CutOnWire {
    epoch: u64,
    now: Instant,
    ends: BTreeMap<Lot, u64>,
    skips: Vec<Skip>,
}

impl CutOnWire {
    pub(crate) fn new(cut: &Cut) -> Self {
        Self { epoch: cut.epoch, now: cut.now, ends: cut.ends.clone(), skips: cut.skips.to_vec() }
    }

    pub(crate) fn cut(self, rules: Arc<Rules>) -> Cut {
        let Self { epoch, now, ends, skips } = self;
        Cut { epoch, now, rules, ends, skips: skips.into(), crumbs: None }
    }
}

/// To process 0.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Up {
    /// The workers of a process hold their state.
    Loaded,
    /// How far a worker's feeds have come.
    Ahead(u16, Vec<(Lot, Extent)>),
    /// A page of what an epoch says, and its worker.
    Page(u16, Page),
    /// An epoch is done, and its pages were all.
    Done(u16, Rest),
    /// A call killed its operator.
    Killed { worker: u16, epoch: u64, skip: Skip },
    /// A worker cannot go on.
    Failed(u16, String),
    /// The process was told to stop.
    Leaving,
}

/// One output: its key group, its place, where it goes, its user, the record.
type SaidOnWire = (KeyGroup, Ordinal, To, Arc<str>, Vec<u8>);

/// A part of an epoch's output.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Page {
    Said(Vec<SaidOnWire>),
    /// Each row's unit, its id, its user's placement, and its length in the bytes that follow.
    Rows(Vec<(u8, [u8; 16], u64, u32)>, Vec<u8>),
    /// Images: a chunk.
    Delta(Vec<u8>),
}

/// What is left of an epoch's output without its pages.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Rest {
    epoch: u64,
    now: Instant,
    digest: u64,
    keys: u64,
    next_timer: Option<Instant>,
    read: Vec<(Lot, Extent)>,
}

/// Items in pages of about [`PAGE_BYTES`].
struct Pages<I: Iterator, F> {
    items: std::iter::Peekable<I>,
    bytes: F,
}

impl<I: Iterator, F: Fn(&I::Item) -> usize> Iterator for Pages<I, F> {
    type Item = Vec<I::Item>;

    fn next(&mut self) -> Option<Vec<I::Item>> {
        let (mut page, mut bytes) = (Vec::new(), 0);
        while bytes < PAGE_BYTES
            && let Some(item) = self.items.next()
        {
            bytes += (self.bytes)(&item);
            page.push(item);
        }
        (!page.is_empty()).then_some(page)
    }
}

/// What a worker says, in messages.
pub(crate) fn up(report: Report, mut each: impl FnMut(Up) -> Result<(), String>) -> Result<(), String> {
    let number = |worker: usize| u16::try_from(worker).unwrap_or(u16::MAX);
    match report {
        // Whoever starts a worker wakes it.
        Report::Ready(..) => Ok(()),
        Report::Ahead(worker, ahead) => each(Up::Ahead(number(worker), ahead)),
        Report::Killed(worker, killed) => {
            let Killed { epoch, skip } = *killed;
            each(Up::Killed { worker: number(worker), epoch, skip })
        }
        Report::Failed(worker, problem) => each(Up::Failed(number(worker), problem)),
        Report::Done(worker, output) => {
            let worker = number(worker);
            let EpochOutput { epoch, now, said, rows, digest, delta, keys, next_timer, read } = *output;
            let said = said.into_iter().map(|said| {
                let Said { group, ordinal, to, user, value } = said;
                (group, ordinal, to, user, value.to_vec())
            });
            for page in
                (Pages { items: said.peekable(), bytes: |said: &(_, _, _, Arc<str>, Vec<u8>)| said.4.len() + 128 })
            {
                each(Up::Page(worker, Page::Said(page)))?;
            }
            let all = Pages { items: rows.each().peekable(), bytes: |(_, bytes): &(&Place, &[u8])| bytes.len() + 32 };
            for page in all {
                let bytes = page.iter().flat_map(|(_, bytes)| *bytes).copied().collect();
                let place = |(place, bytes): (&Place, &[u8])| {
                    let (unit, id) = place.unit;
                    (unit as u8, id, place.placement, u32::try_from(bytes.len()).unwrap_or(u32::MAX))
                };
                each(Up::Page(worker, Page::Rows(page.into_iter().map(place).collect(), bytes)))?;
            }
            for chunk in delta.chunks(PAGE_BYTES, |_| true) {
                each(Up::Page(worker, Page::Delta(chunk)))?;
            }
            let read = read.into_iter().collect();
            each(Up::Done(worker, Rest { epoch, now, digest, keys, next_timer, read }))
        }
    }
}

/// Puts pages together again, each worker's for itself.
#[derive(Default)]
pub(crate) struct Gathered(BTreeMap<u16, Parts>);

#[derive(Default)]
struct Parts {
    said: Vec<Said>,
    rows: Rows,
    delta: Delta,
}

impl Gathered {
    /// Takes a page.
    pub(crate) fn page(&mut self, worker: u16, page: Page) -> Result<(), WireError> {
        let parts = self.0.entry(worker).or_default();
        match page {
            Page::Said(page) => {
                let said = |(group, ordinal, to, user, value): (_, _, _, _, Vec<u8>)| Said {
                    group,
                    ordinal,
                    to,
                    user,
                    value: Bytes::from(value),
                };
                parts.said.extend(page.into_iter().map(said));
            }
            Page::Rows(places, bytes) => {
                let mut end = 0;
                let mut placed = Vec::with_capacity(places.len());
                for (unit, id, placement, length) in places {
                    let garbage = || WireError::Garbage("a row of no unit, or of more bytes than there are".to_owned());
                    let unit = *Unit::ALL.get(usize::from(unit)).ok_or_else(garbage)?;
                    let start = end;
                    end = start + length as usize;
                    if end > bytes.len() {
                        return Err(garbage());
                    }
                    placed.push(Place { unit: (unit, id), placement, bytes: (start, end) });
                }
                parts.rows.append(Rows::new(bytes.into(), placed.into_iter()));
            }
            Page::Delta(chunk) => parts.delta.join(Delta::from_chunk(&chunk).map_err(WireError::Garbage)?),
        }
        Ok(())
    }

    /// All of an epoch.
    pub(crate) fn done(&mut self, worker: u16, rest: Rest) -> EpochOutput {
        let Parts { said, rows, delta } = self.0.remove(&worker).unwrap_or_default();
        let Rest { epoch, now, digest, keys, next_timer, read } = rest;
        EpochOutput { epoch, now, said, rows, digest, delta, keys, next_timer, read: read.into_iter().collect() }
    }
}

/// A message's frame.
pub(crate) fn frame(message: &impl Serialize) -> Result<Vec<u8>, WireError> {
    let bytes = postcard::to_extend(message, vec![0; 4]).map_err(|error| WireError::Garbage(error.to_string()))?;
    framed(bytes)
}

fn framed(mut bytes: Vec<u8>) -> Result<Vec<u8>, WireError> {
    let length = bytes.len() - 4;
    if length > MESSAGE_BYTES_MAX {
        return Err(WireError::TooLong(length, MESSAGE_BYTES_MAX));
    }
    let prefix = u32::try_from(length).map_err(|_| WireError::TooLong(length, MESSAGE_BYTES_MAX))?;
    bytes[..4].copy_from_slice(&prefix.to_le_bytes());
    Ok(bytes)
}

/// A sign of life.
pub(crate) const ALIVE: [u8; 4] = [0; 4];

/// The next frame's message; none is a sign of life.
pub(crate) fn read_frame(stream: &mut impl Read, bytes_max: usize) -> Result<Vec<u8>, WireError> {
    let mut prefix = [0; 4];
    let began = loop {
        match stream.read(&mut prefix) {
            // A process that was stopped and goes on (a debugger, a paused container): nothing is wrong with the line.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            read => break read?,
        }
    };
    match began {
        0 => return Err(WireError::Closed),
        count => stream.read_exact(&mut prefix[count..])?,
    }
    let length = usize::try_from(u32::from_le_bytes(prefix)).unwrap_or(usize::MAX);
    if length > bytes_max {
        return Err(WireError::TooLong(length, bytes_max));
    }
    let mut bytes = Vec::new();
    stream.take(length as u64).read_to_end(&mut bytes)?;
    if bytes.len() < length {
        return Err(io::Error::from(ErrorKind::UnexpectedEof).into());
    }
    Ok(bytes)
}

/// What a frame held.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(WireError::Garbage(format!("{} bytes too many", rest.len()))),
        Err(error) => Err(WireError::Garbage(error.to_string())),
    }
}

/// Says an opening, or answers one.
pub(crate) fn write_opening(stream: &mut impl Write, opening: &impl Serialize) -> Result<(), WireError> {
    let mut bytes = vec![0; 4];
    bytes.extend_from_slice(&NAME);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    let bytes = postcard::to_extend(opening, bytes).map_err(|error| WireError::Garbage(error.to_string()))?;
    Ok(stream.write_all(&framed(bytes)?)?)
}

/// Hears one. Of another version only that is known; it is refused in words that every version reads.
pub(crate) fn read_opening<T: DeserializeOwned>(stream: &mut impl Read) -> Result<Result<T, u16>, WireError> {
    let bytes = loop {
        let bytes = read_frame(stream, OPENING_BYTES_MAX)?;
        if !bytes.is_empty() {
            break bytes;
        }
    };
    let Some((version, message)) = bytes.strip_prefix(&NAME).and_then(<[u8]>::split_first_chunk::<2>) else {
        return Err(WireError::Garbage("it does not begin as ours do".to_owned()));
    };
    match u16::from_le_bytes(*version) {
        VERSION => decode(message).map(Ok),
        other => Ok(Err(other)),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use tidings_operators::harness::table::{HeadBytes, Image, StateKey};
    use tidings_schemas::channel::{Channel, Priority};
    use tidings_schemas::ids::EventId;
    use tidings_schemas::lifecycle::Row;

    use super::*;

    pub(crate) fn hello() -> Hello {
        Hello {
            process: 1,
            processes: 2,
            workers: 3,
            build: [7; 32],
            engine: "timely 1".to_owned(),
            topology: [8; 32],
            calendar: [9; 32],
        }
    }

    fn opening(opening: &impl Serialize) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_opening(&mut bytes, opening).unwrap();
        bytes
    }

    // Other builds read these.
    #[test]
    fn openings_and_refusals_keep_their_bytes() {
        let hashes = [[7; 32], [8; 32], [9; 32]];
        let hello_bytes = [&[1, 2, 3][..], &hashes[0], &[8], b"timely 1", &hashes[1], &hashes[2]].concat();
        let length = u32::try_from(4 + 2 + 1 + hello_bytes.len()).unwrap().to_le_bytes();
        let golden = [&length[..], b"tdgs", &[1, 0], &[0], &hello_bytes].concat();
        assert_eq!(opening(&Opening::Control(hello())), golden);
        assert_eq!(
            opening(&Opening::Data { generation: 300, from: 1 }),
            [&[10, 0, 0, 0][..], b"tdgs", &[1, 0, 1, 0xac, 2, 1]].concat()
        );
        assert_eq!(
            opening(&Answer::Refused("no".to_owned())),
            [&[10, 0, 0, 0][..], b"tdgs", &[1, 0, 0, 2], b"no"].concat()
        );
        let read: Result<Opening, u16> = read_opening(&mut &golden[..]).unwrap();
        assert_eq!(read, Ok(Opening::Control(hello())));
    }

    #[test]
    fn what_is_not_ours_is_told_at_its_first_bytes() {
        let told = |bytes: &[u8]| read_opening::<Opening>(&mut &bytes[..]).unwrap_err().to_string();
        assert_eq!(
            told(b"GET / HTTP/1.1\r\n"),
            "a message of 542393671 bytes, at most 4096 are taken: whoever is there is none of us"
        );
        let strange = [&[6, 0, 0, 0][..], b"abcdef"].concat();
        assert!(told(&strange).contains("it does not begin as ours do"));
        assert_eq!(told(&[]), "it was closed");
        let mut other = opening(&Opening::Control(hello()));
        other[8] = 2;
        assert_eq!(read_opening::<Opening>(&mut &other[..]).unwrap(), Err(2));
        // A length that is never filled takes no memory, and no message is read from half of one.
        let announced = u32::try_from(MESSAGE_BYTES_MAX).unwrap().to_le_bytes();
        let cut = read_frame(&mut &[&announced[..], &[1, 2, 3]].concat()[..], MESSAGE_BYTES_MAX);
        assert!(matches!(cut, Err(WireError::Io(error)) if error.kind() == ErrorKind::UnexpectedEof));
        assert!(decode::<Up>(&[200]).is_err() && decode::<Up>(&[0, 0]).is_err());
    }

    #[test]
    fn a_refusal_names_all_that_differs_and_what_to_do() {
        let ours = Hello { process: 0, ..hello() };
        assert_eq!(hello().refusal(&ours), None);
        for (theirs, words) in [
            (Hello { processes: 3, ..hello() }, "it runs with --processes 3, process 0 with --processes 2"),
            (Hello { workers: 1, ..hello() }, "it runs with --workers 1, process 0 with --workers 3"),
            (
                Hello { topology: [1; 32], ..hello() },
                "its topology is 010101010101, process 0's is 080808080808: give both the same files and variables",
            ),
            (
                Hello { build: [1; 32], ..hello() },
                "its build is 010101010101, process 0's is 070707070707: stop all processes and start the same program in each",
            ),
            (
                Hello { calendar: [1; 32], ..hello() },
                "its calendar data is 010101010101, process 0's is 090909090909: run the same program in both",
            ),
            (Hello { engine: "timely 2".to_owned(), ..hello() }, "its engine is timely 2, process 0's is timely 1"),
            (Hello { process: 0, ..hello() }, "it says that it is process 0; others than this one are 1 to 1"),
            (Hello { process: 2, ..hello() }, "it says that it is process 2; others than this one are 1 to 1"),
        ] {
            let process = theirs.process;
            let expected = format!("process {process} cannot work with process 0: {words}");
            assert_eq!(theirs.refusal(&ours), Some(expected));
        }
        let both = Hello { workers: 1, build: [1; 32], ..hello() }.refusal(&ours).unwrap();
        assert!(both.contains("--workers 1") && both.contains("its build"), "{both}");
    }

    /// A stream whose process was stopped and goes on before each byte.
    struct Stopped<'a>(&'a [u8], bool);

    impl Read for Stopped<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 { Err(ErrorKind::Interrupted.into()) } else { self.0.read(&mut buffer[..1]) }
        }
    }

    #[test]
    fn a_process_that_was_stopped_and_goes_on_reads_on() {
        let bytes = [&frame(&"one".to_owned()).unwrap()[..], &ALIVE, &frame(&"two".to_owned()).unwrap()].concat();
        let mut stream = Stopped(&bytes, false);
        let mut read = || read_frame(&mut stream, MESSAGE_BYTES_MAX);
        assert_eq!(decode::<String>(&read().unwrap()).unwrap(), "one");
        assert!(read().unwrap().is_empty());
        assert_eq!(decode::<String>(&read().unwrap()).unwrap(), "two");
        assert!(matches!(read(), Err(WireError::Closed)));
    }

    #[test]
    fn an_output_of_many_pages_is_put_together_as_it_was() {
        let said = |number: u32| Said {
            group: KeyGroup(u16::try_from(number % 1024).unwrap()),
            ordinal: Ordinal::record(Lot { source: 1, partition: 2 }, u64::from(number)),
            to: match number % 3 {
                0 => To::Lane(Channel::Push, Priority::Medium),
                1 => To::HandOver(Priority::Critical, EventId::new("high", 0, 7), Instant(5)),
                _ => To::Dlq(tidings_schemas::reason::Reason::Panicked),
            },
            user: format!("u{number}").into(),
            value: vec![u8::try_from(number % 256).unwrap(); 4_000].into(),
        };
        let row =
            |number: u64| Row { event: EventId::new("high", 0, number), user: format!("u{number}"), ..Row::default() };
        let rows: Vec<Row> = (0..20_000).map(|number| row(number).sealed()).collect();
        let image = |number: u32| {
            let user: Arc<str> = format!("u{number:06}").into();
            let key = (Arc::from("route"), StateKey { group: KeyGroup(1), user, subkey: None });
            let body = number.is_multiple_of(2).then(|| Some((3, vec![9; 900])));
            (key, Image { head: Some((1, HeadBytes::from_slice(&[1, 2]))), body, ..Image::default() })
        };
        let output = EpochOutput {
            epoch: 9,
            now: Instant(77),
            said: (0..1_000).map(said).collect(),
            rows: Rows::of(&rows),
            digest: 5,
            delta: (0..5_000).map(image).collect(),
            keys: 5_000,
            next_timer: Some(Instant(99)),
            read: BTreeMap::from([(Lot { source: 0, partition: 1 }, Extent { end: 4, records: 3, checksum: 2 })]),
        };
        let (mut gathered, mut pages, mut all) = (Gathered::default(), 0, None);
        up(Report::Done(3, Box::new(output.clone())), |up| {
            let bytes = frame(&up).unwrap();
            assert!(bytes.len() < 2 * PAGE_BYTES + 100_000, "a page of {} bytes", bytes.len());
            let read = read_frame(&mut &bytes[..], MESSAGE_BYTES_MAX).unwrap();
            match decode(&read).unwrap() {
                Up::Page(worker, page) => {
                    pages += 1;
                    gathered.page(worker, page).unwrap();
                }
                Up::Done(worker, rest) => all = Some(gathered.done(worker, rest)),
                other => panic!("{other:?}"),
            }
            Ok(())
        })
        .unwrap();
        let all = all.unwrap();
        assert!(pages > 10, "{pages} pages");
        assert_eq!((all.epoch, all.now, all.digest), (output.epoch, output.now, output.digest));
        assert_eq!((all.keys, all.next_timer, &all.read), (output.keys, output.next_timer, &output.read));
        assert!(all.said == output.said && all.delta == output.delta);
        assert_eq!(all.rows.decode(), output.rows.decode());
        assert!(all.rows.each().zip(output.rows.each()).all(|(one, two)| one.0.unit == two.0.unit && one.1 == two.1));
        let short = Page::Rows(vec![(0, [0; 16], 0, 5)], vec![1, 2]);
        assert!(
            gathered.page(3, short).is_err() && gathered.page(3, Page::Rows(vec![(9, [0; 16], 0, 0)], vec![])).is_err()
        );
    }
}
