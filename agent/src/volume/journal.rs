//! Which files may change without a further call (open through stdio, mapped), from the moment a session hears of it until
//! a cut has put it into the index. Written before the client's ring forgets it, so that the next agent knows it
//! whatever becomes of this one: a store to a page that is dirty already moves no time by which it could be found.
//! It must not know what is done about such files.
//!
//! ```text
//! 0   kernel inode number, u64
//! 8   flags (`OpenFlags`), u32
//! 12  check: the complement of the sum of the three words before, u32
//! ```
//! Records are little-endian, one after another; a torn one at the end is none. The page cache outlives the agent, and with
//! it the machine's stop ends every mapping, so nothing is synced.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use storeshim_protocol::OpenFlags;

use crate::session;

const RECORD: usize = 16;
/// Bytes from which the file is written anew instead of longer.
const LONG: u64 = 1 << 20;

/// See the module.
pub struct Journal {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    file: Option<File>,
    len: u64,
    entries: HashMap<u64, OpenFlags>,
}

impl Journal {
    /// The journal in the state directory `state`, with what a former agent has left in it.
    #[must_use]
    pub fn open(state: &Path) -> Self {
        let path = state.join("suspects");
        let contents = std::fs::read(&path).unwrap_or_default();
        let mut entries = HashMap::new();
        for (ino, flags) in contents.as_chunks::<RECORD>().0.iter().filter_map(decode) {
            add(&mut entries, ino, flags);
        }
        let state = State { file: None, len: contents.len() as u64, entries };
        Self { path, state: Mutex::new(state) }
    }

    /// What stands in it.
    #[must_use]
    pub fn entries(&self) -> HashMap<u64, OpenFlags> {
        self.state().entries.clone()
    }

    /// These are in the index now. What was heard meanwhile and says more of one of them stays.
    pub fn taken(&self, suspects: &HashMap<u64, OpenFlags>) {
        let mut state = self.state();
        state.entries.retain(|ino, flags| suspects.get(ino).is_none_or(|known| flags.0 & !known.0 != 0));
        if state.len > 0 && (state.entries.is_empty() || state.len > LONG) {
            let done = self.rewrite(&mut state);
            self.said(done);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, state: &mut State, ino: u64, flags: OpenFlags) -> io::Result<()> {
        let file = match &mut state.file {
            Some(file) => file,
            none => none.insert(File::options().append(true).create(true).open(&self.path)?),
        };
        file.write_all(&encode(ino, flags))?;
        state.len += RECORD as u64;
        Ok(())
    }

    fn rewrite(&self, state: &mut State) -> io::Result<()> {
        let bytes: Vec<u8> = state.entries.iter().flat_map(|(ino, flags)| encode(*ino, *flags)).collect();
        if bytes.is_empty() {
            File::options().write(true).create(true).truncate(false).open(&self.path)?.set_len(0)?;
        } else {
            // At no moment is there less than what is to be remembered.
            let fresh = self.path.with_extension("new");
            std::fs::write(&fresh, &bytes)?;
            std::fs::rename(&fresh, &self.path)?;
            state.file = None;
        }
        state.len = bytes.len() as u64;
        Ok(())
    }

    fn said(&self, done: io::Result<()>) {
        if let Err(error) = done {
            tracing::warn!(
                %error, path = %self.path.display(),
                "what may change unseen cannot be written down: make room there; if this agent is killed now, what is stored \
                 through mappings may wait for an audit"
            );
        }
    }
}

impl session::Journal for Journal {
    fn unseen(&self, ino: u64, flags: OpenFlags) {
        let mut state = self.state();
        if add(&mut state.entries, ino, flags) {
            let done = self.append(&mut state, ino, flags);
            self.said(done);
        }
    }
}

/// Adds flags to an entry; whether that changes it.
fn add(entries: &mut HashMap<u64, OpenFlags>, ino: u64, flags: OpenFlags) -> bool {
    // That each write is an append is a precision, and left out.
    let flags = OpenFlags(flags.0 & (OpenFlags::UNSEEN.0 | OpenFlags::MAPPED.0));
    let known = entries.entry(ino).or_default();
    let before = known.0;
    known.0 |= flags.0;
    known.0 != before
}

fn check(ino: u64, flags: OpenFlags) -> u32 {
    let sum = (ino as u32).wrapping_add((ino >> 32) as u32).wrapping_add(u32::from(flags.0));
    !sum
}

fn encode(ino: u64, flags: OpenFlags) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    let words = [&ino.to_le_bytes()[..], &u32::from(flags.0).to_le_bytes(), &check(ino, flags).to_le_bytes()]
        .concat();
    record.copy_from_slice(&words);
    record
}

fn decode(record: &[u8; RECORD]) -> Option<(u64, OpenFlags)> {
    let (ino, rest) = record.split_first_chunk()?;
    let (flags, rest) = rest.split_first_chunk()?;
    let ino = u64::from_le_bytes(*ino);
    let flags = OpenFlags(u32::from_le_bytes(*flags).try_into().ok()?);
    let sum = u32::from_le_bytes(rest.try_into().ok()?);
    (sum == check(ino, flags)).then_some((ino, flags))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Journal as _;

    #[test]
    fn what_was_heard_outlives_the_agent_until_it_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path());
        journal.unseen(7, OpenFlags::MAPPED);
        journal.unseen(u64::MAX, OpenFlags::UNSEEN.with(OpenFlags::APPEND));
        journal.unseen(7, OpenFlags::UNSEEN);
        let both = OpenFlags::MAPPED.with(OpenFlags::UNSEEN);
        let all = HashMap::from([(7, both), (u64::MAX, OpenFlags::UNSEEN)]);
        assert_eq!(Journal::open(dir.path()).entries(), all);
        journal.taken(&HashMap::from([(u64::MAX, OpenFlags::UNSEEN), (7, OpenFlags::UNSEEN)]));
        assert_eq!(journal.entries(), HashMap::from([(7, both)]), "the index does not know of the mapping");
        journal.taken(&HashMap::from([(7, both)]));
        assert!(Journal::open(dir.path()).entries().is_empty());
        journal.unseen(7, OpenFlags::MAPPED);
        assert_eq!(Journal::open(dir.path()).entries(), HashMap::from([(7, OpenFlags::MAPPED)]));
    }

    #[test]
    fn the_same_again_is_not_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path());
        (0..1000).for_each(|_| journal.unseen(7, OpenFlags::MAPPED));
        assert_eq!(std::fs::metadata(dir.path().join("suspects")).unwrap().len(), RECORD as u64);
    }

    #[test]
    fn a_long_one_is_written_anew_and_keeps_what_stands() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path());
        let many = LONG / RECORD as u64 + 1;
        (1..=many).for_each(|ino| journal.unseen(ino, OpenFlags::MAPPED));
        journal.taken(&(2..=many).map(|ino| (ino, OpenFlags::MAPPED)).collect());
        assert_eq!(Journal::open(dir.path()).entries().len(), 1);
        journal.unseen(2, OpenFlags::MAPPED);
        assert_eq!(Journal::open(dir.path()).entries().len(), 2);
    }

    #[test]
    fn damage_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = encode(7, OpenFlags::MAPPED).to_vec();
        bytes.extend(encode(8, OpenFlags::MAPPED));
        bytes[RECORD + 3] ^= 1;
        bytes.extend([0; RECORD]);
        bytes.extend(&encode(9, OpenFlags::MAPPED)[..5]);
        std::fs::write(dir.path().join("suspects"), bytes).unwrap();
        assert_eq!(Journal::open(dir.path()).entries(), HashMap::from([(7, OpenFlags::MAPPED)]));
    }
}
