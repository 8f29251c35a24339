//! Asking about a path: translated, nothing told.

use core::ffi::{c_int, c_long, c_void};

use crate::hook::path_hook;

path_hook! { fn stat | stat64(path, out: *mut c_void) -> c_int => my_stat }
path_hook! { fn lstat | lstat64(path, out: *mut c_void) -> c_int => my_lstat }
path_hook! { fn fstatat | fstatat64(@dirfd, path, out: *mut c_void, flags: c_int) -> c_int => my_fstatat }
path_hook! { fn statx(@dirfd, path, flags: c_int, mask: u32, out: *mut c_void) -> c_int => my_statx }

// Programs linked against glibc before 2.33.
path_hook! { fn __xstat | __xstat64[version: c_int](path, out: *mut c_void) -> c_int => my_xstat }
path_hook! { fn __lxstat | __lxstat64[version: c_int](path, out: *mut c_void) -> c_int => my_lxstat }
path_hook! { fn __fxstatat | __fxstatat64[version: c_int](@dirfd, path, out: *mut c_void, flags: c_int) -> c_int => my_fxstatat }

path_hook! { fn access(path, mode: c_int) -> c_int => my_access }
path_hook! { fn faccessat(@dirfd, path, mode: c_int, flags: c_int) -> c_int => my_faccessat }
path_hook! { fn eaccess(path, mode: c_int) -> c_int => my_eaccess }
path_hook! { fn euidaccess(path, mode: c_int) -> c_int => my_euidaccess }

path_hook! { fn statfs | statfs64(path, out: *mut c_void) -> c_int => my_statfs }
path_hook! { fn __statfs(path, out: *mut c_void) -> c_int => my_statfs_old }
path_hook! { fn statvfs | statvfs64(path, out: *mut c_void) -> c_int => my_statvfs }
path_hook! { fn pathconf(path, name: c_int) -> c_long => my_pathconf }
path_hook! { fn ftok(path, project: c_int) -> c_int => my_ftok }
path_hook! { fn name_to_handle_at(@dirfd, path, handle: *mut c_void, id: *mut c_int, flags: c_int) -> c_int => my_handle }
