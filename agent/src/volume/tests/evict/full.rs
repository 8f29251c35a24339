//! Tree and state directory on one disk that fills up, as they are by default: the index has room to say what goes, so that
//! something can go. Each needs to mount a small filesystem, which not everybody may.

use super::*;

const MIB: u64 = 1 << 20;

/// A filesystem of `size` MiB; `None` where nothing may be mounted.
fn disk(size: u64) -> Option<(tempfile::TempDir, Unmount)> {
    let dir = tempfile::tempdir().unwrap();
    let options = format!("size={size}m");
    let flags = nix::mount::MsFlags::empty();
    match nix::mount::mount(Some("tmpfs"), dir.path(), Some("tmpfs"), flags, Some(&*options)) {
        Ok(()) => {
            let unmount = Unmount(dir.path().to_path_buf());
            Some((dir, unmount))
        }
        Err(error) => {
            eprintln!("skipped: nothing can be mounted here ({error})");
            None
        }
    }
}

/// Everything that a node has of a volume on one disk, with a cache that is larger than it.
fn on(disk: &Path, name: &str) -> Site {
    let (tree, state) = (Some(disk.join("tree")), Some(disk.join("state")));
    Site::new(name, How { tree, state, cache_size: Some(1 << 40), ..How::default() })
}

/// A volume of `files` files of 5 MiB.
fn filled(name: &str, files: u64) {
    let site = Site::new(name, How::default());
    for n in 0..files {
        fs::write(site.path(&format!("f{n}")), noise(5 << 20, n)).unwrap();
    }
    site.volume.flush().unwrap();
}

/// Takes all that is free.
fn fill(at: &Path) {
    let filler = fs::File::options().create(true).append(true).open(at).unwrap();
    let mut filler = std::io::BufWriter::with_capacity(4096, filler);
    while std::io::Write::write_all(&mut filler, &[1; 4096]).is_ok() {}
    // What did not fit does not matter.
    let _ = filler.into_parts();
}

impl Site {
    fn is_right(&self, n: u64) {
        let name = format!("f{n}");
        let (file, ino) = (fs::File::open(self.path(&name)).unwrap(), self.ino(&name));
        let mut bytes = vec![0; 5 << 20];
        self.read(&file, ino, 0, &mut bytes);
        assert!(bytes == noise(5 << 20, n), "{name}");
    }

    fn names(&self) {
        assert_eq!(self.ask(Ask::Populate { ino: fs::metadata(&self.tree).unwrap().ino() }), 0);
    }

    #[track_caller]
    fn is_well(&self) {
        let status = self.volume.status();
        assert_eq!((status.state.as_str(), status.reason), ("ready", None));
    }
}

#[test]
fn a_volume_larger_than_its_disk_is_read_whole() {
    let Some((dir, _unmount)) = disk(64) else { return };
    filled("full-larger", 24);
    let site = on(dir.path(), "full-larger");
    site.names();
    for _ in 0..2 {
        (0..24).for_each(|n| site.is_right(n));
        site.is_well();
    }
    assert!(site.count("evictions") > 0);
}

#[test]
fn a_disk_that_somebody_else_fills_ends_nothing() {
    let Some((dir, _unmount)) = disk(64) else { return };
    filled("full-others", 6);
    let site = on(dir.path(), "full-others");
    site.names();
    (0..6).for_each(|n| site.is_right(n));
    let filler = dir.path().join("filler");
    let root = fs::metadata(&site.tree).unwrap().ino();
    // What is evicted for the index is taken at once.
    for n in 0..20 {
        fill(&filler);
        let name = format!("new{n}");
        // Whether it fits or not: it is looked at, and noted.
        let _ = fs::write(site.path(&name), noise(3000, n));
        site.sink.lock().unwrap().intent(Intent::Name { dir: root, name: name.as_bytes() });
        let _ = site.volume.flush();
        assert_eq!(site.volume.status().state, "ready", "{:?}", site.volume.status().reason);
    }
    let ask = Ask::Hydrate { ino: site.ino("f0"), start: 0, end: u64::MAX, pin: Pin::No };
    let errno = site.ask(ask);
    assert!([0, libc::EIO].contains(&errno), "{errno}");
    fs::remove_file(filler).unwrap();
    (0..6).for_each(|n| site.is_right(n));
    site.volume.flush().unwrap();
    site.is_well();
    assert_eq!(site.volume.status().dirty_entries, 0);
    let until = Instant::now() + Duration::from_secs(20);
    let reserve = dir.path().join("state/reserve");
    let reserved = || fs::metadata(&reserve).unwrap().blocks() * 512;
    while reserved() < MIB || site.volume.status().residency.eviction_error.is_some() {
        assert!(Instant::now() < until, "{} bytes are held back", reserved());
        std::thread::sleep(Duration::from_millis(50));
    }
    site.evict("");
    (0..6).for_each(|n| site.is_right(n));
}
