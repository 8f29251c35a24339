//! The numbers that only x86-64 has: what newer calls below a descriptor have replaced.

use core::ffi::c_long;

use super::table::routes;
use super::words::{Said, Words};
use crate::hooks::{attr, fd, name, open, readlink, stat};
use crate::sys::k;

routes! { w;
    __NR_open => open::my_open(0, 1, 2);
    __NR_creat => open::my_creat(0, 1);
    __NR_dup2 => fd::my_dup2(0, 1);
    __NR_mkdir => name::my_mkdir(0, 1);
    __NR_rmdir => name::my_rmdir(0);
    __NR_mknod => name::my_mknod(0, 1, 2);
    __NR_unlink => name::my_unlink(0);
    __NR_symlink => name::my_symlink(0, 1);
    __NR_link => name::my_link(0, 1);
    __NR_rename => name::my_rename(0, 1);
    __NR_chmod => attr::my_chmod(0, 1);
    __NR_chown => attr::my_chown(0, 1, 2);
    __NR_lchown => attr::my_lchown(0, 1, 2);
    __NR_utime => attr::my_utime(0, 1);
    __NR_utimes => attr::my_utimes(0, 1);
    __NR_futimesat => attr::my_futimesat(0, 1, 2);
    __NR_stat => stat::my_stat(0, 1);
    __NR_getdents => { crate::absent::listing(w.get(0)).and_then(|()| w.call()) };
    __NR_lstat => stat::my_lstat(0, 1);
    __NR_access => { w.translated(0) };
    __NR_readlink => readlink::my_readlink(0, 1, 2);
}
