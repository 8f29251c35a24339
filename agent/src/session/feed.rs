//! Brings what the rings say to the mounts' sinks. It must not know rings or clients.
//!
//! A volume may call for a freeze while it holds its sink locked, and several volumes may do so at once; were the
//! sinks waited for here, with the session table locked, each could hold what another one waits for. So a sink
//! that is busy is never waited for: its events are kept and told before the next ones.

use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use storeshim_protocol::{Intent, MAX_MOUNTS, OpenFlags};

use super::{IntentSink, Journal};

/// A mount's registered sink.
pub(super) type Sink = Arc<Mutex<dyn IntentSink + Send>>;

/// Where a mount's events go.
pub(super) struct Outbox {
    pub(super) sink: Sink,
    /// Told first, and never busy.
    pub(super) journal: Arc<dyn Journal>,
}

/// Events kept for a busy sink before they are replaced by "look everywhere".
const KEPT_MAX: usize = 16 * 1024;

/// Something to tell a sink later.
enum Event {
    Plain(Intent<'static>),
    Name { dir: u64, name: Box<[u8]> },
    LookEverywhere(String),
    Straggler { subject: u64, who: String },
}

impl Event {
    fn of(intent: Intent<'_>) -> Self {
        match intent {
            Intent::Opened { ino, flags } => Self::Plain(Intent::Opened { ino, flags }),
            Intent::Written { ino, offset, length } => Self::Plain(Intent::Written { ino, offset, length }),
            Intent::Attributes { ino } => Self::Plain(Intent::Attributes { ino }),
            Intent::Closed { ino } => Self::Plain(Intent::Closed { ino }),
            Intent::Name { dir, name } => Self::Name { dir, name: name.into() },
        }
    }

    fn remember(&self, journal: &dyn Journal) {
        if let Self::Plain(intent) = self {
            remember(intent, journal);
        }
    }

    fn tell(&self, sink: &mut dyn IntentSink) {
        match self {
            Self::Plain(intent) => sink.intent(*intent),
            Self::Name { dir, name } => sink.intent(Intent::Name { dir: *dir, name }),
            Self::LookEverywhere(why) => sink.look_everywhere(why),
            Self::Straggler { subject, who } => sink.straggler(*subject, who),
        }
    }
}

/// Has it written down if the file that an intent names may change without a further one.
fn remember(intent: &Intent<'_>, journal: &dyn Journal) {
    if let Intent::Opened { ino, flags } = intent
        && (flags.has(OpenFlags::UNSEEN) || flags.has(OpenFlags::MAPPED))
    {
        journal.unseen(*ino, *flags);
    }
}

/// Events of one mount that its sink has not been told yet.
#[derive(Default)]
struct Kept(Vec<Event>);

impl Kept {
    fn push(&mut self, event: Event) {
        if self.0.len() >= KEPT_MAX {
            self.0.clear();
            self.0.push(Event::LookEverywhere("too much was told while the volume was busy".into()));
        }
        self.0.push(event);
    }

    fn tell(&mut self, sink: &mut dyn IntentSink) {
        for event in self.0.drain(..) {
            event.tell(sink);
        }
    }
}

/// All mounts' sinks.
#[derive(Default)]
pub(super) struct Outboxes {
    boxes: [Option<Outbox>; MAX_MOUNTS],
    kept: [Kept; MAX_MOUNTS],
}

impl Outboxes {
    /// Registers where `mount`'s events go, in the place of any former one. `false` where there is no such index.
    pub(super) fn register(&mut self, mount: usize, outbox: Outbox) -> bool {
        if let Some(kept) = self.kept.get(mount) {
            kept.0.iter().for_each(|event| event.remember(&*outbox.journal));
        }
        self.boxes.get_mut(mount).map(|place| *place = Some(outbox)).is_some()
    }

    /// Whether nothing is kept for the sink of a mount.
    pub(super) fn told_all(&self, mount: usize) -> bool {
        self.kept.get(mount).is_none_or(|kept| kept.0.is_empty())
    }

    /// Locks every sink that is free and tells it what was kept. `passed` stands for its mount's own sink.
    pub(super) fn open<'a>(&'a mut self, mut passed: Option<(usize, &'a mut dyn IntentSink)>) -> Feed<'a> {
        let mut targets: [Target<'a>; MAX_MOUNTS] = std::array::from_fn(|_| Target::Keep);
        let places = targets.iter_mut().zip(&self.boxes).zip(&mut self.kept);
        for (mount, ((target, outbox), kept)) in places.enumerate() {
            let sink = outbox.as_ref().map(|outbox| &outbox.sink);
            *target = match (passed.take(), sink) {
                (Some((which, sink)), _) if which == mount => Target::Passed(sink),
                (other, sink) => {
                    passed = other;
                    match sink.map(|sink| sink.try_lock()) {
                        Some(Ok(guard)) => Target::Locked(guard),
                        Some(Err(TryLockError::Poisoned(guard))) => Target::Locked(guard.into_inner()),
                        Some(Err(TryLockError::WouldBlock)) | None => Target::Keep,
                    }
                }
            };
            if let Some(sink) = target.sink() {
                kept.tell(sink);
            }
        }
        Feed { targets, boxes: &self.boxes, kept: &mut self.kept }
    }
}

/// Where a mount's events go now.
enum Target<'a> {
    Passed(&'a mut dyn IntentSink),
    Locked(MutexGuard<'a, dyn IntentSink + Send + 'static>),
    Keep,
}

impl Target<'_> {
    fn sink(&mut self) -> Option<&mut dyn IntentSink> {
        match self {
            Self::Passed(sink) => Some(&mut **sink),
            Self::Locked(guard) => Some(&mut **guard),
            Self::Keep => None,
        }
    }
}

/// The sinks, locked for one round of telling.
pub(super) struct Feed<'a> {
    targets: [Target<'a>; MAX_MOUNTS],
    boxes: &'a [Option<Outbox>; MAX_MOUNTS],
    kept: &'a mut [Kept; MAX_MOUNTS],
}

impl Feed<'_> {
    fn tell(
        &mut self,
        mount: usize,
        direct: impl FnOnce(&mut dyn IntentSink),
        event: impl FnOnce() -> Event,
    ) {
        match self.targets.get_mut(mount).and_then(Target::sink) {
            Some(sink) => direct(sink),
            None => {
                if let Some(kept) = self.kept.get_mut(mount) {
                    kept.push(event());
                }
            }
        }
    }

    /// An intent of `mount`.
    pub(super) fn intent(&mut self, mount: usize, intent: Intent<'_>) {
        if let Some(Some(outbox)) = self.boxes.get(mount) {
            remember(&intent, &*outbox.journal);
        }
        self.tell(mount, |sink| sink.intent(intent), || Event::of(intent));
    }

    /// Something was lost: for every mount.
    pub(super) fn look_everywhere(&mut self, why: &str) {
        for mount in 0..MAX_MOUNTS {
            self.tell(mount, |sink| sink.look_everywhere(why), || Event::LookEverywhere(why.into()));
        }
    }

    /// A straggler in `mount`'s gate.
    pub(super) fn straggler(&mut self, mount: usize, subject: u64, who: &str) {
        self.tell(
            mount,
            |sink| sink.straggler(subject, who),
            || Event::Straggler { subject, who: who.into() },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::tests::{Recorder, Written, outbox};

    #[test]
    fn a_busy_sink_is_not_waited_for_and_misses_nothing() {
        let sink = Arc::new(Mutex::new(Recorder::default()));
        let mut boxes = Outboxes::default();
        assert!(boxes.register(1, outbox(sink.clone())));
        let busy = sink.lock().unwrap();
        let mut feed = boxes.open(None);
        feed.intent(1, Intent::Attributes { ino: 7 });
        feed.intent(1, Intent::Name { dir: 2, name: b"x" });
        feed.straggler(1, 9, "pid 1 (a)");
        feed.look_everywhere("because");
        drop(feed);
        drop(busy);
        assert!(sink.lock().unwrap().inodes.is_empty() && !boxes.told_all(1));
        drop(boxes.open(None));
        assert!(boxes.told_all(1));
        let told = sink.lock().unwrap();
        assert_eq!(told.inodes, [7]);
        assert_eq!(told.names, [(2, b"x".to_vec())]);
        assert_eq!(told.stragglers, [9]);
        assert_eq!(told.look_everywhere, ["because"]);
    }

    #[test]
    fn what_may_change_unseen_is_written_down_though_the_sink_is_busy_or_not_there_yet() {
        let sink = Arc::new(Mutex::new(Recorder::default()));
        let journal = Arc::new(Written::default());
        let mut boxes = Outboxes::default();
        let opened = |ino, flags| Intent::Opened { ino, flags };
        boxes.open(None).intent(1, opened(5, OpenFlags::MAPPED));
        let outbox = Outbox { sink: sink.clone(), journal: journal.clone() };
        assert!(boxes.register(1, outbox));
        assert_eq!(*journal.0.lock().unwrap(), [5]);
        let busy = sink.lock().unwrap();
        let mut feed = boxes.open(None);
        feed.intent(1, opened(6, OpenFlags::APPEND));
        feed.intent(1, opened(7, OpenFlags::UNSEEN));
        feed.intent(0, opened(8, OpenFlags::MAPPED));
        drop(feed);
        drop(busy);
        let mut passed = Recorder::default();
        boxes.open(Some((1, &mut passed))).intent(1, opened(9, OpenFlags::MAPPED));
        assert_eq!(*journal.0.lock().unwrap(), [5, 7, 9]);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut boxes = Outboxes::default();
        let mut feed = boxes.open(None);
        for ino in 0..3 * KEPT_MAX as u64 {
            feed.intent(0, Intent::Attributes { ino });
        }
        drop(feed);
        assert!(boxes.kept.first().unwrap().0.len() <= KEPT_MAX);
        let mut passed = Recorder::default();
        drop(boxes.open(Some((0, &mut passed))));
        assert_eq!(passed.look_everywhere.len(), 1);
        assert!(!passed.inodes.is_empty());
    }

    #[test]
    fn the_passed_sink_stands_for_its_mount_only() {
        let registered = Arc::new(Mutex::new(Recorder::default()));
        let mut boxes = Outboxes::default();
        assert!(boxes.register(0, outbox(registered.clone())));
        assert!(boxes.register(1, outbox(registered.clone())));
        assert!(!boxes.register(MAX_MOUNTS, outbox(registered.clone())));
        let mut passed = Recorder::default();
        let mut feed = boxes.open(Some((0, &mut passed)));
        feed.intent(0, Intent::Attributes { ino: 1 });
        feed.intent(1, Intent::Attributes { ino: 2 });
        drop(feed);
        drop(boxes.open(None));
        assert_eq!(passed.inodes, [1]);
        assert_eq!(registered.lock().unwrap().inodes, [2]);
    }
}
