//! Changes of all kinds, told as the shim tells them: what another node restores is what was there.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Create(u8),
    Write(u8, u32, u16),
    Stdio(u8, u32, u16),
    Truncate(u8, u32),
    Unlink(u8),
    Rename(u8, u8),
    Link(u8, u8),
    Mkdir(u8),
    Rmdir(u8),
    Chmod(u8, u16),
    Barrier,
    Audit,
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    let name = 0u8..18;
    let size = 0u32..9 << 20;
    prop_oneof![
        4 => name.clone().prop_map(Op::Create),
        6 => (name.clone(), size.clone(), any::<u16>()).prop_map(|(n, o, l)| Op::Write(n, o, l)),
        3 => (name.clone(), size.clone(), any::<u16>()).prop_map(|(n, o, l)| Op::Stdio(n, o, l)),
        2 => (name.clone(), size).prop_map(|(n, s)| Op::Truncate(n, s)),
        2 => name.clone().prop_map(Op::Unlink),
        4 => (name.clone(), name.clone()).prop_map(|(a, b)| Op::Rename(a, b)),
        2 => (name.clone(), name.clone()).prop_map(|(a, b)| Op::Link(a, b)),
        3 => name.clone().prop_map(Op::Mkdir),
        1 => name.clone().prop_map(Op::Rmdir),
        1 => (name, 0u16..0o777).prop_map(|(n, m)| Op::Chmod(n, m | 0o600)),
        3 => Just(Op::Barrier),
        1 => Just(Op::Audit),
        1 => Just(Op::Restart),
    ]
}

/// Names form a small tree: 0..6 at the top, 6..12 in d0, 12..18 in d0/d1.
fn path(n: u8) -> String {
    match n {
        0..6 => format!("d{n}"),
        6..12 => format!("d0/d{}", n - 6),
        _ => format!("d0/d1/d{}", n - 12),
    }
}

/// Does an operation as a hooked program would: intents first, the call after. Calls may fail, as they may there.
fn apply(node: &mut Node, op: &Op) {
    let tree = node.tree();
    let name = |n: &u8| {
        let path = path(*n);
        let (dir, _) = path.rsplit_once('/').unwrap_or(("", &path));
        if tree.join(dir).is_dir() {
            node.tell_name(&path);
        }
        tree.join(&path)
    };
    let write = |n: &u8, at: u32, len: u16, flags: Option<OpenFlags>| {
        let path = path(*n);
        let Ok(file) = fs::OpenOptions::new().write(true).open(tree.join(&path)) else { return };
        let ino = node.ino(&path);
        node.tell(Intent::Opened { ino, flags: flags.unwrap_or_default() });
        if flags.is_none() {
            node.tell(Intent::Written { ino, offset: at.into(), length: len.into() });
        }
        file.write_all_at(&vec![at as u8 | 1; len.into()], at.into()).unwrap();
    };
    match op {
        Op::Create(n) => _ = fs::File::create_new(name(n)),
        Op::Write(n, at, len) => write(n, *at, *len, None),
        Op::Stdio(n, at, len) => write(n, *at, *len, Some(OpenFlags::UNSEEN)),
        Op::Truncate(n, size) => {
            let path = path(*n);
            let Ok(file) = fs::OpenOptions::new().write(true).open(tree.join(&path)) else { return };
            node.tell(Intent::Written { ino: node.ino(&path), offset: (*size).into(), length: u64::MAX });
            file.set_len((*size).into()).unwrap();
        }
        Op::Unlink(n) => _ = fs::remove_file(name(n)),
        Op::Rename(a, b) => _ = fs::rename(name(a), name(b)),
        Op::Link(a, b) => _ = fs::hard_link(tree.join(path(*a)), name(b)),
        Op::Mkdir(n) => _ = fs::create_dir(name(n)),
        Op::Rmdir(n) => _ = fs::remove_dir(name(n)),
        Op::Chmod(n, mode) => {
            let path = path(*n);
            if tree.join(&path).is_file() {
                node.tell(Intent::Attributes { ino: node.ino(&path) });
                fs::set_permissions(tree.join(path), fs::Permissions::from_mode((*mode).into())).unwrap();
            }
        }
        Op::Barrier => assert_eq!(node.barrier(), 0),
        Op::Audit => {
            node.volume().flush().unwrap();
            assert_eq!(missed(node), 0);
        }
        Op::Restart => {
            node.volume().shutdown();
            node.start().unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Any sequence of told operations, cut anywhere, restores to what the tree is.
    #[test]
    fn told_changes_are_committed(ops in prop::collection::vec(op(), 1..40), id in any::<u64>()) {
        let mut node = Node::new(&format!("memory:prop-{id}"));
        for op in &ops {
            apply(&mut node, op);
        }
        prop_assert_eq!(node.barrier(), 0);
        // The audit finds nothing that the barrier had not found by the intents alone.
        node.volume().flush().unwrap();
        prop_assert_eq!(missed(&node), 0);
        same_elsewhere(&mut node);
    }
}
