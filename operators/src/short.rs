//! Byte strings of which nearly all are short: up to `N` bytes lie in place, and are copied as one piece of
//! memory. A longer one costs an allocation.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A byte string. Compares by bytes.
#[derive(Clone)]
pub struct Short<const N: usize>(Repr<N>);

#[derive(Clone)]
enum Repr<const N: usize> {
    Inline { length: u8, bytes: [u8; N] },
    Long(Box<[u8]>),
}

impl<const N: usize> Short<N> {
    /// A copy of these.
    #[must_use]
    #[inline]
    pub fn from_slice(bytes: &[u8]) -> Self {
        let mut short = Self::default();
        short.push(bytes);
        short
    }

    /// Adds bytes at the end.
    #[inline]
    pub fn push(&mut self, more: &[u8]) {
        const { assert!(N <= u8::MAX as usize, "the length is one byte") };
        if let Repr::Inline { length, bytes } = &mut self.0 {
            let start = usize::from(*length);
            if let Some(place) = bytes.get_mut(start..start + more.len()) {
                place.copy_from_slice(more);
                *length += more.len() as u8;
                return;
            }
        }
        self.lengthen(more);
    }

    #[cold]
    fn lengthen(&mut self, more: &[u8]) {
        self.0 = Repr::Long([&**self, more].concat().into());
    }
}

impl<const N: usize> Default for Short<N> {
    fn default() -> Self {
        Self(Repr::Inline { length: 0, bytes: [0; N] })
    }
}

impl<const N: usize> From<&[u8]> for Short<N> {
    fn from(bytes: &[u8]) -> Self {
        Self::from_slice(bytes)
    }
}

impl<const N: usize> Deref for Short<N> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Repr::Inline { length, bytes } => &bytes[..usize::from(*length)],
            Repr::Long(bytes) => bytes,
        }
    }
}

impl<const N: usize> PartialEq for Short<N> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<const N: usize> Eq for Short<N> {}

impl<const N: usize> PartialOrd for Short<N> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<const N: usize> Ord for Short<N> {
    fn cmp(&self, other: &Self) -> Ordering {
        (**self).cmp(&**other)
    }
}

impl<const N: usize> Hash for Short<N> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl<const N: usize> fmt::Debug for Short<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<const N: usize> Serialize for Short<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Short<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes<const N: usize>;
        impl<'de, const N: usize> de::Visitor<'de> for Bytes<N> {
            type Value = Short<N>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Short<N>, E> {
                Ok(Short::from_slice(bytes))
            }

            /// In formats for people bytes are a list of numbers.
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut bytes: A) -> Result<Short<N>, A::Error> {
                let mut short = Short::default();
                while let Some(byte) = bytes.next_element()? {
                    short.push(&[byte]);
                }
                Ok(short)
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_reads_the_same() {
        let mut short = Short::<4>::default();
        for (more, expected) in
            [("", ""), ("ab", "ab"), ("cd", "abcd"), ("", "abcd"), ("e", "abcde"), ("fg", "abcdefg")]
        {
            short.push(more.as_bytes());
            assert_eq!(&*short, expected.as_bytes());
            assert_eq!(postcard::from_bytes::<Short<4>>(&postcard::to_stdvec(&short).unwrap()).unwrap(), short);
            assert_eq!(serde_json::from_str::<Short<4>>(&serde_json::to_string(&short).unwrap()).unwrap(), short);
            assert_eq!(postcard::to_stdvec(&short).unwrap(), postcard::to_stdvec(expected.as_bytes()).unwrap());
        }
        assert!(Short::<4>::from_slice(b"abcde") < Short::from_slice(b"b"));
    }
}
