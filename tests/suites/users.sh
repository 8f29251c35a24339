#!/usr/bin/env bash
# Everyday commands (users.txt): what each prints, its status and the tree that it leaves behind are summed up in the case's name, so
# that a case which ends otherwise than natively is one that is missing there and one that is new here.
source "$(dirname "$0")/lib.sh"

prepare() {
    need rsync rsync
    need zip zip unzip
    need cpio cpio
    need setfattr attr
    need setfacl acl
    need git git
    need gcc gcc
    need make make
    need node nodejs
}

# The commands of a case, from the list.
body() { awk -v name="$1" '/^== /{ is = $2 == name; next } is' "$here/users.txt"; }

# Runs the commands of a case; all that can be seen of it goes to one file, in which the directory has one name everywhere.
attempt() { # name
    local out=$log/$1
    mkdir "$dir/$1" "$log/scratch"
    body "$1" >"$log/$1.sh"
    (
        cd "$dir/$1"
        export D=$dir/$1 OUT=$log/scratch HOME=$dir/$1 LC_ALL=C TZ=UTC
        umask 022
        ${WRAP:-} timeout 120 bash "$log/$1.sh"
    ) >"$out.out" 2>"$out.err" </dev/null && echo "status 0" >>"$out.out" || echo "status $?" >>"$out.out"
    # No sizes of directories, which are the filesystem's, and of links, which are as long as the directory's name.
    (cd "$dir/$1" && find . \( -type d -printf '%P d %m %U %G\n' -o -type f -printf '%P f %m %U %G %n %s\n' -o \
        -printf '%P %y %m %U %G %n %l\n' \)) | LC_ALL=C sort >"$out.tree"
    sed "s,$log/scratch,/OUT,g; s,$log,/LOG,g; s,$dir,/DIR,g" "$out.out" "$out.err" "$out.tree" >"$out.seen"
    rm -r "$log/scratch" "$out.out" "$out.err" "$out.tree" "$out.sh"
}

run() {
    local name
    cd "$dir"
    for name in ${ONLY:-$([ -n "${QUICK:-}" ] && echo cp-a mv-misc ln find tar sed shell || sed -n 's/^== //p' "$here/users.txt")}; do
        attempt "$name"
        verdict "$name/$(cksum <"$log/$name.seen" | cut -d' ' -f1)" pass
    done
}

main "$@"
