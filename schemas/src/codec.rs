//! The frame around everything binary that outlives a process: a version byte, the body, a crc32c.
//!
//! Cuts, marks, checkpoint objects and lifecycle blocks all use it, so that a torn or foreign
//! object is named as such and never half understood.

/// Why bytes are not a frame of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Fewer bytes than a frame needs.
    #[error("a frame needs at least 5 bytes, found {0}")]
    Short(usize),
    /// Written by a version that this build does not know.
    #[error("frame version {found}, this build reads {expected}")]
    Version {
        /// What the frame says.
        found: u8,
        /// What this build reads.
        expected: u8,
    },
    /// The checksum does not match: torn or damaged.
    #[error("checksum {found:08x}, expected {expected:08x}: the bytes are torn or damaged")]
    Checksum {
        /// What the bytes give.
        found: u32,
        /// What the frame says.
        expected: u32,
    },
}

/// Wraps `body` in a frame of `version`.
#[must_use]
pub fn frame(version: u8, body: &[u8]) -> Vec<u8> {
    frame_with(version, body.len(), |out| out.extend_from_slice(body))
}

/// A frame of `version` around what `body` appends, about `body_bytes` bytes: a large body is written
/// once, in its place.
#[must_use]
pub fn frame_with(version: u8, body_bytes: usize, body: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::with_capacity(body_bytes + 5);
    out.push(version);
    body(&mut out);
    let checksum = crc32c::crc32c(&out);
    out.extend_from_slice(&checksum.to_le_bytes());
    out
}

/// The body of a frame of `version`.
///
/// # Errors
/// When the bytes are short, damaged or of another version.
pub fn unframe(version: u8, bytes: &[u8]) -> Result<&[u8], FrameError> {
    let Some((head, tail)) = bytes.split_last_chunk::<4>().filter(|(head, _)| !head.is_empty()) else {
        return Err(FrameError::Short(bytes.len()));
    };
    let (found, expected) = (crc32c::crc32c(head), u32::from_le_bytes(*tail));
    if found != expected {
        return Err(FrameError::Checksum { found, expected });
    }
    if head[0] != version {
        return Err(FrameError::Version { found: head[0], expected: version });
    }
    Ok(&head[1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_golden_bytes() {
        assert_eq!(frame(1, b"tidings"), b"\x01tidings\xa3\x51\x43\x73".to_vec());
    }

    #[test]
    fn damage_and_versions_are_told_apart() {
        let bytes = frame(1, b"tidings");
        assert_eq!(unframe(1, &bytes), Ok(&b"tidings"[..]));
        assert_eq!(unframe(2, &bytes), Err(FrameError::Version { found: 1, expected: 2 }));
        assert_eq!(unframe(1, &bytes[..4]), Err(FrameError::Short(4)));
        let mut torn = bytes.clone();
        torn[3] ^= 1;
        assert!(matches!(unframe(1, &torn), Err(FrameError::Checksum { .. })));
    }
}
