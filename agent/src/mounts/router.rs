//! Sends each request to the volume that it is for, keeps those that come while a volume is being opened, and
//! answers those that no volume will serve. It must not know what a volume does with a request.

use std::sync::{Arc, Mutex, PoisonError};

use storeshim_protocol::MAX_MOUNTS;
use storeshim_protocol::request::{Ask, Request};

use super::ports::Engine;
use crate::session::{Reply, RequestSink};

/// Where the requests of one mount go.
enum Route {
    /// The volume is being opened, or closed. A request that is still here when the agent ends stays pending in its ring,
    /// where the next agent finds it.
    Held(Vec<(Ask, Box<dyn Reply>)>),
    /// To the volume.
    Open(Arc<dyn Engine>),
    /// Back, with this errno.
    Refused(i32),
}

/// The table of routes, one per mount index.
pub struct Router {
    routes: [Mutex<Route>; MAX_MOUNTS],
}

impl Default for Router {
    fn default() -> Self {
        Self { routes: std::array::from_fn(|_| Mutex::new(Route::Held(Vec::new()))) }
    }
}

impl Router {
    /// From now on the requests of mount `index` go to `engine`, first those that were kept. A mount that was
    /// fenced or failed meanwhile stays refused.
    pub fn open(&self, index: usize, engine: &Arc<dyn Engine>) {
        let held = self.replace(index, |route| match route {
            Route::Held(_) => Some(Route::Open(engine.clone())),
            Route::Open(_) | Route::Refused(_) => None,
        });
        for (ask, reply) in held {
            engine.request(ask, reply);
        }
    }

    /// From now on the requests of mount `index` are kept, for the next agent: this one is about to end. Those that
    /// its volume has taken are the volume's to answer.
    pub fn hold(&self, index: usize) {
        self.replace(index, |route| match route {
            Route::Open(_) => Some(Route::Held(Vec::new())),
            Route::Held(_) | Route::Refused(_) => None,
        });
    }

    /// From now on the requests of mount `index`, and those that were kept, are answered with `errno`.
    pub fn refuse(&self, index: usize, errno: i32) {
        for (_, reply) in self.replace(index, |_| Some(Route::Refused(errno))) {
            reply.reply(errno);
        }
    }

    /// Refuses the requests of every mount that is not in `served`: a client of an earlier agent can know mounts
    /// that this one was not given.
    pub fn refuse_others(&self, served: &[usize], errno: i32) {
        for index in (0..MAX_MOUNTS).filter(|index| !served.contains(index)) {
            self.refuse(index, errno);
        }
    }

    /// Changes a route; returns what was kept in the old one.
    fn replace(
        &self,
        index: usize,
        next: impl FnOnce(&Route) -> Option<Route>,
    ) -> Vec<(Ask, Box<dyn Reply>)> {
        let Some(route) = self.routes.get(index) else { return Vec::new() };
        let mut route = route.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(next) = next(&route) else { return Vec::new() };
        match std::mem::replace(&mut *route, next) {
            Route::Held(held) => held,
            Route::Open(_) | Route::Refused(_) => Vec::new(),
        }
    }
}

impl RequestSink for Router {
    fn request(&self, request: Request, reply: Box<dyn Reply>) {
        let Request { mount, ask } = request;
        let Some(route) = self.routes.get(usize::from(mount)) else { return reply.reply(libc::EINVAL) };
        // An engine is called with the lock held, so that after `hold` nothing is on its way to it.
        match &mut *route.lock().unwrap_or_else(PoisonError::into_inner) {
            Route::Held(held) => held.push((ask, reply)),
            Route::Refused(errno) => reply.reply(*errno),
            Route::Open(engine) => engine.request(ask, reply),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{FakeEngine, FakeReply};
    use super::*;

    fn barrier(mount: u8) -> Request {
        Request { mount, ask: Ask::Barrier { ino: 7 } }
    }

    #[test]
    fn requests_wait_until_the_volume_is_open() {
        let router = Router::default();
        let (reply, answer) = FakeReply::pair();
        router.request(barrier(0), reply);
        assert_eq!(answer.get(), None);
        let engine: Arc<dyn Engine> = Arc::new(FakeEngine::default());
        router.open(0, &engine);
        assert_eq!(answer.get(), Some(0));
        let (reply, answer) = FakeReply::pair();
        router.request(barrier(0), reply);
        assert_eq!(answer.get(), Some(0));
    }

    /// A live app must not see that an agent makes room for the next one.
    #[test]
    fn requests_wait_for_the_next_agent_when_this_one_ends() {
        let router = Router::default();
        let engine: Arc<dyn Engine> = Arc::new(FakeEngine::default());
        router.open(0, &engine);
        router.hold(0);
        let (reply, answer) = FakeReply::pair();
        router.request(barrier(0), reply);
        assert_eq!(answer.get(), None);
        router.refuse(1, libc::ESTALE);
        router.hold(1);
        let (reply, answer) = FakeReply::pair();
        router.request(barrier(1), reply);
        assert_eq!(answer.get(), Some(libc::ESTALE));
    }

    #[test]
    fn a_fenced_mount_refuses_and_stays_refused() {
        let router = Router::default();
        let (reply, kept) = FakeReply::pair();
        router.request(barrier(1), reply);
        router.refuse(1, libc::ESTALE);
        assert_eq!(kept.get(), Some(libc::ESTALE));
        let engine: Arc<dyn Engine> = Arc::new(FakeEngine::default());
        router.open(1, &engine);
        let (reply, answer) = FakeReply::pair();
        router.request(barrier(1), reply);
        assert_eq!(answer.get(), Some(libc::ESTALE));
    }

    #[test]
    fn mounts_that_nobody_serves_are_refused() {
        let router = Router::default();
        let (reply, kept) = FakeReply::pair();
        router.request(barrier(2), reply);
        router.refuse_others(&[0, 1], libc::EIO);
        assert_eq!(kept.get(), Some(libc::EIO));
        let (reply, answer) = FakeReply::pair();
        router.request(barrier(0), reply);
        assert_eq!(answer.get(), None);
        let (reply, answer) = FakeReply::pair();
        router.request(barrier(200), reply);
        assert_eq!(answer.get(), Some(libc::EINVAL));
    }
}
