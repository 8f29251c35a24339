//! Nodes whose volume a Python program has filled, and which then begin with nothing of it on their disk. It must not know what
//! is read of it.

use crate::contents::CONTENTS;
use crate::node::{Node, Setup};
use crate::programs::require;

/// A lazy node that begins with everything: `fill` has run in it, with what [`CONTENTS`] defines, and the backend has it. `None`
/// in the reference run: the plain disk has all there is.
pub fn filled(setup: Setup, fill: &str) -> Option<Node> {
    if setup.reference {
        return None;
    }
    require("python3");
    let node = Node::started(setup.lazy());
    node.python(&format!("{CONTENTS}\n{fill}"));
    node.flush();
    Some(node)
}

/// The same volume on an empty disk, with all names there.
pub fn cold(setup: Setup, fill: &str) -> Option<Node> {
    let mut node = filled(setup, fill)?;
    node.lose();
    node.start();
    node.await_names();
    Some(node)
}
