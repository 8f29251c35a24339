use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

fn past(calls: &[&str]) -> PastLibc {
    PastLibc { calls: calls.iter().map(|call| (*call).to_owned()).collect(), ..PastLibc::default() }
}

fn own() -> (Process, FileId) {
    let process = Process::of(std::process::id());
    let program = process.program().unwrap();
    (process, program)
}

/// A watch whose eye answers `answer` and counts.
fn watch(answer: Result<PastLibc, String>) -> (Watch, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let asked = count.clone();
    let eye = move |_| {
        asked.fetch_add(1, Ordering::SeqCst);
        answer.clone()
    };
    (Watch::new(Served::at(Path::new("/nowhere")), Box::new(eye)), count)
}

fn who(pid: u32) -> Who {
    Who { pid, comm: "app".into(), program: own().1 }
}

fn judge(watch: &mut Watch, notice: &Notice, pid: u32) {
    let file = own().0.open_program().unwrap();
    watch.judge(notice, &who(pid), Path::new("/bin/x\u{7}"), file);
}

#[test]
fn a_program_is_read_once_and_named_once() {
    let notice = Notice::default();
    let (mut watch, read) = watch(Ok(past(&["openat", "renameat"])));
    for _ in 0..3 {
        judge(&mut watch, &notice, 17);
        judge(&mut watch, &notice, 18);
    }
    assert_eq!(read.load(Ordering::SeqCst), 1);
    assert_eq!(notice.list(), ["17 app: openat, renameat (in /bin/x?)"]);
}

#[test]
fn what_does_nothing_or_cannot_be_told_is_not_named_nor_read_again() {
    for answer in [Ok(PastLibc::default()), Err("it is larger than 1 MiB".to_owned())] {
        let notice = Notice::default();
        let (mut watch, read) = watch(answer);
        judge(&mut watch, &notice, 1);
        judge(&mut watch, &notice, 1);
        assert_eq!((read.load(Ordering::SeqCst), notice.list().len()), (1, 0));
    }
}

#[test]
fn names_and_memory_are_bounded() {
    let notice = Notice::default();
    let (mut watch, _) = watch(Ok(past(&["openat"])));
    for file in 0..NAMED_MAX + 5 {
        notice.name(&who(1), FileId::made_up(file), Path::new("/x"), &past(&["openat"]));
    }
    assert_eq!(notice.list().len(), NAMED_MAX);
    watch.known = (0..KNOWN_MAX).map(|file| (FileId::made_up(file), PastLibc::default())).collect();
    judge(&mut watch, &notice, 1);
    assert_eq!(watch.known.len(), 1);
}

#[test]
fn of_libraries_only_what_is_certain_is_told() {
    let notice = Notice::default();
    let (mut watch, _) = watch(Ok(PastLibc { unknown: 2, ..PastLibc::default() }));
    let library = tempfile::NamedTempFile::new().unwrap();
    assert!(!watch.is_harmless(library.as_file()), "it was not read yet");
    watch.judge(&notice, &who(1), library.path(), library.reopen().unwrap());
    assert!(notice.list().is_empty() && watch.is_harmless(library.as_file()));
    judge(&mut watch, &notice, 1);
    assert_eq!(notice.list(), ["1 app: 2 whose number cannot be told (in /bin/x?)"]);
}

#[test]
fn a_process_is_due_a_few_times_and_again_after_exec() {
    let (mut watch, _) = watch(Ok(PastLibc::default()));
    let pid = std::process::id();
    let mut due = || {
        let due = watch.due(vec![Process::of(pid), Process::of(u32::MAX)]).len();
        (due, watch.met.len())
    };
    assert_eq!((due(), due()), ((1, 1), (0, 1)));
    watch.met.get_mut(&pid).unwrap().at -= LOOKS[1];
    assert_eq!(watch.due(vec![Process::of(pid)]).len(), 1);
    // One that has had all its looks.
    watch.met.get_mut(&pid).unwrap().looks = LOOKS.len();
    assert_eq!(watch.due(vec![Process::of(pid)]).len(), 0);
    watch.met.get_mut(&pid).unwrap().program = FileId::of(&std::fs::metadata("/").unwrap());
    assert_eq!(watch.due(vec![Process::of(pid)]).len(), 1, "another program");
    assert!(watch.due(Vec::new()).is_empty() && watch.met.is_empty(), "it has ended");
}

#[test]
fn a_process_without_the_shim_is_not_read() {
    let notice = Notice::default();
    let (mut watch, read) = watch(Ok(past(&["openat"])));
    let (process, program) = own();
    watch.look(&notice, &process, program);
    assert_eq!((read.load(Ordering::SeqCst), notice.list().len()), (0, 0));
}
