//! Every function that stands in libc's place, one family per file.

mod aio;
mod attr;
mod copy;
mod cwd;
mod dir;
mod exec;
mod fd;
mod fts;
mod ftw;
mod glob;
mod io;
mod mmap;
mod name;
mod open;
mod other;
mod readlink;
mod socket;
mod space;
mod spawn;
mod stat;
mod stdio;
mod sync;
mod syscall;
mod temp;
mod words;
