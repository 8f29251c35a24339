//! Cuts that are not durable yet: what they changed is remembered as it was before, so that an agent that starts after
//! a crash can take back what the backend never got. It must not know how a commit travels.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{
    BASE, Base, Changes, Doubt, For, Index, Result, Seen, damaged, encode, number_in, seen_key, size_of,
    size_of_change, tagged,
};
use crate::meta::Head;
use crate::meta::records::key;

#[derive(Serialize, Deserialize)]
struct Undo {
    nonce: u128,
    before: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

/// How the index stands to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It describes the backend's head (cuts that had not become durable were rolled back).
    Current,
    /// Somebody else has committed since, or the backend is another volume's.
    Diverged,
}

fn undo_key(seq: u64) -> Vec<u8> {
    tagged(b'u', &[seq])
}

impl Index {
    /// Takes over what cut `seq` saw, remembering what was before until [`Index::confirm`].
    pub fn apply(&self, seq: u64, nonce: u128, changes: &Changes) -> Result<()> {
        // Nobody else changes records of the volume meanwhile; of what is not here yet the true value is fetched.
        let mut undo = Undo { nonce, before: self.before(changes)? };
        let before =
            undo.before.iter().map(|(key, value)| size_of_change(key, value.as_deref())).sum::<u64>();
        self.provide(before + size_of(changes), For::Room)?;
        let _writing = self.lazy.writing();
        let (_numbers, changes) = self.numbers.still(changes)?;
        undo.before.retain(|(key, _)| changes.contains_key(key));
        let _counted = self.resident.change(&self.records, &changes)?;
        let mut batch = self.db.batch();
        for (key, value) in changes.iter() {
            self.stage(&mut batch, key.clone(), value.clone());
        }
        batch.insert(&self.records, undo_key(seq), encode(&undo)?);
        Ok(batch.commit()?)
    }

    /// Commit `seq` is durable in the backend.
    pub fn confirm(&self, seq: u64, nonce: u128) -> Result<()> {
        let _writing = self.lazy.writing();
        let Some(mut base) = self.base()? else { return Err(damaged("it has no base")) };
        self.provide(0, For::Room)?;
        (base.seq, base.nonce) = (seq, nonce);
        let mut batch = self.db.batch();
        batch.insert(&self.records, BASE, encode(&base)?);
        batch.remove(&self.records, undo_key(seq));
        Ok(batch.commit()?)
    }

    /// Whether `key` is that of a kernel number which an inode has rightly once `undone` is taken back: it got it after that cut.
    fn has_its_number(&self, key: &[u8], undone: &Changes) -> Result<bool> {
        let Some(kernel) = number_in(b'k', key).map(|ino| self.kernel(ino)).transpose()?.flatten() else {
            return Ok(false);
        };
        let seen: Option<Seen> = match undone.get(&seen_key(kernel.inode)) {
            Some(value) => {
                value.as_ref().map(|value| postcard::from_bytes(value).map_err(damaged)).transpose()?
            }
            None => self.seen(kernel.inode)?,
        };
        Ok(seen.is_some_and(|seen| seen.id == kernel.id))
    }

    /// At start: compares with where the backend stands, confirms the cuts that became durable and rolls back those
    /// that did not (the last agent died before it knew, or before it could).
    pub fn reconcile(&self, volume_id: u128, head: Option<Head>) -> Result<Standing> {
        let Some(base) = self.base()? else { return Ok(Standing::Diverged) };
        if base.volume_id != volume_id {
            return Ok(Standing::Diverged);
        }
        let (seq, nonce) = head.map_or((0, 0), |h| (h.seq, h.nonce));
        let mut cuts: Vec<(u64, Undo)> = Vec::new();
        self.scan(b"u", |key, value| {
            if let Some(seq) = number_in(b'u', key) {
                cuts.push((seq, postcard::from_bytes(value).map_err(damaged)?));
            }
            Ok(())
        })?;
        let ours = (base.seq, base.nonce) == (seq, nonce)
            || cuts.iter().any(|(s, undo)| *s == seq && undo.nonce == nonce);
        if !ours {
            return Ok(Standing::Diverged);
        }
        let mut stale = BTreeSet::new();
        for (cut, undo) in cuts.into_iter().rev() {
            let _writing = self.lazy.writing();
            let mut batch = self.db.batch();
            if cut > seq {
                stale.extend(undo.before.iter().filter_map(|(key, _)| match key::parse(key) {
                    Ok(key::Key::Inode(inode) | key::Key::Block(inode, _)) => Some(inode),
                    _ => None,
                }));
                let undone = Changes::from_iter(undo.before);
                for (key, value) in &undone {
                    if !self.has_its_number(key, &undone)? {
                        self.stage(&mut batch, key.clone(), value.clone());
                    }
                }
            }
            batch.remove(&self.records, undo_key(cut));
            batch.commit()?;
        }
        // A look that found nothing new since may have been noted without an undo: what it saw describes data that is
        // not in the volume any more.
        for inode in stale {
            if let Some(seen) = self.seen(inode)? {
                self.records.insert(seen_key(inode), encode(&Seen { doubt: Doubt::Racy, ..seen })?)?;
            }
        }
        self.set_base(&Base { seq, nonce, ..base })?;
        Ok(Standing::Current)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::base;
    use super::*;

    fn head(seq: u64, nonce: u128) -> Option<Head> {
        Some(Head { seq, nonce, cut_at_ns: 0 })
    }

    fn set(key: &[u8], value: Option<&[u8]>) -> Changes {
        Changes::from([(key.to_vec(), value.map(<[u8]>::to_vec))])
    }

    #[test]
    fn cuts_that_did_not_become_durable_are_rolled_back() {
        let dir = tempfile::tempdir().unwrap();
        {
            let index = Index::open(dir.path()).unwrap();
            index.set_base(&base()).unwrap();
            index.apply(1, 11, &set(b"i1", Some(b"one"))).unwrap();
            index.apply(2, 12, &set(b"i1", Some(b"two"))).unwrap();
            index.apply(3, 13, &set(b"i1", None)).unwrap();
        }
        let index = Index::open(dir.path()).unwrap();
        assert_eq!(index.raw(b"i1").unwrap(), None);
        assert_eq!(index.reconcile(7, head(2, 12)).unwrap(), Standing::Current);
        assert_eq!(index.raw(b"i1").unwrap().as_deref(), Some(&b"two"[..]));
        assert_eq!(index.base().unwrap().unwrap().seq, 2);
        assert_eq!(index.reconcile(7, head(2, 12)).unwrap(), Standing::Current);
    }

    #[test]
    fn a_foreign_commit_is_a_divergence() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(dir.path()).unwrap();
        assert_eq!(index.reconcile(7, None).unwrap(), Standing::Diverged);
        index.set_base(&base()).unwrap();
        index.apply(1, 11, &set(b"i1", Some(b"one"))).unwrap();
        assert_eq!(index.reconcile(7, head(1, 99)).unwrap(), Standing::Diverged);
        assert_eq!(index.reconcile(8, head(1, 11)).unwrap(), Standing::Diverged);
        assert_eq!(index.reconcile(7, head(1, 11)).unwrap(), Standing::Current);
    }
}
