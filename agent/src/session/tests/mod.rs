//! Sessions against clients that behave, misbehave and die.
use super::IntentSink;
use storeshim_protocol::Intent;

/// A sink that remembers.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    pub(super) inodes: Vec<u64>,
    pub(super) names: Vec<(u64, Vec<u8>)>,
    pub(super) look_everywhere: Vec<String>,
    pub(super) stragglers: Vec<u64>,
}

impl IntentSink for Recorder {
    fn intent(&mut self, intent: Intent<'_>) {
        match intent {
            Intent::Name { dir, name } => self.names.push((dir, name.to_vec())),
            Intent::Opened { ino, .. }
            | Intent::Written { ino, .. }
            | Intent::Attributes { ino }
            | Intent::Closed { ino } => self.inodes.push(ino),
        }
    }

    fn look_everywhere(&mut self, why: &str) {
        self.look_everywhere.push(why.into());
    }

    fn straggler(&mut self, subject: u64, _: &str) {
        self.stragglers.push(subject);
    }
}
