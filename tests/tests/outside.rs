//! Changes that come into a volume by a name outside of every mount.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use storeshim_tests::node::{FileStore, Node, Setup};
use storeshim_tests::programs::{crate_dir, require};

/// Whatever was remembered of the directory that a link led to before, what is changed through it now is told.
#[test]
fn changes_through_a_link_are_told() {
    require("python3");
    // Read by us: the node's user may not enter this folder.
    let script = std::fs::read_to_string(crate_dir().join("programs/scripts/from_outside.py")).unwrap();
    for setup in [Setup::translated, Setup::identity] {
        let store = FileStore::new();
        let setup = setup(store.url());
        let reference = setup.reference;
        let mut node = Node::started(setup.with("audit_interval", "1h"));
        node.sh("mkdir d");
        for what in ["make", "change"] {
            let mut command = node.app("/usr/bin/python3");
            command.args(["-c", &script, what]).arg(node.prefix().join("d")).arg(node.outside());
            node.run_to_end(command, Duration::from_secs(120)).succeeded();
            if !reference {
                node.flush();
            }
        }
        if reference {
            continue;
        }
        let counters = node.status_of("counters");
        let missed = counters.get("missed_changes").and_then(serde_json::Value::as_u64).unwrap_or(0);
        assert_eq!(missed, 0, "{}", node.log());
        node.survives("changes from outside");
    }
}

/// A link to another place of the same device is no way across a mount's border: what was opened or entered outside is not
/// known as the mount's when it has been moved in.
#[test]
fn nothing_is_moved_in_by_a_link() {
    require("python3");
    for setup in [Setup::translated, Setup::identity] {
        let store = FileStore::new();
        let setup = setup(store.url());
        if setup.reference {
            return;
        }
        let node = Node::started(setup);
        let outside = node.outside().join("beside");
        let mut command = node.app_without_shim("mkdir");
        command.arg(&outside);
        node.run_to_end(command, Duration::from_secs(120)).succeeded();
        let said = node.python(&format!(
            "import errno
os.mkdir('d')
os.symlink({outside:?}, 'link')
open('d/in', 'w').close()
open('link/out', 'w').close()
beside = os.open('link', os.O_RDONLY)
for act in os.rename, os.link:
    for old, new, options in (
        ('link/out', 'here', {{}}), ('link/out', 'd/here', {{}}), ('d/in', 'link/there', {{}}),
        ('out', 'here', dict(src_dir_fd=beside)),
    ):
        try:
            act(old, new, **options)
            print(act.__name__, old, new, 'done')
        except OSError as e:
            assert e.errno == errno.EXDEV, e
os.rename('link/out', 'link/still')
os.symlink('d', 'inner')
os.rename('inner/in', 'moved')
print(os.listdir({outside:?}), os.path.exists('moved'))"
        ));
        assert_eq!(said.trim(), "['still'] True");
    }
}
