#!/usr/bin/env bash
# Goes through the steps of docker/Dockerfile without a container engine: puts the files of the image into a directory, runs its
# entry point there by chroot against a volume in a directory, loses the disk, runs it again, and says how large the layer of
# storeshim is. Needs root. `check.sh debian|alpine PROGRAM LIBRARY`: the agent, linked statically, and the shim; both are stripped
# here as in the image. `cargo xtask image` builds and checks them. The root of `alpine` has musl, and nothing of glibc.
set -euo pipefail
image=${1:?debian or alpine} program=${2:?the agent, such as target/static/release/storeshim}
library=${3:?the shim, such as target/release/libstoreshim.so}
here=$(cd "$(dirname "$0")" && pwd)
root=$(mktemp -d "${TMPDIR:-/tmp}/storeshim-image-XXXXXX")
# Never into what is mounted there.
trap 'umount -l "$root"/disk/{proc,backend} 2>/dev/null || true; rm -rf --one-file-system "$root"' EXIT
die() {
    echo "$image: $*" >&2
    exit 1
}
# is WHAT EXPECTED TEXT
is() { [ "$2" = "$3" ] || die "$1 is '$3' instead of '$2'"; }
# says TEXT WORDS…
says() {
    local text=$1 words
    shift
    for words; do [[ $text == *"$words"* ]] || die "'$words' is not in: $text"; done
}

# COPY --from=build /out/ /usr/local/
install -Ds "$program" "$root/image/usr/local/bin/storeshim"
install -Ds "$library" "$root/image/usr/local/lib/libstoreshim.so"
! readelf -lW "$root/image/usr/local/bin/storeshim" | grep -q INTERP || die "the agent needs a loader: link it statically"

# FROM: only what the entry point and a shell need, from this machine.
base() {
    mkdir -p "$1"/{bin,lib,proc,dev,tmp,run,etc,var/lib,root,storage,backend}
    local device
    # Every container has these.
    for device in "null 3" "zero 5" "random 8" "urandom 9"; do
        mknod -m 666 "$1/dev/${device% *}" c 1 "${device#* }"
    done
    "base_$image" "$1"
}
tools="cat cp dd df env ln mkdir mv sh tr"

# The program that writes and reads is one of ours, for this libc.
base_debian() {
    local tool file
    [ -e "$root/durable" ] || cc -O1 -Wall -Wextra -Werror -o "$root/durable" "$here/durable.c"
    install -D "$root/durable" "$1/bin/durable"
    for tool in $tools; do
        install "$(command -v "$tool")" "$1/bin/$tool"
        for file in $(ldd "$(command -v "$tool")" | grep -o '/[^ ]*'); do install -D "$file" "$1$file"; done
    done
}

# The shell is busybox, as there; but Debian's is static, so that no hook sees it.
base_alpine() {
    local tool loader
    loader=/lib/ld-musl-$(uname -m).so.1
    [ -e "$root/durable" ] || musl-gcc -O1 -Wall -Wextra -Werror -o "$root/durable" "$here/durable.c"
    install "$(command -v busybox)" "$root/durable" "$1/bin/"
    for tool in $tools; do ln -s busybox "$1/bin/$tool"; done
    install -D "$loader" "$1$loader"
    [ -z "$(find "$1" -name 'libc.so.6' -o -name 'ld-linux*')" ] || die "there is a glibc in the root"
}

# container STORE CMD…: on a new disk. Nothing is brought to the store unasked.
container() {
    local said=0 store=$1
    shift
    rm -rf --one-file-system "$root/disk" && cp -a "$root/image" "$root/disk" && base "$root/disk"
    mkdir -p "$root/backend"
    mount --bind "$root/backend" "$root/disk/backend" && mount -t proc proc "$root/disk/proc"
    env -i PATH=/usr/local/bin:/bin HOME=/root \
        STORESHIM_MOUNT="/storage=file:///backend/$store,placement=identity,max_lag=1h" \
        "$(command -v chroot)" "$root/disk" "$@" || said=$?
    # What looks at programs may look for a moment longer.
    umount -l "$root/disk/proc" "$root/disk/backend"
    return $said
}
entry=/usr/local/bin/storeshim

# What is synced is in the store at once; what the shell writes comes when the container ends.
container store "$entry" run -- sh -c \
    'durable /storage/synced kept && cp -a /backend/store /backend/synced && mkdir /storage/d && echo shell > /storage/d/shell'
is "a file that was synced" kept "$(container synced "$entry" run -- durable /storage/synced)"
is "a file that was synced" kept "$(container store "$entry" run -- durable /storage/synced)"
is "what a shell wrote" shell "$(container store "$entry" run -- durable /storage/d/shell)"
echo "$image: the entry point works, and /storage outlives the disk"

said=$(container doctor "$entry" doctor /bin/durable) || die "doctor finds trouble: $said"
case $image in
    debian) says "$said" "dynamic, glibc" "the shim loads" "by /bin/sh" "no change that was not told" ;;
    alpine) says "$said" "dynamic, musl" "the shim loads" "/bin/sh is static" ;;
esac
echo "$image: doctor sees the programs of the image"

kib() { echo $(($(stat -c %s "$root/image/usr/local/$1") / 1024)); }
packed=$(tar -C "$root/image" -c . | gzip | wc -c)
echo "$image: storeshim adds $(($(du -sb "$root/image" | cut -f1) / 1024)) KiB ($((packed / 1024)) KiB compressed):" \
    "agent $(kib bin/storeshim) KiB, shim $(kib lib/libstoreshim.so) KiB"
