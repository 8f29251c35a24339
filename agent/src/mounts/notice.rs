//! Names programs under the shim that make system calls past libc, soon after they start: a thread looks at what is new
//! in /proc, and has files that it has not met yet looked through. It must not know sessions or volumes, and is given
//! the eye that looks through a file.
//!
//! /proc and not the list of sessions: a program that goes past libc from its first call on never attaches.

mod process;

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use self::process::{FileId, Process, Served, plain};
use crate::doctor::aside::PastLibc;
use crate::doctor::raw::is_name_of_libc;

/// Between two looks at the list of processes.
const PAUSE: Duration = Duration::from_millis(250);
/// A look at the list is followed by a rest this many times as long as it took.
const REST: u32 = 50;
/// When a process is looked at after it was seen first: its loader has not mapped everything then, and what is loaded
/// later (plugins) comes later.
const LOOKS: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(500), Duration::from_secs(5), Duration::from_secs(60)];
/// After a file was looked through, rest as long as that took, but no longer than this.
const READ_REST_MAX: Duration = Duration::from_secs(5);
/// Files that are remembered. Beyond, all are forgotten and looked through again.
const KNOWN_MAX: usize = 8192;
/// Files of one process that are open at a time; what is left is for the next look.
const OPEN_MAX: usize = 100;
/// Programs that are named. Further ones are only counted.
const NAMED_MAX: usize = 256;

/// Looks through a program or a library; an error is a sentence.
pub(super) type Eye = Box<dyn Fn(File) -> Result<PastLibc, String> + Send>;

/// What was noticed.
#[derive(Debug, Default)]
pub(super) struct Notice {
    named: Mutex<Named>,
}

#[derive(Debug, Default)]
struct Named {
    /// A program and the file in it that makes the calls, as they were told, in the order of their discovery.
    programs: Vec<((FileId, FileId), String)>,
    full: bool,
}

impl Notice {
    /// "pid name: calls (in file)" of each program so far, each once.
    pub(super) fn list(&self) -> Vec<String> {
        self.named().programs.iter().map(|(_, words)| words.clone()).collect()
    }

    /// Begins to look, in a thread that ends some time after this was dropped.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn watch(self: &Arc<Self>, run_dir: &Path, eye: Eye) -> std::io::Result<()> {
        let notice = Arc::downgrade(self);
        let mut watch = Watch::new(Served::at(run_dir), eye);
        let thread = std::thread::Builder::new().name("notice".into());
        thread.spawn(move || watch.run(&notice)).map(drop)
    }

    fn name(&self, who: &Who, id: FileId, file: &Path, past: &PastLibc) {
        let both = (who.program, id);
        let mut named = self.named();
        if named.programs.iter().any(|(known, _)| *known == both) {
            return;
        }
        if named.programs.len() >= NAMED_MAX {
            if !std::mem::replace(&mut named.full, true) {
                tracing::warn!(
                    "more than {NAMED_MAX} programs make system calls past libc; no more are named"
                );
            }
            return;
        }
        let (Who { pid, comm, .. }, calls, file) = (who, past.words(), plain(&file.to_string_lossy()));
        named.programs.push((both, format!("{pid} {comm}: {calls} (in {file})")));
        drop(named);
        tracing::warn!(
            pid,
            program = comm,
            calls,
            file,
            "a program makes system calls past libc: what it changes so is found by audits only; start it with \
             `storeshim run --net=sud` (as a sidecar: STORESHIM_NET=sud)"
        );
    }

    fn named(&self) -> MutexGuard<'_, Named> {
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A process, as it was when it was looked at.
struct Who {
    pid: u32,
    comm: String,
    program: FileId,
}

/// A process that was met.
struct Met {
    program: FileId,
    at: Instant,
    looks: usize,
    /// Of the last look at the list in which it was there.
    round: u64,
}

/// The thread's memory.
struct Watch {
    served: Served,
    eye: Eye,
    met: HashMap<u32, Met>,
    known: HashMap<FileId, PastLibc>,
    round: u64,
}

impl Watch {
    fn new(served: Served, eye: Eye) -> Self {
        Self { served, eye, met: HashMap::new(), known: HashMap::new(), round: 0 }
    }

    fn run(&mut self, notice: &Weak<Notice>) {
        loop {
            let Some(notice) = notice.upgrade() else { return };
            let began = Instant::now();
            let due = self.due(Process::all());
            let worked = began.elapsed();
            for (process, program) in due {
                self.look(&notice, &process, program);
            }
            drop(notice);
            std::thread::sleep((worked * REST).max(PAUSE));
        }
    }

    /// Those of `all` that are to be looked at now. Forgets the others that are gone.
    fn due(&mut self, all: Vec<Process>) -> Vec<(Process, FileId)> {
        self.round += 1;
        let (round, now) = (self.round, Instant::now());
        let mut due = Vec::new();
        for process in all {
            let Some(program) = process.program() else { continue };
            let fresh = Met { program, at: now, looks: 0, round };
            let met = self.met.entry(process.pid).or_insert(fresh);
            met.round = round;
            // It has become another program: execve(2), or the number was given again.
            if met.program != program {
                *met = Met { program, at: now, looks: 0, round };
            }
            if LOOKS.get(met.looks).is_some_and(|after| met.at + *after <= now) {
                met.looks += 1;
                due.push((process, program));
            }
        }
        self.met.retain(|_, met| met.round == round);
        due
    }

    fn look(&mut self, notice: &Notice, process: &Process, program: FileId) {
        let Some(libraries) = process.libraries(&self.served) else { return };
        if process.has_net() {
            return;
        }
        let who = Who { pid: process.pid, comm: process.comm(), program };
        // All is opened before the first is read: it may have ended by then.
        let mut files = Vec::new();
        files.extend(process.open_program().map(|file| (process.path(), file)));
        for library in libraries {
            let name = library.path.file_name().unwrap_or_default().to_string_lossy();
            if is_name_of_libc(&name) {
                continue;
            }
            let Some(file) = process.open_library(&library) else { continue };
            if self.is_harmless(&file) {
                continue;
            }
            files.push((library.path, file));
            if files.len() >= OPEN_MAX {
                break;
            }
        }
        // What was opened may be of another program, which the process has become: that is met in the next round.
        if process.program().is_some_and(|now| now != program) {
            return;
        }
        for (path, file) in files {
            self.judge(notice, &who, &path, file);
        }
    }

    /// Whether a library is known, and nothing is to be told of it.
    fn is_harmless(&self, file: &File) -> bool {
        let meta = file.metadata();
        meta.is_ok_and(|meta| self.known.get(&FileId::of(&meta)).is_some_and(|past| !past.tells(false)))
    }

    fn judge(&mut self, notice: &Notice, who: &Who, path: &Path, file: File) {
        let Ok(meta) = file.metadata() else { return };
        let id = FileId::of(&meta);
        if !self.known.contains_key(&id) {
            if self.known.len() >= KNOWN_MAX {
                self.known.clear();
            }
            let began = Instant::now();
            let past = (self.eye)(file).unwrap_or_else(|error| {
                tracing::debug!(?path, error, "cannot tell whether this makes system calls past libc");
                PastLibc::default()
            });
            self.known.insert(id, past);
            std::thread::sleep(began.elapsed().min(READ_REST_MAX));
        }
        if let Some(past) = self.known.get(&id).filter(|past| past.tells(id == who.program)) {
            notice.name(who, id, path, past);
        }
    }
}

#[cfg(test)]
mod tests;
