//! The session table: every attached process and every mount's sink, behind one lock. Poll thread, freezes and
//! drains all work on it.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use storeshim_protocol::request::Request;
use storeshim_protocol::{Control, MAX_MOUNTS};

use super::client::Client;
use super::discover::Discovery;
use super::feed::Outboxes;
use super::requests::Pending;
use super::{IntentSink, SessionInfo};

/// How often every process is checked for life.
const LIVENESS: Duration = Duration::from_millis(50);

/// A sink that takes one mount's events for the length of a call.
pub(super) type Passed<'a> = Option<(usize, &'a mut dyn IntentSink)>;

/// Who serves an entry of the mount table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Claim {
    /// Nobody.
    #[default]
    None,
    /// A former agent did; this one may be about to.
    Former,
    /// This agent.
    Ours,
}

/// See the module.
pub(super) struct Table {
    pub(super) claims: [Claim; MAX_MOUNTS],
    pub(super) outboxes: Outboxes,
    clients: Vec<Client>,
    discovery: Discovery,
    checked_at: Instant,
    corrupt: u64,
}

impl Table {
    pub(super) fn new(discovery: Discovery) -> Self {
        Self {
            claims: [Claim::None; MAX_MOUNTS],
            outboxes: Outboxes::default(),
            clients: Vec::new(),
            discovery,
            checked_at: Instant::now(),
            corrupt: 0,
        }
    }

    /// Whether no process is attached or about to attach, as far as is known.
    pub(super) fn is_empty(&self) -> bool {
        self.clients.is_empty() && !self.discovery.awaits()
    }

    /// Rings found corrupt since the agent's start.
    pub(super) fn corrupt(&self) -> u64 {
        self.corrupt
    }

    pub(super) fn list(&self) -> Vec<SessionInfo> {
        self.clients.iter().map(Client::info).collect()
    }

    /// Inode numbers of the clients' ring files.
    pub(super) fn rings(&self) -> Vec<u64> {
        self.clients.iter().filter_map(|client| client.ring.ino()).collect()
    }

    /// What is due between freezes: new clients, dead clients, everybody's intents.
    pub(super) fn turn(&mut self, control: &Control) {
        if self.discovery.due() {
            self.discover(None);
        }
        if self.checked_at.elapsed() >= LIVENESS {
            self.bury_dead(control, None, |_| true);
            self.checked_at = Instant::now();
        }
        self.drain(control, None);
    }

    /// Looks for new clients.
    pub(super) fn discover<'a>(&'a mut self, passed: Passed<'a>) {
        let found = self.discovery.scan();
        self.clients.extend(found.clients);
        if !found.unknown.is_empty() {
            let mut feed = self.outboxes.open(passed);
            for why in &found.unknown {
                feed.look_everywhere(why);
            }
        }
    }

    /// Tells everything that stands in the rings.
    pub(super) fn drain<'a>(&'a mut self, control: &Control, passed: Passed<'a>) {
        let mounts = mount_count(control);
        let mut feed = self.outboxes.open(passed);
        for client in &mut self.clients {
            self.corrupt += client.drain(mounts, &mut feed);
        }
    }

    /// Whether nothing is kept for the sink of a mount.
    pub(super) fn told_all(&self, mount: usize) -> bool {
        self.outboxes.told_all(mount)
    }

    /// Names the threads inside `mount`'s gate.
    pub(super) fn tell_stragglers<'a>(&'a mut self, mount: usize, passed: Passed<'a>) {
        let mut feed = self.outboxes.open(passed);
        for client in &mut self.clients {
            client.tell_stragglers(mount, &mut feed);
        }
    }

    /// Whether a freeze of `mount` has to wait for anybody.
    pub(super) fn holds_up(&self, mount: usize) -> bool {
        self.clients.iter().any(|client| client.holds_up(mount))
    }

    /// Removes those clients that have died and of which `check` says that they are to be checked.
    pub(super) fn bury_dead<'a>(
        &'a mut self,
        control: &Control,
        passed: Passed<'a>,
        check: impl Fn(&Client) -> bool,
    ) {
        let dead: Vec<Client> =
            self.clients.extract_if(.., |client| check(client) && !client.alive()).collect();
        if dead.is_empty() {
            return;
        }
        let mounts = mount_count(control);
        let mut feed = self.outboxes.open(passed);
        for client in dead {
            self.corrupt += client.bury(mounts, self.discovery.dir(), &mut feed);
        }
    }

    /// Requests that have not been handed on yet; for each, whether a mount of ours is meant.
    pub(super) fn take_requests(&mut self) -> Vec<(Pending, bool)> {
        let mut taken = Vec::new();
        let claims = self.claims;
        for client in &mut self.clients {
            client.take_requests(|pending| match claim_of(&claims, &pending.request) {
                Claim::Former => false,
                claim => {
                    taken.push((pending, claim == Claim::Ours));
                    true
                }
            });
        }
        taken
    }

    /// Whether the poll thread should not go to sleep now.
    pub(super) fn needs_service(&self) -> bool {
        self.clients
            .iter()
            .any(|client| client.needs_service(|request| claim_of(&self.claims, request) != Claim::Former))
    }
}

fn claim_of(claims: &[Claim; MAX_MOUNTS], request: &Result<Request, ()>) -> Claim {
    match request {
        Ok(Request { mount, .. }) => claims.get(usize::from(*mount)).copied().unwrap_or_default(),
        Err(()) => Claim::None,
    }
}

fn mount_count(control: &Control) -> usize {
    (control.mount_count.load(Ordering::Relaxed) as usize).min(MAX_MOUNTS)
}
