//! What a volume offers: how large it is and how much is left, for statfs(2) and `df`. It must not know who is shown it.
//!
//! This is the one place that decides it. A quota, where there is one, stands before what the backend has.

use std::path::Path;

use storeshim_protocol::Space;

use super::Quota;

/// The size of a volume whose backend has no limit, in bytes (1 PiB), and the number of its inodes.
const BOUNDLESS: Space =
    Space { total_bytes: 1 << 50, free_bytes: 1 << 50, total_inodes: 1 << 40, free_inodes: 1 << 40 };

/// What a volume of `bytes` in `inodes` offers on a backend that has `room` (`None`: no limit).
pub fn of_volume(bytes: u64, inodes: u64, room: Option<Space>) -> Space {
    // Others may share a backend that is limited: what it has left counts, whoever has used the rest.
    room.unwrap_or(Space {
        free_bytes: BOUNDLESS.total_bytes.saturating_sub(bytes),
        free_inodes: BOUNDLESS.total_inodes.saturating_sub(inodes),
        ..BOUNDLESS
    })
}

/// What is left of `space` by a quota, of which `bytes` and `inodes` are used.
pub fn within(space: Space, quota: Quota, bytes: u64, inodes: u64) -> Space {
    let (all_bytes, all_inodes) =
        (quota.bytes.unwrap_or(space.total_bytes), quota.inodes.unwrap_or(space.total_inodes));
    let left = |quota: Option<u64>, used: u64, free: u64| {
        quota.map_or(free, |most| most.saturating_sub(used).min(free))
    };
    Space {
        // 0 would say that nothing is known.
        total_bytes: all_bytes.max(1),
        free_bytes: left(quota.bytes, bytes, space.free_bytes),
        total_inodes: all_inodes,
        free_inodes: left(quota.inodes, inodes, space.free_inodes),
    }
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
    fn a_quota_stands_before_what_the_backend_has() {
        let room = Space { total_bytes: 100, free_bytes: 40, total_inodes: 10, free_inodes: 9 };
        assert_eq!(within(room, Quota::default(), 50, 5), room);
        let quota = Quota { bytes: Some(60), inodes: Some(8) };
        let space = Space { total_bytes: 60, free_bytes: 10, total_inodes: 8, free_inodes: 3 };
        assert_eq!(within(room, quota, 50, 5), space);
        assert_eq!(within(room, quota, 70, 9), Space { free_bytes: 0, free_inodes: 0, ..space });
        assert_eq!(within(room, quota, 0, 0), Space { free_bytes: 40, free_inodes: 8, ..space });
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
