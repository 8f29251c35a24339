//! Who waits for a lease to end, as the kernel lists it (proc_locks(5)). It must not know what is leased.

/// What a file of /proc says at one instant, in bytes.
const PAGE: usize = 4000;

/// Processes of this pid namespace that wait for the lease on an inode to end (proc_locks(5)), each once. A list of more than a page
/// is not read at one instant: where a lease before it ends meanwhile, one that stands may be passed over, or met twice. So it is
/// read again.
pub(super) fn waiters(ino: u64) -> Vec<u32> {
    let read = || std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let text = read();
    let mut found = waiters_in(&text, ino);
    if text.len() > PAGE {
        found.extend(waiters_in(&read(), ino));
    }
    found.sort_unstable();
    found.dedup();
    found
}

fn waiters_in(locks: &str, ino: u64) -> Vec<u32> {
    let (mut found, mut ours) = (Vec::new(), None);
    for line in locks.lines() {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        match fields.as_slice() {
            [number, "LEASE", _, _, _, file, ..] => {
                let same = file.rsplit(':').next().is_some_and(|text| text.parse() == Ok(ino));
                ours = same.then_some(*number);
            }
            [number, "->", "LEASE", _, _, pid, ..] if ours == Some(*number) => {
                found.extend(pid.parse::<u32>())
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_a_lease_stands_below_it() {
        let text = "1: LEASE  ACTIVE    WRITE 9 fe:00:77 0 EOF\n\
                    1: -> LEASE  BREAKER   READ 8 <none>:0 0 EOF\n\
                    5: LEASE  BREAKING  READ 12102 fe:00:10059780 0 EOF\n\
                    5: -> LEASE  BREAKER   READ 12148 <none>:0 0 EOF\n\
                    5: -> LEASE  BREAKER   WRITE 12149 <none>:0 0 EOF\n\
                    6: FLOCK  ADVISORY  WRITE 11957 fe:00:10059780 0 EOF\n\
                    6: -> FLOCK  ADVISORY  READ 1 fe:00:10059780 0 EOF\n";
        assert_eq!(waiters_in(text, 10_059_780), [12148, 12149]);
        assert_eq!(waiters_in(text, 77), [8]);
        assert!(waiters_in(text, 0).is_empty());
    }
}
