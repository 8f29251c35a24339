//! Directories. Names that come out of one are relative, so only what goes in is translated.

use core::ffi::{c_char, c_int, c_uint, c_void};

use crate::hook::{fail, hook, path_hook, real};
use crate::place::{self, CWD};
use crate::sys::PathBuf;
use crate::{detour, fds};

path_hook! { fn scandir | scandir64(path, list: *mut c_void, filter: *const c_void, order: *const c_void) -> c_int => my_scandir }
path_hook! {
    fn scandirat | scandirat64(@dirfd, path, list: *mut c_void, filter: *const c_void, order: *const c_void) -> c_int => my_scandirat
}

unsafe extern "C" {
    fn dirfd(stream: *mut c_void) -> c_int;
}

hook! {
    unsafe fn opendir(path: *const c_char) -> *mut c_void => my_opendir {
        let mut room = PathBuf::new();
        match place::at(CWD, path, &mut room) {
            Ok(place) => {
                let stream = real!(opendir)(place.path);
                if stream.is_null() {
                    return detour::by_link(place, |inside| my_opendir(inside)).unwrap_or(stream);
                }
                fds::forget(dirfd(stream));
                stream
            }
            Err(errno) => fail(errno),
        }
    }
}

hook! {
    unsafe fn closedir(stream: *mut c_void) -> c_int => my_closedir {
        if !stream.is_null() {
            fds::forget(dirfd(stream));
        }
        real!(closedir)(stream)
    }
}

hook! {
    unsafe fn inotify_add_watch(fd: c_int, path: *const c_char, mask: c_uint) -> c_int => my_inotify_add_watch {
        let mut room = PathBuf::new();
        match place::at(CWD, path, &mut room) {
            Ok(place) => real!(inotify_add_watch)(fd, place.path, mask),
            Err(errno) => fail(errno),
        }
    }
}
