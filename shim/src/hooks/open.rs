//! Opening by path. An open that may create or truncate runs inside the gate, once it is sure that it cannot block
//! there; any other open for writing is told afterwards, since nothing has changed yet.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::sync::atomic::{AtomicBool, Ordering};

use storeshim_protocol::request::Ask;
use storeshim_protocol::{Intent, OpenFlags};

use crate::absent::{self, Before, Change};
use crate::fds::{self, Known};
use crate::gate;
use crate::hook::{fail, hook, real};
use crate::hooks::fd::new;
use crate::loader::get_errno;
use crate::names::{self, Entry};
use crate::place::{self, CWD, Place};
use crate::sys::{self, Answer, Errno, PathBuf, Stat, errno, k};
use crate::{ask, control, detour, residency, streams, tell, write};

/// The last file that was opened with O_CREAT was not there before.
static CREATES: AtomicBool = AtomicBool::new(true);

const EXISTS: Answer = Err(Errno::of(errno::EEXIST));
/// Something is to be asked of the agent first, outside the gate. No errno of the kernel's.
const LACKS: Answer = Err(Errno(0));

/// How the kernel is asked to open: from a descriptor, a path, with flags.
pub type Call<'c> = &'c dyn Fn(c_int, *const c_char, c_int) -> Answer;

/// An open: what is asked, and how the kernel is asked.
pub struct Open<'c> {
    /// O_* flags.
    pub flags: c_int,
    /// What the agent is to know beyond that.
    pub extra: OpenFlags,
    /// Makes the system call with these flags.
    pub call: Call<'c>,
}

impl Open<'_> {
    fn has(&self, flag: u32) -> bool {
        self.flags as u32 & flag == flag
    }

    fn writes(&self) -> bool {
        self.flags as u32 & k::O_ACCMODE != k::O_RDONLY && !self.has(k::O_PATH)
    }

    /// Opens `path`; `Err` gives the place back where it is in no mount.
    pub fn run(&self, dirfd: c_int, path: *const c_char, room: &mut PathBuf) -> Result<Answer, Place> {
        let place = match place::at(dirfd, path, room) {
            Ok(place) => place,
            Err(errno) => return Ok(Err(errno)),
        };
        let named = self.has(k::O_CREAT | k::O_EXCL) || self.has(k::O_NOFOLLOW);
        let place =
            if self.writes() || self.has(k::O_CREAT) { place::by_links(place, Some(!named)) } else { place };
        let Some(index) = place.mount else { return Err(place) };
        Ok(self.within(index, place, path, room))
    }

    /// Opens what lies at `place` in mount `index`.
    fn within(&self, index: usize, place: Place, path: *const c_char, room: &mut PathBuf) -> Answer {
        let changes = (self.has(k::O_CREAT) || self.has(k::O_TRUNC)) && !self.has(k::O_PATH);
        let named = changes && !self.has(k::O_TMPFILE);
        let (mut before, mut tries) = (Before::new(index), 0);
        loop {
            let answer = if named {
                self.changing(index, place, path, room, &mut before)
            } else {
                self.plain(index, place)
            };
            match answer {
                LACKS => before.ask(place)?,
                Err(errno) if is_guarded(errno, self.flags, place, &mut tries) => {}
                answer => return answer,
            }
        }
    }

    fn plain(&self, index: usize, place: Place) -> Answer {
        let fd = absent::reached(place, || (self.call)(place.dirfd, place.path, self.flags))? as c_int;
        if self.writes() {
            self.opened_ungated(index, fd);
        } else {
            to_read(place, fd, self.flags);
        }
        Ok(fd as usize)
    }

    /// After an open for writing that changed nothing.
    fn opened_ungated(&self, index: usize, fd: c_int) {
        fds::forget(fd);
        let Ok(stat) = sys::fstat(fd) else { return };
        if sys::is_regular(&stat) && of_mount(index, &stat) {
            fds::remember(fd, Known::opened(index, self.flags).with_ino(stat.st_ino));
            tell::note(index, &Intent::Opened { ino: stat.st_ino, flags: self.open_flags(fd) });
        }
    }

    fn open_flags(&self, fd: c_int) -> OpenFlags {
        let flags = if streams::has(fd) { self.extra.with(OpenFlags::UNSEEN) } else { self.extra };
        if self.has(k::O_APPEND) { flags.with(OpenFlags::APPEND) } else { flags }
    }

    fn changing(
        &self,
        index: usize,
        place: Place,
        path: *const c_char,
        room: &mut PathBuf,
        before: &mut Before,
    ) -> Answer {
        let follow = if self.has(k::O_NOFOLLOW) { k::AT_SYMLINK_NOFOLLOW } else { 0 };
        // New files are changes that wait for the backend, as written bytes are.
        control::throttle(index);
        let mut inside = gate::enter(index, 0)?;
        let exclusive = self.has(k::O_CREAT | k::O_EXCL);
        // Creating it straight away spares a look where there is nothing, and costs one more where there is
        // something: do what was right the last time.
        if self.has(k::O_CREAT) && (exclusive || CREATES.load(Ordering::Relaxed)) {
            let answer = self.create(index, place, path, room, &mut inside, before);
            if exclusive || answer != EXISTS {
                return answer;
            }
            CREATES.store(false, Ordering::Relaxed);
        }
        match sys::stat_at(place.dirfd, place.path, follow) {
            Ok(stat) if sys::is_regular(&stat) && of_mount(index, &stat) => {
                if self.has(k::O_TRUNC) && residency::is_partial(index) {
                    inside.leave();
                    let flags = self.flags as u32 & !(k::O_ACCMODE | k::O_CREAT | k::O_TRUNC | k::O_NONBLOCK);
                    let flags = (flags | write::TO_RESIZE) as c_int;
                    inside = loop {
                        let opened = (self.call)(place.dirfd, place.path, flags);
                        let held = write::resizing_opened(index, opened, 0)?;
                        let inside = gate::enter(index, stat.st_ino)?;
                        if held.still() {
                            break inside;
                        }
                    };
                }
                inside.is_about(stat.st_ino);
                if self.has(k::O_TRUNC) {
                    inside.tell_range(stat.st_ino, 0, u64::MAX);
                }
                let fd = (self.call)(place.dirfd, place.path, self.flags)? as c_int;
                let ino = self.opened(index, &inside, fd);
                // Between the two another file may have taken the name.
                if ino.is_some_and(|ino| ino != stat.st_ino) {
                    names::tell_by_path(index, fd);
                }
                if self.has(k::O_TRUNC)
                    && let (Some(ino), again) = (ino, inside.overtaken())
                    && (again || ino != stat.st_ino)
                {
                    inside.tell_range(ino, 0, u64::MAX);
                }
                Ok(fd as usize)
            }
            // A FIFO may block here, and a cut would wait for it.
            Ok(_) => {
                inside.leave();
                self.plain(index, place)
            }
            Err(_) if !self.has(k::O_CREAT) => {
                let done = (self.call)(place.dirfd, place.path, self.flags);
                if done == Err(Errno::of(errno::ENOENT)) && before.seeks() { LACKS } else { done }
            }
            Err(_) => match self.create(index, place, path, room, &mut inside, before) {
                // A link whose target is not there yet.
                EXISTS if before.seeks() => LACKS,
                // A dangling symbolic link, or somebody was quicker.
                EXISTS => {
                    let fd = (self.call)(place.dirfd, place.path, self.flags)?;
                    self.opened(index, &inside, fd as c_int);
                    names::tell_by_path(index, fd as c_int);
                    Ok(fd)
                }
                answer => {
                    CREATES.store(true, Ordering::Relaxed);
                    answer
                }
            },
        }
    }

    /// Creates the file, inside the gate and told; [`EXISTS`] where there is something of that name.
    fn create(
        &self,
        index: usize,
        place: Place,
        path: *const c_char,
        room: &mut PathBuf,
        inside: &mut gate::Inside,
        before: &mut Before,
    ) -> Answer {
        let translated = core::ptr::eq(place.path, room.c_str());
        let place = if translated { place } else { place::owned(place.dirfd, path, room)? };
        let entry = Entry::find(index, place.dirfd, room);
        if before.lacks(Change::Create, entry, place.dirfd, place.path) {
            return LACKS;
        }
        if let Some(entry) = entry {
            inside.is_about(entry.dir);
            inside.tell(&entry.intent(room));
        }
        let fd = (self.call)(place.dirfd, place.path, self.flags | k::O_EXCL as c_int)?;
        if let Some(ino) = self.opened(index, inside, fd as c_int) {
            // All of it is new: no write need find out where it writes.
            inside.tell_range(ino, 0, u64::MAX);
        }
        match entry {
            Some(entry) if inside.overtaken() => inside.tell(&entry.intent(room)),
            Some(_) => {}
            None => tell::lost(),
        }
        Ok(fd)
    }

    /// After an open inside the gate: tells and remembers the file; its inode where it is one of the mount.
    fn opened(&self, index: usize, inside: &gate::Inside, fd: c_int) -> Option<u64> {
        fds::forget(fd);
        let stat = sys::fstat(fd).ok()?;
        if !sys::is_regular(&stat) || !of_mount(index, &stat) {
            return None;
        }
        if self.writes() {
            inside.tell(&Intent::Opened { ino: stat.st_ino, flags: self.open_flags(fd) });
        }
        fds::remember(fd, Known::opened(index, self.flags).with_ino(stat.st_ino));
        Some(stat.st_ino)
    }
}

/// After an open that does not wait has failed: whether that may be because the agent guards the file from programs that
/// do not ask (by a lease, which it gives back to those that do). Then it was asked to, and the open is to be made again.
#[cold]
#[inline(never)]
fn is_guarded(errno: Errno, flags: c_int, place: Place, tries: &mut u32) -> bool {
    const TRIES: u32 = 2000;
    let guarded = errno == Errno::of(errno::EAGAIN)
        && flags as u32 & k::O_NONBLOCK != 0
        && residency::is_any_partial()
        && *tries < TRIES;
    if !guarded {
        return false;
    }
    *tries += 1;
    let shares = control::table().is_some_and(|table| table.shares_device);
    let mount = place.mount.filter(|_| !shares).or_else(|| place::mount_of_file(place));
    let let_in = mount
        .zip(sys::stat_at(place.dirfd, place.path, 0).ok())
        .is_some_and(|(index, stat)| ask::request(index, Ask::Open { ino: stat.st_ino }).is_ok());
    if !let_in || *tries > 1 {
        sys::sleep_ns(1_000_000);
    }
    true
}

/// Whether a file lies on the file system of mount `index`.
pub fn of_mount(index: usize, stat: &Stat) -> bool {
    control::is_on(index, stat)
}

/// After an open by a name outside every mount: where it has created or emptied a file, a symbolic link may have led it
/// into one. (An open that changed nothing is looked up at the first write.)
#[inline(always)]
pub fn led(fd: c_int, flags: c_int) {
    fds::forget(fd);
    if fd >= 0 && (flags as u32 & (k::O_CREAT | k::O_TRUNC) != 0 || streams::has(fd)) {
        led_to(fd);
    }
}

/// Opens a place outside every mount, through no symbolic link, so that it cannot have led into a mount: nothing need be
/// looked up afterwards. `None` where a link, or an older kernel, leaves that open.
#[inline(never)]
pub fn unled(place: Place, flags: c_int, mode: u32) -> Option<Answer> {
    let creates = flags as u32 & k::O_CREAT != 0;
    if flags as u32 & (k::O_PATH | k::O_TMPFILE) != 0 || !place::leads_in_by_link_only(place) {
        return None;
    }
    let how = k::open_how {
        flags: u64::from(flags as u32 | k::O_LARGEFILE),
        mode: if creates { u64::from(mode & 0o7777) } else { 0 },
        resolve: u64::from(k::RESOLVE_NO_SYMLINKS),
    };
    let answer = sys::openat2(place.dirfd, place.path, &raw const how, size_of::<k::open_how>());
    match answer {
        Err(Errno(number))
            if matches!(
                number as u32,
                errno::ELOOP | errno::ENOSYS | errno::EPERM | errno::EINVAL | errno::EAGAIN
            ) =>
        {
            None
        }
        answer => {
            if let Ok(fd) = answer {
                fds::remember_outside(fd as c_int);
            }
            Some(answer)
        }
    }
}

#[inline(never)]
fn led_to(fd: c_int) {
    // Tells all there is to tell of a file that is open for writing.
    let known = fds::known(fd);
    if let Some(index) = known.mount().filter(|_| !known.writable()) {
        names::tell_by_path(index, fd);
    }
}

/// Opens a path as open(2) does; `real` is the function behind.
#[inline(always)]
fn open_at(
    dirfd: c_int,
    path: *const c_char,
    flags: c_int,
    mode: u32,
    real: impl Fn(Place) -> c_int,
) -> c_int {
    const CHANGES: u32 = k::O_ACCMODE | k::O_CREAT | k::O_TRUNC | k::O_TMPFILE & !k::O_DIRECTORY;
    if flags as u32 & CHANGES != 0 {
        return open_to_change(dirfd, path, flags, mode, &real);
    }
    let mut room = PathBuf::new();
    match place::at(dirfd, path, &mut room) {
        Ok(place) => {
            let mut tries = 0;
            let fd = loop {
                let fd = absent::found(place, || real(place));
                if fd >= 0 || !is_guarded(get_errno(), flags, place, &mut tries) {
                    break fd;
                }
            };
            if fd >= 0 {
                to_read(place, fd, flags);
                return new(fd);
            } else if place.mount.is_none() {
                return detour::by_link(place, |inside| my_open_again(inside, flags, mode)).unwrap_or(fd);
            }
            fd
        }
        Err(errno) => fail(errno),
    }
}

/// An open by the path that a link from outside amounts to.
#[cold]
#[inline(never)]
fn my_open_again(path: *const c_char, flags: c_int, mode: u32) -> c_int {
    // SAFETY: a C string of ours.
    unsafe { my_open(path, flags, mode) }
}

/// After an open to read.
#[inline(always)]
pub fn to_read(place: Place, fd: c_int, flags: c_int) {
    match place.mount {
        // Which of the mounts a link has led to is looked up when it matters.
        Some(_) if control::table().is_some_and(|table| table.shares_device) => {
            fds::forget(fd);
        }
        Some(index) => fds::remember(fd, Known::opened(index, flags)),
        None => led(fd, flags),
    }
}

#[inline(never)]
fn open_to_change(
    dirfd: c_int,
    path: *const c_char,
    flags: c_int,
    mode: u32,
    real: &dyn Fn(Place) -> c_int,
) -> c_int {
    let mut room = PathBuf::new();
    let open = Open {
        flags,
        extra: OpenFlags::default(),
        call: &|dirfd, path, flags| sys::openat(dirfd, path, flags | k::O_LARGEFILE as c_int, mode),
    };
    match open.run(dirfd, path, &mut room) {
        Ok(Ok(fd)) => new(fd as c_int),
        Ok(Err(errno)) => fail(errno),
        Err(place) => {
            // A mode of nothing: the fortified functions, which end the program where they are to create a file.
            // And one that only opens is left to libc, where it can be cancelled while it waits for a FIFO's reader.
            let creates = flags as u32 & k::O_CREAT != 0;
            let changes = (creates || flags as u32 & k::O_TRUNC != 0) && (mode != 0 || !creates);
            match changes.then(|| unled(place, flags, mode)).flatten() {
                Some(Ok(fd)) => new(fd as c_int),
                // It has met no link on its way, so none has led it astray.
                Some(Err(errno)) => fail(errno),
                None => {
                    if creates && let Err(errno) = absent::present(place) {
                        return fail(errno);
                    }
                    let fd = absent::found(place, || real(place));
                    if fd < 0 {
                        return detour::by_link(place, |inside| my_open_again(inside, flags, mode))
                            .unwrap_or(fd);
                    }
                    led(fd, flags);
                    new(fd)
                }
            }
        }
    }
}

hook! {
    unsafe fn open | open64 | __open | __open64(path: *const c_char, flags: c_int, mode: u32) -> c_int => my_open {
        open_at(CWD, path, flags, mode, |place| real!(open)(place.path, flags, mode))
    }
}

hook! {
    unsafe fn openat | openat64(dirfd: c_int, path: *const c_char, flags: c_int, mode: u32) -> c_int => my_openat {
        open_at(dirfd, path, flags, mode, |place| real!(openat)(place.dirfd, place.path, flags, mode))
    }
}

hook! {
    unsafe fn creat | creat64(path: *const c_char, mode: u32) -> c_int => my_creat {
        let flags = (k::O_CREAT | k::O_WRONLY | k::O_TRUNC) as c_int;
        open_at(CWD, path, flags, mode, |place| real!(creat)(place.path, mode))
    }
}

hook! {
    unsafe fn __open_2 | __open64_2(path: *const c_char, flags: c_int) -> c_int => my_open_2 {
        open_at(CWD, path, flags, 0, |place| real!(__open_2)(place.path, flags))
    }
}

hook! {
    unsafe fn __openat_2 | __openat64_2(dirfd: c_int, path: *const c_char, flags: c_int) -> c_int => my_openat_2 {
        open_at(dirfd, path, flags, 0, |place| real!(__openat_2)(place.dirfd, place.path, flags))
    }
}

/// openat2(2), by whatever name it is called: `how` is the app's.
///
/// # Safety
/// `how` must point to `size` bytes.
pub unsafe fn open_how(dirfd: c_int, path: *const c_char, how: *const k::open_how, size: usize) -> Answer {
    const KNOWN: usize = size_of::<k::open_how>();
    if sys::leads_nowhere(how) || sys::leads_nowhere(path) || size < KNOWN {
        return sys::openat2(dirfd, path, how, size);
    }
    // SAFETY: the caller vouches for `size` bytes.
    let (asked, more) = unsafe {
        let bytes = core::slice::from_raw_parts(how.cast::<u8>(), size);
        (how.read_unaligned(), bytes.get(KNOWN..).unwrap_or(&[]))
    };
    let mut room = PathBuf::new();
    if more.iter().any(|byte| *byte != 0) {
        // What a newer structure asks for, an intent cannot say: in a mount it is refused as an older kernel does it.
        let place = place::at(dirfd, path, &mut room)?;
        let e2big = Err(Errno::of(errno::E2BIG));
        return if place.mount.is_some() { e2big } else { sys::openat2(place.dirfd, place.path, how, size) };
    }
    let open = Open {
        flags: asked.flags as c_int,
        extra: OpenFlags::default(),
        call: &|dirfd, path, flags: c_int| {
            const FLAGS: u64 = u32::MAX as u64;
            // Only what creates takes a mode.
            let kept = u64::from(flags as u32 & k::O_CREAT) == asked.flags & u64::from(k::O_CREAT);
            let mode = if kept { asked.mode } else { 0 };
            let how = k::open_how { flags: asked.flags & !FLAGS | u64::from(flags as u32), mode, ..asked };
            sys::openat2(dirfd, path, &raw const how, KNOWN)
        },
    };
    if asked.resolve & u64::from(k::RESOLVE_BENEATH | k::RESOLVE_IN_ROOT) != 0 {
        return confined(&open, dirfd, path, asked.resolve, &mut room);
    }
    match open.run(dirfd, path, &mut room) {
        Ok(answer) => answer,
        Err(place) => {
            if open.has(k::O_CREAT) {
                absent::present(place)?;
            }
            let answer = absent::reached(place, || (open.call)(place.dirfd, place.path, open.flags));
            if let Ok(fd) = answer {
                led(fd as c_int, open.flags);
            }
            answer
        }
    }
}

/// Opens a path that is not let out of what `dirfd` leads to: it starts from there, whatever it looks like, and nothing of
/// it is translated.
fn confined(open: &Open<'_>, dirfd: c_int, path: *const c_char, resolve: u64, room: &mut PathBuf) -> Answer {
    // SAFETY: the app handed a C string.
    let bytes = unsafe { CStr::from_ptr(path) }.to_bytes();
    let start = bytes.iter().position(|byte| *byte != b'/').unwrap_or(bytes.len());
    let beneath = resolve & u64::from(k::RESOLVE_IN_ROOT) == 0;
    let Some(index) = place::mount_of(dirfd).filter(|_| start == 0 || !beneath) else {
        // Outside, or for the kernel to refuse.
        return (open.call)(dirfd, path, open.flags);
    };
    // The descriptor is the root: the path is one below it.
    room.push(bytes.get(start..).filter(|rest| !rest.is_empty()).unwrap_or(b"."))?;
    let here = Place { mount: Some(index), dirfd, path: room.c_str() };
    let fd = open.within(index, here, here.path, room)?;
    if open.has(k::O_CREAT) {
        // Links on its way are followed otherwise than where we looked.
        names::tell_by_path(index, fd as c_int);
    }
    Ok(fd)
}

hook! {
    unsafe fn openat2(dirfd: c_int, path: *const c_char, how: *const k::open_how, size: usize) -> c_int => my_openat2 {
        new(crate::hook::answer(open_how(dirfd, path, how, size)))
    }
}

hook! {
    unsafe fn open_by_handle_at(mount: c_int, handle: *mut c_void, flags: c_int) -> c_int => my_open_by_handle_at {
        let fd = real!(open_by_handle_at)(mount, handle, flags);
        led(fd, flags);
        new(fd)
    }
}
