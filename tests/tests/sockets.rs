//! Unix sockets with names in a volume.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use storeshim_tests::node::{FileStore, Node, Setup};
use storeshim_tests::programs::{crate_dir, require};

/// Names are made, found and answered as on an ordinary file system, also where the tree's own are too long for an
/// address; and making one is told.
#[test]
fn sockets_have_logical_names() {
    require("python3");
    for setup in [Setup::translated, Setup::identity] {
        for net in ["", "sud"] {
            let store = FileStore::new();
            let setup = setup(store.url());
            if setup.reference {
                return;
            }
            let mut node = Node::started(setup.with("audit_interval", "1h"));
            node.sh("mkdir s");
            let mut command = node.app("/usr/bin/python3");
            // Read by us: the node's user may not enter this folder.
            let script =
                std::fs::read_to_string(crate_dir().join("programs/scripts/unix_sockets.py")).unwrap();
            command.env("STORESHIM_NET", net).arg("-c").arg(script).arg(node.prefix().join("s"));
            assert_eq!(node.run_to_end(command, Duration::from_secs(60)).succeeded(), "done\n");
            node.flush();
            let counters = node.status_of("counters");
            let missed = counters.get("missed_changes").and_then(serde_json::Value::as_u64).unwrap_or(0);
            assert_eq!(missed, 0, "{}", node.log());
            node.survives("sockets");
        }
    }
}
