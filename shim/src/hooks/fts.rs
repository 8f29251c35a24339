//! fts. libc walks the tree; what it hands out is respelled before the app sees it, and put back before libc goes on.
//! The app holds a stand-in for libc's FTS, which it may not look into.

use core::ffi::{CStr, c_char, c_int, c_long, c_void};
use core::mem::offset_of;

use super::ftw;
use crate::absent;
use crate::control;
use crate::hook::{fail, hook, real};
use crate::loader;
use crate::paths;
use crate::place::{self, CWD, Place};
use crate::respell::{self, Block, Respell, Stat, boxed, unboxed};
use crate::sys::{Errno, PathBuf, errno};

#[cfg(target_arch = "x86_64")]
type Links = u64;
#[cfg(target_arch = "aarch64")]
type Links = u32;

/// FTSENT, with the two types in which the libcs differ.
#[repr(C)]
struct Layout<Length, Level> {
    cycle: *mut c_void,
    parent: *mut c_void,
    link: *mut c_void,
    number: c_long,
    pointer: *mut c_void,
    accpath: *mut c_char,
    path: *mut c_char,
    errno: c_int,
    symfd: c_int,
    pathlen: Length,
    namelen: Length,
    ino: u64,
    dev: u64,
    nlink: Links,
    level: Level,
    info: u16,
    flags: u16,
    instr: u16,
    statp: *mut Stat,
    name: [c_char; 1],
}

/// An FTS, the same in glibc and in musl-fts as far as its options, of which one says that a node has no stat: what stands
/// for it is not written then.
#[repr(C)]
struct Walker {
    nodes: [*mut c_void; 3],
    dev: u64,
    path: *mut c_char,
    numbers: [c_int; 3],
    order: *const c_void,
    options: c_int,
}

/// Whether libc's walk has a stat for each of its nodes.
///
/// # Safety
/// `walk` must be libc's own.
unsafe fn has_stats(walk: *mut c_void) -> bool {
    const FTS_NOSTAT: c_int = 8;
    // SAFETY: as above.
    unsafe { (*walk.cast::<Walker>()).options & FTS_NOSTAT == 0 }
}

type Gnu = Layout<u16, i16>;
type Musl = Layout<u32, c_int>;

/// An FTSENT of whichever libc this is.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Node(*mut c_void);

/// Reads or writes a field of a node. `$gnu` and `$musl` are what it is in each.
macro_rules! field {
    ($node:expr, $field:ident) => {
        if loader::is_glibc() {
            // SAFETY: a node that libc has handed out lives until the next call of its walk.
            unsafe { (*$node.0.cast::<Gnu>()).$field as usize }
        } else {
            // SAFETY: as above.
            unsafe { (*$node.0.cast::<Musl>()).$field as usize }
        }
    };
    ($node:expr, $field:ident = $value:expr) => {
        // SAFETY: as above; nobody else has it during a call.
        unsafe {
            if loader::is_glibc() {
                (*$node.0.cast::<Gnu>()).$field = $value as _
            } else {
                (*$node.0.cast::<Musl>()).$field = $value as _
            }
        }
    };
}

impl Node {
    fn some(at: *mut c_void) -> Option<Self> {
        (!at.is_null()).then_some(Self(at))
    }

    fn name(self) -> *mut c_char {
        let at = if loader::is_glibc() { offset_of!(Gnu, name) } else { offset_of!(Musl, name) };
        self.0.wrapping_byte_add(at).cast()
    }

    fn next(self) -> Option<Self> {
        Self::some(field!(self, link) as *mut c_void)
    }

    /// Has what libc comes to next brought, and corrects what it saw. libc stands where its short names start from.
    fn complete(self, has_stat: bool) -> Result<(), Errno> {
        const D: usize = 1;
        const F: usize = 8;
        const SL: usize = 12;
        let (path, stat) = (field!(self, accpath) as *const c_char, field!(self, statp) as *mut Stat);
        let kind = field!(self, info);
        if has_stat && matches!(kind, D | F | SL) {
            // SAFETY: such a node was looked at; its path is a C string.
            unsafe { ftw::correct(path, &mut *stat) };
        }
        if kind == D && absent::some_lacks_names() {
            // What counts as its links has come after it was looked at: nothing is said of them.
            field!(self, nlink = 1);
            return absent::listing_at(Place { mount: None, dirfd: CWD, path });
        }
        Ok(())
    }

    fn is_root(self) -> bool {
        field!(self, level) == 0
    }

    /// Replaces the name where the new one is no longer.
    fn rename(self, name: &[u8]) {
        if name.len() <= field!(self, namelen) {
            // SAFETY: the name's own room is at least as long.
            unsafe { super::cwd::give(name, self.name(), name.len() + 1) };
            field!(self, namelen = name.len());
        }
    }
}

/// One root: as the app gave it and as libc has it.
struct Root {
    next: *mut Root,
    app: Block,
    real: Block,
    spelling: Respell,
}

impl Root {
    fn bytes(block: &Block) -> &[u8] {
        block.text()
    }

    /// Whether a path of libc's is this root, or below it.
    fn holds(&self, path: &[u8]) -> bool {
        let real = Self::bytes(&self.real);
        let (_, end) = paths::last_component(real);
        path.strip_prefix(real.get(..end).unwrap_or(real))
            .is_some_and(|rest| rest.iter().all(|byte| *byte == b'/'))
    }
}

/// What stands for libc's FTS.
struct Walk {
    /// Of itself: libc's FTS begins with its current node, which it never is itself.
    me: *const Walk,
    real: *mut c_void,
    roots: *mut Root,
    /// The root of the node handed out last.
    root: *const Root,
    /// Nodes that show the app's spelling now: one, or a list by its links.
    shown: Option<(Node, bool)>,
    /// What their path really is.
    path: *mut c_char,
    /// The app's spelling of it.
    spelled: Block,
}

impl Walk {
    /// The walk behind what the app holds, unless that is libc's own.
    ///
    /// # Safety
    /// `at` must be an open FTS.
    unsafe fn of<'w>(at: *mut c_void) -> Option<&'w mut Self> {
        // SAFETY: both begin with a pointer.
        unsafe { (!at.is_null() && *at.cast::<*mut c_void>() == at).then(|| &mut *at.cast::<Self>()) }
    }

    fn root_of(&self, path: &[u8]) -> *const Root {
        let mut at = self.roots.cast_const();
        // SAFETY: roots live as long as their walk.
        while let Some(root) = unsafe { at.as_ref() } {
            if root.holds(path) {
                return at;
            }
            at = root.next;
        }
        core::ptr::null()
    }

    /// Puts back what libc had.
    fn hide(&mut self) {
        let Some((first, list)) = self.shown.take() else { return };
        // SAFETY: roots live as long as their walk.
        let root = unsafe { self.root.as_ref() };
        let mut at = Some(first);
        while let Some(node) = at {
            at = if list { node.next() } else { None };
            if list && node.is_root() {
                self.hide_root(node);
                continue;
            }
            let Some(root) = root else { continue };
            let shown = field!(node, path);
            if field!(node, accpath) == shown {
                field!(node, accpath = self.path);
            }
            field!(node, path = self.path);
            let length = field!(node, pathlen) + root.spelling.real - root.spelling.app;
            field!(node, pathlen = length);
        }
    }

    /// Gives a root that was not walked to yet its real name back.
    fn hide_root(&self, node: Node) {
        // SAFETY: a node's name is a C string.
        let name = unsafe { CStr::from_ptr(node.name()) }.to_bytes();
        let mut at = self.roots.cast_const();
        // SAFETY: roots live as long as their walk.
        while let Some(root) = unsafe { at.as_ref() } {
            if Root::bytes(&root.app) == name {
                let real = Root::bytes(&root.real);
                // SAFETY: it had that length before.
                unsafe { super::cwd::give(real, node.name(), real.len() + 1) };
                field!(node, namelen = real.len());
                return;
            }
            at = root.next;
        }
    }

    /// Shows the app the node that libc has come to.
    fn show(&mut self, node: Node) {
        let real = field!(node, path) as *mut c_char;
        // SAFETY: the path of the current node is a C string.
        let path = unsafe { CStr::from_ptr(real) }.to_bytes();
        if node.is_root() {
            self.root = self.root_of(path);
        }
        // SAFETY: roots live as long as their walk.
        let Some(root) = (unsafe { self.root.as_ref() }) else { return };
        let (head, tail) = root.spelling.parts(Root::bytes(&root.app), path);
        let spelled = self.spelled.fill(head, tail);
        if spelled.is_null() {
            return;
        }
        if node.is_root() {
            let text = self.spelled.text();
            let (start, end) = paths::last_component(text);
            node.rename(text.get(start..end).unwrap_or(&[]));
        }
        self.put(node, real, spelled, root.spelling);
        self.path = real;
        self.shown = Some((node, false));
    }

    /// Lets a node show a path.
    fn put(&self, node: Node, real: *mut c_char, spelled: *mut c_char, spelling: Respell) {
        if field!(node, accpath) == real as usize {
            field!(node, accpath = spelled);
        }
        field!(node, path = spelled);
        let length = field!(node, pathlen) + spelling.app - spelling.real;
        field!(node, pathlen = length);
    }

    /// Shows the app a list of nodes that libc has not come to yet.
    fn show_list(&mut self, first: Node) {
        let real = field!(first, path) as *mut c_char;
        let mut at = Some(first);
        if first.is_root() {
            while let Some(node) = at {
                // SAFETY: a node's name is a C string.
                let name = unsafe { CStr::from_ptr(node.name()) }.to_bytes();
                // SAFETY: roots live as long as their walk.
                if let Some(root) = unsafe { self.root_of(name).as_ref() } {
                    node.rename(Root::bytes(&root.app));
                }
                at = node.next();
            }
            self.shown = Some((first, true));
            return;
        }
        // SAFETY: roots live as long as their walk; the path is a C string.
        let Some(root) = (unsafe { self.root.as_ref() }) else { return };
        // SAFETY: as above.
        let path = unsafe { CStr::from_ptr(real) }.to_bytes();
        let (head, tail) = root.spelling.parts(Root::bytes(&root.app), path);
        let spelled = self.spelled.fill(head, tail);
        if spelled.is_null() {
            return;
        }
        while let Some(node) = at {
            self.put(node, real, spelled, root.spelling);
            at = node.next();
        }
        self.path = real;
        self.shown = Some((first, true));
    }

    /// Ends it.
    ///
    /// # Safety
    /// `this` must be the app's, and not used any more.
    unsafe fn release(this: *mut Self) {
        // SAFETY: as above; everything in it is its own.
        unsafe {
            let mut at = (*this).roots;
            while let Some(root) = at.as_mut() {
                let next = root.next;
                root.app.release();
                root.real.release();
                unboxed(at);
                at = next;
            }
            (*this).spelled.release();
            unboxed(this);
        }
    }
}

/// Translates one root and adds it to the list.
fn add_root(walk: &mut Walk, app: *const c_char) -> Result<*const c_char, Errno> {
    let mut room = PathBuf::new();
    if respell::root(app, &mut room)?.is_none() {
        return Ok(app);
    }
    // SAFETY: a path that was translated is a C string.
    let text = unsafe { CStr::from_ptr(app) }.to_bytes();
    let mut long = PathBuf::new();
    respell::padded(&mut long, room.bytes(), text.len())?;
    let spelling = Respell::new(text, long.bytes());
    let mut root = Root { next: walk.roots, app: Block::new(), real: Block::new(), spelling };
    let real = root.real.fill(long.bytes(), b"");
    let copied = root.app.fill(text, b"");
    let root = boxed(root);
    if real.is_null() || copied.is_null() || root.is_null() {
        return Err(Errno::of(errno::ENOMEM));
    }
    walk.roots = root;
    Ok(real)
}

/// Opens a walk of translated roots by `open`.
///
/// # Safety
/// The contract of fts_open(3).
unsafe fn open_walk(
    roots: *const *const c_char,
    open: impl Fn(*const *const c_char) -> *mut c_void,
) -> *mut c_void {
    if roots.is_null() || !control::table().is_some_and(|table| table.translates) {
        return open(roots);
    }
    let none = core::ptr::null();
    let walk = boxed(Walk {
        me: none,
        real: core::ptr::null_mut(),
        roots: core::ptr::null_mut(),
        root: core::ptr::null(),
        shown: None,
        path: core::ptr::null_mut(),
        spelled: Block::new(),
    });
    let mut list = Block::new();
    // SAFETY: `walk` is ours alone; `roots` ends with null.
    unsafe {
        let Some(this) = walk.as_mut() else { return fail(Errno::of(errno::ENOMEM)) };
        this.me = walk;
        let mut count = 0;
        while !(*roots.add(count)).is_null() {
            count += 1;
        }
        let translated = list.words(count + 1).cast::<*const c_char>();
        let mut failure = translated.is_null().then_some(Errno::of(errno::ENOMEM));
        for at in 0..count {
            if failure.is_some() {
                break;
            }
            match add_root(this, *roots.add(at)) {
                Ok(root) => translated.add(at).write(root),
                Err(errno) => failure = Some(errno),
            }
        }
        if failure.is_none() {
            translated.add(count).write(core::ptr::null());
            this.real = open(translated);
        }
        list.release();
        if !this.real.is_null() {
            return walk.cast();
        }
        Walk::release(walk);
        failure.map_or(core::ptr::null_mut(), fail)
    }
}

/// The next node by `read`.
///
/// # Safety
/// The contract of fts_read(3).
unsafe fn read_walk(walk: *mut c_void, read: impl FnOnce(*mut c_void) -> *mut c_void) -> *mut c_void {
    place::forget_cwd();
    // SAFETY: the app hands an open FTS.
    let mut ours = unsafe { Walk::of(walk) };
    let real = ours.as_ref().map_or(walk, |ours| ours.real);
    let found = match &mut ours {
        None => read(walk),
        Some(walk) => {
            walk.hide();
            read(walk.real)
        }
    };
    place::forget_cwd();
    let Some(node) = Node::some(found) else { return found };
    // SAFETY: libc's own, which has just answered.
    if let Err(errno) = node.complete(unsafe { has_stats(real) }) {
        return fail(errno);
    }
    if let Some(walk) = ours {
        walk.show(node);
    }
    found
}

/// The list of nodes by `read`.
///
/// # Safety
/// The contract of fts_children(3).
unsafe fn read_children(walk: *mut c_void, read: impl FnOnce(*mut c_void) -> *mut c_void) -> *mut c_void {
    // SAFETY: the app hands an open FTS.
    let Some(walk) = (unsafe { Walk::of(walk) }) else { return read(walk) };
    walk.hide();
    let found = read(walk.real);
    if let Some(node) = Node::some(found) {
        walk.show_list(node);
    }
    found
}

/// Closes by `close`.
///
/// # Safety
/// The contract of fts_close(3).
unsafe fn close_walk(walk: *mut c_void, close: impl FnOnce(*mut c_void) -> c_int) -> c_int {
    // SAFETY: the app hands an open FTS, and does not use it any more.
    let result = match unsafe { Walk::of(walk) } {
        None => close(walk),
        Some(this) => {
            this.hide();
            let result = close(this.real);
            // SAFETY: as above.
            unsafe { Walk::release(this) };
            result
        }
    };
    place::forget_cwd();
    result
}

type Compare = *const c_void;

hook! {
    unsafe fn fts_open | fts64_open(roots: *const *const c_char, options: c_int, order: Compare) -> *mut c_void
        => my_fts_open {
        open_walk(roots, |roots| real!(fts_open)(roots, options, order))
    }
}

hook! {
    unsafe fn fts_read | fts64_read(walk: *mut c_void) -> *mut c_void => my_fts_read {
        read_walk(walk, |walk| real!(fts_read)(walk))
    }
}

hook! {
    unsafe fn fts_children | fts64_children(walk: *mut c_void, options: c_int) -> *mut c_void => my_fts_children {
        read_children(walk, |walk| real!(fts_children)(walk, options))
    }
}

hook! {
    unsafe fn fts_close | fts64_close(walk: *mut c_void) -> c_int => my_fts_close {
        close_walk(walk, |walk| real!(fts_close)(walk))
    }
}
