//! Volumes on the real runtime, for tests of this side: the Worker of the Worker's own tests, which dials wherever it is told.

use std::path::PathBuf;

use storeshim_workerd::{Class, Runtime, TOKEN, Worker, free_port, missing, package};

use super::Durable;

/// How an agent and its Durable Object come together.
#[derive(Clone, Copy, Debug)]
enum Way {
    Dialled,
    WebSocket,
}

/// A runtime of one test.
pub(crate) struct Running(pub(crate) Runtime);

/// A volume that can be opened again and again.
pub(crate) struct Volume<'a> {
    runtime: &'a Runtime,
    way: Way,
    id: String,
}

/// The Worker of the tests.
pub(crate) fn start() -> Running {
    let entry: PathBuf = package().join("test/worker/index.ts");
    let class = |name, binding| Class { name, binding, container: false };
    let classes = [class("DialedVolume", "DIALED"), class("StorageObject", "PLAIN")];
    Running(Runtime::start(&Worker { entry: &entry, classes: &classes, engine: None }, None).unwrap())
}

/// Runs a test on a runtime of its own; skips it where there is none.
pub(crate) fn with(test: impl FnOnce(&Running)) {
    match missing() {
        Some(why) => eprintln!("skipped: {why}"),
        None => test(&start()),
    }
}

impl Running {
    pub(crate) fn dialled(&self) -> Volume<'_> {
        Volume { runtime: &self.0, way: Way::Dialled, id: format!("{:032x}", rand::random::<u128>()) }
    }

    pub(crate) fn websocket(&self) -> Volume<'_> {
        Volume { way: Way::WebSocket, ..self.dialled() }
    }
}

impl<'a> Volume<'a> {
    pub(crate) fn other(&self) -> Volume<'a> {
        Volume { id: format!("{:032x}", rand::random::<u128>()), ..*self }
    }

    /// The URL for one more opening.
    pub(crate) fn url(&self) -> String {
        match self.way {
            Way::Dialled => {
                let port = free_port().unwrap();
                self.runtime.get(&format!("/test/{}/dial?port={port}", self.id)).unwrap();
                format!("do://listen:{port}?bind=127.0.0.1")
            }
            Way::WebSocket => format!("do+ws://{TOKEN}@{}/container/{}", self.runtime.authority(), self.id),
        }
    }

    pub(crate) fn open(&self) -> Durable {
        super::open(&self.url()).unwrap()
    }
}
