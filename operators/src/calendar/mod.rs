//! Local time: the one module that knows what a wall clock shows.
//!
//! A [`Calendar`] is one release of the tz database, read from one file of bytes. The bytes are part
//! of what a cut names (by their hash), so that a replay computes with the rules of its day, and
//! nothing here looks at the host's zoneinfo or at a clock. jiff reads the TZif files; each zone
//! becomes a sorted table of spans with one offset, and everything else is integer arithmetic on it.
//!
//! The file has the layout of Android's `tzdata` (all numbers big endian):
//!
//! ```text
//! header   "tzdata2026f\0", u32 index_at, u32 data_at, u32 end        24 bytes
//! index    name padded with NUL to 40, u32 place (from data_at), u32 length, u32 0   52 bytes a name, sorted
//! data     TZif files; a link has the place of its zone
//! ```

mod quiet;
mod zone;

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use hashbrown::HashMap;

pub use quiet::Window;
pub use zone::{Fold, LocalTime, Zone};

static BUNDLED: &[u8] = include_bytes!("../../data/tzdata-2026f.bin");

const MAGIC: &[u8] = b"tzdata";
const HEADER_BYTES: usize = 24;
const NAME_BYTES: usize = 40;
const ENTRY_BYTES: usize = NAME_BYTES + 12;

/// Why bytes are not a calendar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CalendarError {
    /// The file itself is not what the packer writes.
    #[error("tz data, {place}: expected {expected}; pack the file as operators/data/README.md says")]
    Malformed {
        /// Where in the file.
        place: String,
        /// What should stand there.
        expected: &'static str,
    },
    /// A zone's rules can't be read.
    #[error("tz data, zone `{zone}`: expected a TZif file, found one that does not parse: {reason}")]
    Zone {
        /// The zone's name.
        zone: String,
        /// What the parser says.
        reason: String,
    },
}

fn malformed(place: impl Into<String>, expected: &'static str) -> CalendarError {
    CalendarError::Malformed { place: place.into(), expected }
}

/// One release of the tz database. Cloning is cheap.
#[derive(Clone)]
pub struct Calendar(Arc<Release>);

struct Release {
    bytes: Arc<[u8]>,
    hash: [u8; 32],
    version: String,
    /// Sorted by name.
    zones: Vec<Zone>,
    /// Places in `zones`. Only looked into, never walked: a look-up costs a fifth of a binary search.
    places: HashMap<Arc<str>, usize>,
    utc: Zone,
}

impl Calendar {
    /// The release that this build was tested with.
    #[must_use]
    pub fn bundled() -> Self {
        static CALENDAR: LazyLock<Calendar> =
            LazyLock::new(|| Calendar::from_bytes(BUNDLED.into()).expect("the checked-in tz data is read by a test"));
        CALENDAR.clone()
    }

    /// The release in `bytes`. All zones are read here (about 5 ms), so that no later question can fail.
    ///
    /// # Errors
    /// When the bytes are damaged or are not what the packer writes.
    pub fn from_bytes(bytes: Arc<[u8]>) -> Result<Self, CalendarError> {
        let header = bytes.get(..HEADER_BYTES).ok_or_else(|| malformed("header", "at least 24 bytes"))?;
        let version = header.strip_prefix(MAGIC).and_then(|rest| rest[..6].strip_suffix(b"\0"));
        let version =
            version.filter(|version| version.is_ascii()).and_then(|version| std::str::from_utf8(version).ok());
        let version = version.ok_or_else(|| malformed("header", "`tzdata` and a version like `2026f`"))?.to_owned();
        let (index_at, data_at, end) = (number(header, 12), number(header, 16), number(header, 20));
        if index_at != HEADER_BYTES || data_at < index_at || (data_at - index_at) % ENTRY_BYTES != 0 {
            return Err(malformed("header", "the index right behind it, in entries of 52 bytes"));
        }
        if end != bytes.len() || data_at > end {
            return Err(malformed("header", "an end that is the file's length"));
        }

        let data = &bytes[data_at..];
        let mut tables = BTreeMap::new();
        let mut zones: Vec<Zone> = Vec::new();
        for (at, entry) in bytes[index_at..data_at].chunks_exact(ENTRY_BYTES).enumerate() {
            let name = entry[..NAME_BYTES].split(|byte| *byte == 0).next().unwrap_or_default();
            let name = std::str::from_utf8(name).ok().filter(|name| !name.is_empty() && name.is_ascii());
            let name = name.ok_or_else(|| malformed(format!("entry {at}"), "a name in ASCII"))?;
            if zones.last().is_some_and(|zone| zone.name() >= name) {
                return Err(malformed(format!("entry {at}, `{name}`"), "names in ascending order"));
            }
            let (place, length) = (number(entry, NAME_BYTES), number(entry, NAME_BYTES + 4));
            let table = match tables.get(&(place, length)) {
                Some(table) => Arc::clone(table),
                None => {
                    let file = place.checked_add(length).and_then(|end| data.get(place..end));
                    let file =
                        file.ok_or_else(|| malformed(format!("entry {at}, `{name}`"), "a place inside the file"))?;
                    let table = Arc::new(zone::Table::from_tzif(name, file)?);
                    tables.insert((place, length), Arc::clone(&table));
                    table
                }
            };
            zones.push(Zone::new(name, table));
        }
        let places: HashMap<Arc<str>, usize> =
            zones.iter().enumerate().map(|(place, zone)| (Arc::clone(&zone.name), place)).collect();
        let utc = places.get("UTC").map(|place| zones[*place].clone());
        let utc = utc.ok_or_else(|| malformed("index", "a zone named `UTC`"))?;
        let hash = *blake3::hash(&bytes).as_bytes();
        Ok(Self(Arc::new(Release { bytes, hash, version, zones, places, utc })))
    }

    /// The bytes it was read from: what the checkpoint store keeps.
    #[must_use]
    pub fn bytes(&self) -> &Arc<[u8]> {
        &self.0.bytes
    }

    /// The BLAKE3 hash of [`Self::bytes`]: what a cut names.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        self.0.hash
    }

    /// The release, like `2026f`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.0.version
    }

    /// The zone of an IANA name (or link), written exactly so.
    #[must_use]
    pub fn zone(&self, name: &str) -> Option<&Zone> {
        self.0.places.get(name).map(|place| &self.0.zones[*place])
    }

    /// UTC: the zone of users who named none.
    #[must_use]
    pub fn utc(&self) -> &Zone {
        &self.0.utc
    }

    /// The name that a wrong one was perhaps meant to be: for hints in errors.
    #[must_use]
    pub fn nearest(&self, name: &str) -> Option<&str> {
        let wanted = name.trim().replace(' ', "_").to_ascii_lowercase();
        let far = wanted.len() / 3;
        self.names()
            .map(|known| {
                let lower = known.to_ascii_lowercase();
                let city = lower.rsplit('/').next().unwrap_or_default();
                // A city without its continent is as near as one typing error.
                let distance = if city == wanted { 1 } else { strsim::osa_distance(&lower, &wanted) };
                (distance, known)
            })
            .filter(|(distance, _)| *distance <= far)
            .min()
            .map(|(_, known)| known)
    }

    /// All names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.zones.iter().map(Zone::name)
    }
}

impl std::fmt::Debug for Calendar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Calendar({}, {} zones)", self.0.version, self.0.zones.len())
    }
}

/// The number at `at`; the caller has checked that it lies inside.
fn number(bytes: &[u8], at: usize) -> usize {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    usize::try_from(u32::from_be_bytes(number)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn no_damage_panics(at in prop::collection::vec((0..BUNDLED.len(), any::<u8>()), 1..20)) {
            let mut bytes = BUNDLED.to_vec();
            at.into_iter().for_each(|(at, byte)| bytes[at] = byte);
            let hash = *blake3::hash(&bytes).as_bytes();
            match Calendar::from_bytes(bytes.into()) {
                Ok(calendar) => prop_assert_eq!(calendar.hash(), hash),
                Err(error) => prop_assert!(error.to_string().starts_with("tz data, ")),
            }
        }
    }

    #[test]
    fn the_bundled_file_is_the_pinned_release() {
        let calendar = Calendar::bundled();
        assert_eq!(calendar.version(), "2026f");
        assert_eq!(calendar.names().count(), 598);
        assert_eq!(
            blake3::Hash::from_bytes(calendar.hash()).to_hex().as_str(),
            "6d1d88dfaa7a7005f016b91d5d67c8d2e9f3019801982d74516f5866d1d622ab"
        );
        assert_eq!(calendar.hash(), *blake3::hash(calendar.bytes()).as_bytes());
    }

    #[test]
    fn a_name_counts_only_as_iana_writes_it() {
        let calendar = Calendar::bundled();
        for name in ["Europe/Berlin", "Asia/Calcutta", "UTC", "America/Argentina/Buenos_Aires"] {
            assert_eq!(calendar.zone(name).map(Zone::name), Some(name));
        }
        for (wrong, hint) in [
            ("europe/berlin", Some("Europe/Berlin")),
            ("Europe/Berln", Some("Europe/Berlin")),
            ("America/New York", Some("America/New_York")),
            ("Vancouver", Some("America/Vancouver")),
            ("EST5EDT,M3.2.0,M11.1.0", None),
            ("+02:00", None),
            ("", None),
        ] {
            assert!(calendar.zone(wrong).is_none(), "{wrong}");
            assert_eq!(calendar.nearest(wrong), hint, "{wrong}");
        }
    }

    #[test]
    fn a_link_shares_the_rules_of_its_zone() {
        let calendar = Calendar::bundled();
        let (old, new) = (calendar.zone("Asia/Calcutta").unwrap(), calendar.zone("Asia/Kolkata").unwrap());
        assert!(old.shares_rules(new));
        assert!(!old.shares_rules(calendar.utc()));
    }

    #[test]
    fn damaged_bytes_are_refused_with_the_place() {
        let damaged = |change: fn(&mut Vec<u8>)| {
            let mut bytes = BUNDLED.to_vec();
            change(&mut bytes);
            Calendar::from_bytes(bytes.into()).unwrap_err().to_string()
        };
        let remedy = "; pack the file as operators/data/README.md says";
        for (change, message) in [
            ((|bytes| bytes.truncate(20)) as fn(&mut Vec<u8>), "tz data, header: expected at least 24 bytes"),
            (|bytes| bytes[0] = b'x', "tz data, header: expected `tzdata` and a version like `2026f`"),
            (|bytes| bytes[15] = 25, "tz data, header: expected the index right behind it, in entries of 52 bytes"),
            (|bytes| bytes.truncate(bytes.len() - 1), "tz data, header: expected an end that is the file's length"),
            (|bytes| bytes[24] = 0, "tz data, entry 0: expected a name in ASCII"),
            (|bytes| bytes[24] = b'z', "tz data, entry 1, `Africa/Accra`: expected names in ascending order"),
            (|bytes| bytes[64] = 255, "tz data, entry 0, `Africa/Abidjan`: expected a place inside the file"),
        ] {
            assert_eq!(damaged(change), format!("{message}{remedy}"));
        }
        let message = damaged(|bytes| {
            let (from, to) = (number(bytes, 12), number(bytes, 16));
            let names = &mut bytes[from..to];
            let utc = names.chunks_exact_mut(ENTRY_BYTES).find(|entry| entry.starts_with(b"UTC\0")).unwrap();
            utc[3] = b'X';
        });
        assert_eq!(message, format!("tz data, index: expected a zone named `UTC`{remedy}"));
        let message = damaged(|bytes| {
            let data_at = number(bytes, 16);
            bytes[data_at] = b'x';
        });
        let expected = "tz data, zone `Africa/Abidjan`: expected a TZif file, found one that does not parse: ";
        assert!(message.starts_with(expected), "{message}");
    }
}
