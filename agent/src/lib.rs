//! The storeshim agent and its command line.
//!
//! Data flows one way: cli/http → mounts → volume → (meta, blob), and shim → protocol ← session → volume.
//! Nothing here runs inside the app; what the app must do is in `shim/`, what both must agree on in `protocol/`.

pub mod backend;
pub mod blob;
pub mod cli;
pub mod config;
pub mod doctor;
pub mod durable;
pub mod guard;
pub mod http;
pub mod meta;
pub mod mounts;
pub mod session;
pub mod volume;
