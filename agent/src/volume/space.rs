//! What a volume offers: how large it is and how much is left, for statfs(2) and `df`. It must not know who is shown it.
//!
//! This is the one place that decides it. A quota, where there is one, stands before what the backend has.

use std::path::Path;

use storeshim_protocol::Space;

/// The size of a volume whose backend has no limit, in bytes (1 PiB), and the number of its inodes.
const BOUNDLESS: Space =
    Space { total_bytes: 1 << 50, free_bytes: 1 << 50, total_inodes: 1 << 40, free_inodes: 1 << 40 };

/// What a volume of `bytes` in `files` offers on a backend that has `room` (`None`: no limit).
pub fn of_volume(bytes: u64, files: u64, room: Option<Space>) -> Space {
    // Others may share a backend that is limited: what it has left counts, whoever has used the rest.
    room.unwrap_or(Space {
        free_bytes: BOUNDLESS.total_bytes.saturating_sub(bytes),
        free_inodes: BOUNDLESS.total_inodes.saturating_sub(files),
        ..BOUNDLESS
    })
}

/// What the filesystem of a directory has (statvfs(3)); `None` where it does not say.
pub fn of_directory(path: &Path) -> Option<Space> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
    let space = Space {
        total_bytes: bytes(stat.blocks()),
        free_bytes: bytes(stat.blocks_available()),
        total_inodes: stat.files(),
        free_inodes: stat.files_available(),
    };
    (space.total_bytes != 0).then_some(space)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boundless_backend_shows_what_the_volume_uses() {
        let space = of_volume(5 << 30, 7, None);
        assert_eq!(space.total_bytes - space.free_bytes, 5 << 30);
        assert_eq!(space.total_inodes - space.free_inodes, 7);
        assert_eq!(of_volume(u64::MAX, u64::MAX, None).free_bytes, 0);
    }

    #[test]
    fn a_directory_has_what_its_filesystem_has() {
        let dir = tempfile::tempdir().unwrap();
        let room = of_directory(dir.path()).unwrap();
        assert!(room.total_bytes >= room.free_bytes && room.total_bytes > 0);
        assert_eq!(of_volume(1, 1, Some(room)), room);
        assert_eq!(of_directory(&dir.path().join("nothing")), None);
    }
}
