//! The protocol between agent and Durable Object, as docs/wire.md says it: frames, messages, errors. Pure bytes: it must
//! not know what carries them, nor what a message leads to.

pub mod error;
pub mod frame;
pub mod messages;
#[cfg(test)]
mod vectors;

pub use self::error::{Code, Result, WireError};
pub use self::frame::{Assembler, Decoder, Frame, Message};
