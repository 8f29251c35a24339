//! What the Worker sees and does of a tree, and that it never leaves it.
