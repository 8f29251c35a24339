//! Hooked calls that are interrupted: by signal handlers that write, by jumps out of them, by threads that end inside.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use storeshim_tests::node::{FileStore, Node, Setup};
use storeshim_tests::programs::compiled;

/// Nothing is missed by the intents, and no cut waits for who will never come back.
#[test]
fn interrupted_calls_miss_nothing_and_hold_nobody_up() {
    for net in ["", "sud"] {
        let store = FileStore::new();
        let setup = Setup::translated(store.url());
        if setup.reference {
            return;
        }
        let mut node = Node::started(setup.with("audit_interval", "1h").with("max_lag", "100ms"));
        let mut command = node.app(compiled("reentry"));
        command.env("STORESHIM_NET", net).arg(node.prefix());
        let interrupts: u64 =
            node.run_to_end(command, Duration::from_secs(120)).succeeded().trim().parse().unwrap();
        assert!(interrupts > 100, "{interrupts} interrupts only");
        let start = Instant::now();
        node.flush();
        assert!(start.elapsed() < Duration::from_secs(20), "a flush took {:?}", start.elapsed());
        let counters = node.status_of("counters");
        let missed = counters.get("missed_changes").and_then(serde_json::Value::as_u64).unwrap_or(0);
        assert_eq!(missed, 0, "{}", node.log());
        node.survives("interrupted calls");
    }
}
