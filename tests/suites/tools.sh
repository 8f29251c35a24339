#!/usr/bin/env bash
# Everyday tools on a real tree, every copy compared with the original outside the directory: tar, cp -a, rsync, git, gcc, make,
# zip, find, sort, sed -i, mv, hard links, xattrs, sparse files.
source "$(dirname "$0")/lib.sh"

prepare() {
    need rsync rsync
    need zip zip unzip
    need setfattr attr
    need git git
    need_source coreutils # about 2,500 files, links and modes
}

manifest() { (cd "$1" && ${2:-} find . \( -type f -printf '%P f %m %s\n' -o -type l -printf '%P l %l\n' -o -type d -printf '%P d %m\n' \) | LC_ALL=C sort); }
sums() { (cd "$1" && ${2:-} find . -type f -print0 | LC_ALL=C sort -z | ${2:-} xargs -0 sha256sum); }
like() { cmp <(manifest "$src") <(manifest "$1" "${WRAP:-env}") && cmp <(sums "$src") <(sums "$1" "${WRAP:-env}"); }

copy()  { wrap cp -a "$src" "$dir/cp" && like "$dir/cp"; }
tarred() { tar -C "$src" -cf - . | (mkdir tar && wrap tar -C "$dir/tar" -xpf -) && like "$dir/tar"; }
retar() { wrap tar -C "$dir/tar" -cf "$dir/a.tar" . && mkdir tar2 && wrap tar -C "$dir/tar2" -xpf "$dir/a.tar" && like "$dir/tar2"; }
synced() { wrap rsync -aH "$src/" "$dir/rsync/" && like "$dir/rsync" && [ -z "$(wrap rsync -aHci "$src/" "$dir/rsync/")" ]; }
resync() { wrap find "$dir/rsync" -name '*.c' -exec truncate -s -7 {} + && wrap rsync -aHc --inplace "$src/" "$dir/rsync/" && like "$dir/rsync"; }
renamed() { wrap mv "$dir/cp" "$dir/cp2" && like "$dir/cp2" && [ ! -e "$dir/cp" ]; }
zipped() { (cd "$dir/cp2" && wrap zip -qry "$dir/a.zip" .) && mkdir zip && (cd "$dir/zip" && wrap unzip -q "$dir/a.zip") && cmp <(sums "$src") <(sums "$dir/zip" "${WRAP:-env}"); }
edited() { wrap find "$dir/zip" -name '*.h' -exec sed -i 's/include/INCLUDE/g' {} + && cmp <(cat $(find "$src/src" -name '*.h' | LC_ALL=C sort) | sed 's/include/INCLUDE/g') <(cd "$dir/zip/src" && wrap cat $(find "$src/src" -name '*.h' -printf '%P\n' | LC_ALL=C sort)); }
raw() { mkdir -p "$1/info" && echo '* -text -ident -filter' >"$1/info/attributes"; } # git stores every byte as it is
repo() {
    (cd "$dir/cp2" && wrap git init -q . && raw .git && wrap git add -A -f . && wrap git -c user.name=t -c user.email=t@t commit -qm one &&
        wrap git gc -q && wrap git fsck --strict && [ -z "$(wrap git status --porcelain)" ]) || return
    wrap git clone -q --no-checkout "$dir/cp2" "$dir/clone" && raw "$dir/clone/.git" && wrap git -C "$dir/clone" checkout -q HEAD -- . &&
        wrap mv "$dir/clone/.git" "$dir/dotgit" && cmp <(sums "$src") <(sums "$dir/clone" "${WRAP:-env}")
}
compiled() { printf '#include <stdio.h>\nint main(void){FILE*f=fopen("out","w");for(int i=0;i<100000;i++)fprintf(f,"%%d\\n",i);return fclose(f);}\n' >"$dir/a.c" && wrap gcc -O1 -o "$dir/a" "$dir/a.c" && (cd "$dir" && wrap ./a) && [ "$(seq 0 99999 | md5sum)" = "$(wrap cat "$dir/out" | md5sum)" ]; }
sorted() { wrap sort -S 1M -T "$dir" -r -n "$dir/out" -o "$dir/out.sorted" && [ "$(seq 99999 -1 0 | md5sum)" = "$(wrap md5sum <"$dir/out.sorted")" ]; }
linked() { wrap ln "$dir/out" "$dir/out.hard" && wrap ln -s out "$dir/out.soft" && [ "$(wrap stat -c %h "$dir/out")" = 2 ] && [ "$(wrap readlink "$dir/out.soft")" = out ] && wrap cmp "$dir/out.soft" "$dir/out.hard" && wrap rm "$dir/out" && wrap test -s "$dir/out.hard"; }
sparse() { wrap truncate -s 1G "$dir/hole" && printf x | wrap dd of="$dir/hole" bs=1 seek=1000000000 conv=notrunc status=none && [ "$(wrap stat -c %b "$dir/hole")" -lt 1000 ] && wrap cp --sparse=always "$dir/hole" "$dir/hole2" && wrap cmp "$dir/hole" "$dir/hole2"; }
xattrs() { wrap setfattr -n user.k -v v "$dir/a.c" && wrap cp --preserve=xattr "$dir/a.c" "$dir/b.c" && [ "$(wrap getfattr --only-values -n user.k "$dir/b.c")" = v ]; }
removed() { wrap rm -rf "$dir/cp2" "$dir/tar" "$dir/tar2" "$dir/zip" && ! ls -d "$dir"/cp2 2>/dev/null; }

run() {
    local t
    src=$(source_of coreutils)
    cd "$dir"
    for t in ${ONLY:-copy tarred retar synced resync renamed zipped edited repo compiled sorted linked sparse xattrs}; do check "$t" "$t"; done
    # The last one deletes half of what is there: the rest is left behind.
    [ -n "${ONLY:-}" ] || check removed removed
}

main "$@"
