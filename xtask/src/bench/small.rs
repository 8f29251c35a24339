//! Small files as in a source tree. It must not know what is measured with them.

use std::fs;
use std::path::Path;

use anyhow::Result;

/// Files in a directory.
const TOGETHER: u64 = 100;

/// Makes small files in directories of a hundred each: text of up to 4 KiB, compressible by half. No two are the same, nor
/// are those of two seeds: what a volume has already would cost nothing.
///
/// # Errors
/// Where they cannot be written.
pub fn files(root: &Path, count: u64, seed: u64) -> Result<()> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64.wrapping_mul(2 * seed + 1);
    for number in 0..count {
        let dir = root.join(format!("directory-{}", number / TOGETHER));
        if number % TOGETHER == 0 {
            fs::create_dir_all(&dir)?;
        }
        let mut text = String::new();
        for _ in 0..=number % 64 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            text.push_str(&format!("{state:016x} {:016x} a line that repeats\n", !state));
        }
        fs::write(dir.join(format!("file-{number}")), text)?;
    }
    Ok(())
}
