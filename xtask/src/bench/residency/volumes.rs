//! The volumes that are measured: each is made once through an agent on a directory, kept below the target folder, and
//! then served by the S3 server as if it had always been there.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::bench::rig::{Agent, PREFIX, Rig, S3, run};
use crate::bench::small;
use crate::workspace;

/// The name of every volume in the S3 server's bucket.
const NAME: &str = "bench";

/// See the module.
pub struct Volumes<'a> {
    rig: &'a Rig,
    dir: PathBuf,
    quick: bool,
    /// Those that are not to be made anew any more, where that was asked for.
    fresh: RefCell<Option<BTreeSet<String>>>,
}

impl<'a> Volumes<'a> {
    pub fn new(rig: &'a Rig, quick: bool, fresh: bool) -> Result<Self> {
        let dir = workspace::target()?.join("bench-volumes");
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        Ok(Self { rig, dir, quick, fresh: RefCell::new(fresh.then(BTreeSet::new)) })
    }

    /// Files in [`Volumes::files`].
    pub fn file_count(&self) -> u64 {
        if self.quick { 100_000 } else { 1_000_000 }
    }

    /// Bytes in [`Volumes::big`].
    pub fn big_bytes(&self) -> u64 {
        if self.quick { 256 << 20 } else { 1 << 30 }
    }

    /// Files in [`Volumes::small`].
    pub fn small_count(&self) -> u64 {
        10_000
    }

    /// Very many files of some bytes, a thousand to a directory: `NUMBER / 1000`/file-`NUMBER`.
    pub fn files(&self, distance: u64) -> Result<S3> {
        let count = self.file_count();
        self.serve(&format!("files-{count}"), distance, |agent| {
            let mut load = self.rig.program("load");
            load.args(["files", PREFIX, &count.to_string()]);
            run(&mut agent.shows(load)).map(drop)
        })
    }

    /// One file, `big`, that does not compress.
    pub fn big(&self, distance: u64) -> Result<S3> {
        let bytes = self.big_bytes();
        self.serve(&format!("big-{}", bytes >> 20), distance, |agent| {
            let mut file = File::create(agent.tree().join("big"))?;
            std::io::copy(&mut File::open("/dev/urandom")?.take(bytes), &mut file)?;
            Ok(())
        })
    }

    /// Ten thousand small files in a hundred directories, as in a source tree.
    pub fn small(&self, distance: u64) -> Result<S3> {
        let count = self.small_count();
        self.serve(&format!("small-{count}"), distance, |agent| small::files(&agent.tree(), count, 0))
    }

    /// The URL of the one volume that a server has.
    pub fn url(&self, s3: &S3) -> String {
        s3.url(NAME)
    }

    /// The prefix of its packs in the bucket.
    pub fn packs() -> String {
        format!("{NAME}/packs")
    }

    fn serve(&self, name: &str, distance: u64, fill: impl FnOnce(&Agent<'_>) -> Result<()>) -> Result<S3> {
        let (store, made) = (self.dir.join(name), self.dir.join(format!("{name}.made")));
        let anew = self.fresh.borrow_mut().as_mut().is_some_and(|done| done.insert(name.to_owned()));
        if anew || !made.exists() {
            self.make(name, &store, &made, fill)?;
        }
        self.rig.s3_serving(NAME, &store, distance)
    }

    fn make(
        &self,
        name: &str,
        store: &Path,
        made: &Path,
        fill: impl FnOnce(&Agent<'_>) -> Result<()>,
    ) -> Result<()> {
        eprintln!("  making the volume {name}");
        for old in [made, store] {
            let gone = if old.is_dir() { fs::remove_dir_all(old) } else { fs::remove_file(old) };
            gone.or_else(
                |error| if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) },
            )?;
        }
        fs::create_dir_all(store)?;
        let mut agent = self.rig.agent(&format!("file://{}", store.display()), "")?;
        fill(&agent)?;
        agent.flush()?;
        agent.stop()?;
        File::create(made)?;
        Ok(())
    }
}
