//! Long work on a part of a volume that somebody asked for: what is asked, how far it is, what came of it. It must not
//! know how the work is done, nor who asked.

use serde::{Deserialize, Serialize};

use super::Progress;

/// How much is brought to this disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Warmup {
    /// Levels of directories below the path; 0: only what lies directly in it. `None`: all.
    pub depth: Option<u32>,
    /// Files at the same time, at least 1.
    pub parallel: usize,
}

/// What a warmup brought about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warmed {
    /// Files that were brought here, or were here.
    pub files: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Those of them of which something is gone again: there is not so much room.
    #[serde(default)]
    pub gone: u64,
    /// Files that could not be brought here.
    pub failed: u64,
    /// Why, of the first one: a sentence.
    pub why: Option<String>,
}

/// What an eviction brought about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evicted {
    /// Files of which something was dropped.
    pub files: u64,
    /// Bytes that were dropped.
    pub bytes: u64,
    /// What stayed, by reason.
    pub kept: Vec<Kept>,
}

/// What an eviction left alone for one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Why: "not in the backend yet", "pinned", "open without the shim" …
    pub why: String,
    /// Files.
    pub files: u64,
    /// Their bytes on this disk.
    pub bytes: u64,
}

/// Follows long work, and may call it off.
pub trait Watch: Send + Sync {
    /// How far it is; called often, must return at once.
    fn advanced(&self, progress: &Progress);
    /// Whether to stop at the next opportunity.
    fn called_off(&self) -> bool;
}

impl Warmed {
    /// Both together.
    pub fn add(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
        self.gone += other.gone;
        self.failed += other.failed;
        self.why = self.why.take().or(other.why);
    }
}

impl Evicted {
    /// Both together, reason by reason.
    pub fn add(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
        for kept in other.kept {
            match self.kept.iter_mut().find(|known| known.why == kept.why) {
                Some(known) => {
                    known.files += kept.files;
                    known.bytes += kept.bytes;
                }
                None => self.kept.push(kept),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_made_reason_by_reason() {
        let kept = |why: &str, files| Kept { why: why.into(), files, bytes: 10 * files };
        let mut sum = Evicted { files: 1, bytes: 5, kept: vec![kept("pinned", 1)] };
        sum.add(Evicted { files: 2, bytes: 7, kept: vec![kept("dirty", 3), kept("pinned", 2)] });
        assert_eq!(sum, Evicted { files: 3, bytes: 12, kept: vec![kept("pinned", 3), kept("dirty", 3)] });
        let mut sum = Warmed { files: 1, bytes: 5, ..Warmed::default() };
        sum.add(Warmed { failed: 1, why: Some("gone".into()), ..Warmed::default() });
        sum.add(Warmed { failed: 1, why: Some("other".into()), ..Warmed::default() });
        assert_eq!(sum, Warmed { files: 1, bytes: 5, gone: 0, failed: 2, why: Some("gone".into()) });
    }
}
