//! The JSON protocol, for Workers that were written for it: one object per frame, led by its length. It shows the same
//! files as the binary protocol; the volume itself needs the latter.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, BytesMut};
use serde_json::{Value, json};

use super::files::{Files, LARGEST_PAGE, LARGEST_PART, Part, check_path, file_error};
use super::link::Link;
use super::transport::{MAX_JSON, Sink, Source};
use super::wire::{Code, Result, WireError};

/// Most bytes of a file that an answer can hold.
const LARGEST_READ: u64 = 8 << 20;

/// Serves a connection until it ends. `first` is what was read from it already.
pub async fn serve(link: &Arc<Link>, mut source: Source, mut sink: Sink, mut buffer: BytesMut) {
    let why = match serve_on(link, &mut source, &mut sink, &mut buffer).await {
        Ok(()) => return,
        Err(error) => error,
    };
    if why.code != Code::Unavailable {
        tracing::warn!("a JSON connection ended: {why}");
        let mut last = encode(&json!({ "id": "", "error": why.message }));
        // Whoever does not listen need not know.
        let _ = sink.write(&mut last).await;
    }
    sink.close().await;
}

async fn serve_on(
    link: &Arc<Link>,
    source: &mut Source,
    sink: &mut Sink,
    buffer: &mut BytesMut,
) -> Result<()> {
    let broke = |error: std::io::Error| WireError::unavailable(format!("it broke: {error}"));
    loop {
        while let Some(message) = next(buffer)? {
            // What asks nothing is an answer, and we have asked nothing.
            if message.get("operation").is_some_and(Value::is_string) {
                let link_of_files = Arc::clone(link);
                let answer = link.handle.spawn_blocking(move || answer(&link_of_files, &message)).await;
                let answer = answer.map_err(|error| WireError::unavailable(error.to_string()))??;
                sink.write(&mut encode(&answer)).await.map_err(broke)?;
            }
        }
        if source.read(buffer).await.map_err(broke)? == 0 {
            return Ok(());
        }
    }
}

fn encode(message: &Value) -> Vec<u8> {
    let text = message.to_string();
    // Far below 4 GiB.
    let mut frame = u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
    frame.extend_from_slice(text.as_bytes());
    frame
}

/// The next object; `None` until more bytes have come.
fn next(buffer: &mut BytesMut) -> Result<Option<Value>> {
    let Some(length) = buffer.first_chunk().map(|length| u32::from_be_bytes(*length) as usize) else {
        return Ok(None);
    };
    if length > MAX_JSON {
        return Err(WireError::new(
            Code::TooLarge,
            format!(
                "a JSON frame of {length} bytes was announced, where {MAX_JSON} are allowed; read and write in pieces"
            ),
        ));
    }
    let Some(text) = buffer.get(4..4 + length) else { return Ok(None) };
    let message = serde_json::from_slice::<Value>(text).ok().filter(Value::is_object);
    buffer.advance(4 + length);
    message.map(Some).ok_or_else(|| {
        WireError::new(Code::Protocol, "a JSON frame does not hold a JSON object; send one object per frame")
    })
}

/// The answer to a request; an error where it is none.
fn answer(link: &Link, message: &Value) -> Result<Value> {
    let id = message.get("id").filter(|id| id.is_string() || id.is_number()).ok_or_else(|| {
        WireError::new(Code::Protocol, "a JSON request has no id that is a text or a number; give it one")
    })?;
    let mut answer = match link.files().and_then(|files| perform(&*files, message)) {
        Ok(answer) => answer,
        Err(error) if error.code == Code::Protocol => return Err(error),
        Err(error) => json!({ "error": error.message }),
    };
    if let Some(fields) = answer.as_object_mut() {
        fields.insert("id".into(), id.clone());
    }
    Ok(answer)
}

/// An optional number of a request.
fn count(message: &Value, name: &str) -> Result<Option<u64>> {
    match message.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or_else(|| malformed(name, "a whole number")),
    }
}

fn text<'a>(message: &'a Value, name: &str) -> Result<&'a str> {
    match message.get(name) {
        None | Some(Value::Null) => Ok(""),
        Some(value) => value.as_str().ok_or_else(|| malformed(name, "text")),
    }
}

fn malformed(name: &str, wanted: &str) -> WireError {
    WireError::new(Code::Refused, format!("the {name} of a JSON request is not {wanted}; correct it"))
}

fn perform(files: &dyn Files, message: &Value) -> Result<Value> {
    let path = inside(text(message, "path")?.as_bytes(), files.prefix());
    check_path(path)?;
    let (offset, size) = (count(message, "offset")?, count(message, "size")?);
    match text(message, "operation")? {
        "read" => {
            let bytes = read(files, path, offset.unwrap_or(0), size)?;
            Ok(json!({ "data": STANDARD.encode(bytes), "success": true }))
        }
        "write" => {
            let bytes = STANDARD.decode(text(message, "data")?).map_err(|_| {
                WireError::new(Code::Protocol, "the data of a JSON request is not base64; encode it so")
            })?;
            write(files, path, offset, &bytes)?;
            Ok(json!({ "bytesWritten": bytes.len(), "success": true }))
        }
        "stat" => {
            let stat = files.stat(path, true)?;
            let kind = stat.mode & libc::S_IFMT;
            Ok(json!({
                "stat": {
                    "size": stat.size, "mtime": stat.mtime_ms, "mode": stat.mode & 0o7777,
                    "isFile": kind == libc::S_IFREG, "isDirectory": kind == libc::S_IFDIR,
                },
                "success": true,
            }))
        }
        "readdir" => {
            let (mut names, mut more, mut after) = (Vec::new(), true, Vec::new());
            while more {
                let page;
                (more, page) = files.list(path, &after, LARGEST_PAGE)?;
                after = page.last().map(|(name, _)| name.clone()).unwrap_or_default();
                more &= !after.is_empty();
                names.extend(page.into_iter().map(|(name, _)| String::from_utf8_lossy(&name).into_owned()));
            }
            Ok(json!({ "files": names, "success": true }))
        }
        "unlink" => {
            files.unlink(path, false)?;
            Ok(json!({ "success": true }))
        }
        other => Err(WireError::new(
            Code::Refused,
            format!("the operation '{other}' is unknown; use read, write, stat, readdir or unlink"),
        )),
    }
}

/// The path from the volume's root: given so, or from where programs see the volume.
fn inside<'a>(path: &'a [u8], prefix: &[u8]) -> &'a [u8] {
    let below = path.strip_prefix(prefix).filter(|rest| rest.is_empty() || rest.starts_with(b"/"));
    let mut path = below.unwrap_or(path);
    while let Some(rest) = path.strip_prefix(b"/") {
        path = rest;
    }
    while let Some(rest) = path.strip_suffix(b"/") {
        path = rest;
    }
    path
}

fn read(files: &dyn Files, path: &[u8], offset: u64, size: Option<u64>) -> Result<Vec<u8>> {
    let length = match size {
        Some(size) => size,
        None => files.stat(path, true)?.size.saturating_sub(offset),
    };
    if length > LARGEST_READ {
        let what = format!("{length} bytes do not fit an answer; read {LARGEST_READ} at most at once");
        return Err(file_error(libc::EFBIG, &what));
    }
    let mut bytes = Vec::new();
    loop {
        let left = length.saturating_sub(bytes.len() as u64);
        let part = usize::try_from(left).unwrap_or(usize::MAX).min(LARGEST_PART);
        let (_, read) = files.read(path, offset.saturating_add(bytes.len() as u64), part)?;
        let end = read.len() < part;
        bytes.extend_from_slice(&read);
        if end || bytes.len() as u64 >= length {
            return Ok(bytes);
        }
    }
}

fn write(files: &dyn Files, path: &[u8], offset: Option<u64>, bytes: &[u8]) -> Result<()> {
    let (nonce, replace) = (rand::random(), offset.is_none());
    let mut parts = bytes.chunks(LARGEST_PART).peekable();
    let mut at = offset.unwrap_or(0);
    loop {
        let bytes = parts.next().unwrap_or_default();
        let last = parts.peek().is_none();
        files.write(path, &Part { nonce, last, replace, parents: true, mode: 0o644, offset: at, bytes })?;
        at = at.saturating_add(bytes.len() as u64);
        if last {
            return Ok(());
        }
    }
}
