#!/usr/bin/env bash
# Goes through the steps of docker/Dockerfile and of the examples' images without a container engine: puts the files of the image
# into a directory, runs its entry point there by chroot against a volume in a directory, loses the disk, runs it again, and says
# how large the layer of storeshim is. Needs root. `check.sh PROGRAM LIBRARY` (release builds, stripped here as the image does).
set -euo pipefail
program=${1:?the agent, such as target/release/storeshim} library=${2:?the shim, such as target/release/libstoreshim.so}
root=$(mktemp -d /tmp/storeshim-image-XXXXXX)
# Never into what is mounted there.
trap 'umount "$root"/disk/{proc,backend} 2>/dev/null || true; rm -rf --one-file-system "$root"' EXIT

# COPY --from=agent-glibc /out/ /usr/local/
install -Ds "$program" "$root/image/usr/local/bin/storeshim"
install -Ds "$library" "$root/image/usr/local/lib/libstoreshim.so"
layer=$(du -sb "$root/image" | cut -f1)

# FROM debian: only what the entry point and a shell need, from this machine.
base() {
    mkdir -p "$1"/{bin,proc,dev,tmp,run,etc,var/lib,root} "$1/storage"
    local needed file
    needed=$(for file in /bin/sh /bin/cat /bin/sync /usr/bin/env "$program"; do ldd "$file" 2>/dev/null | grep -o '/[^ ]*' || true; done | sort -u)
    for file in $needed; do install -D "$file" "$1$file"; done
    for file in sh cat sync env; do install -D "$(command -v $file)" "$1/bin/$file"; done
    mknod -m 666 "$1/dev/null" c 1 3 2>/dev/null || true
    mknod -m 666 "$1/dev/urandom" c 1 9 2>/dev/null || true
}

container() {
    rm -rf "$root/disk" && cp -a "$root/image" "$root/disk" && base "$root/disk"
    mkdir -p "$root/disk/backend" "$root/backend"
    mount --bind "$root/backend" "$root/disk/backend" && mount -t proc proc "$root/disk/proc"
    local said=0
    env -i PATH=/usr/local/bin:/bin HOME=/root STORESHIM_MOUNT="/storage=file:///backend,placement=identity" \
        "$(command -v chroot)" "$root/disk" /usr/local/bin/storeshim run -- "$@" || said=$?
    umount "$root/disk/proc" "$root/disk/backend"
    return $said
}

container sh -c 'echo kept > /storage/file && sync /storage/file'
rm -rf "$root/disk"
held=$(container cat /storage/file)
[ "$held" = kept ] || { echo "the file is lost: '$held'" >&2; exit 1; }
echo "the entry point works, and /storage outlives the disk"
echo "layer of storeshim: $((layer / 1024)) KiB (agent $(($(stat -c %s "$root/image/usr/local/bin/storeshim") / 1024)) KiB," \
    "shim $(($(stat -c %s "$root/image/usr/local/lib/libstoreshim.so") / 1024)) KiB)"
