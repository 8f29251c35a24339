#!/usr/bin/env bash
# GNU findutils' own tests (Debian source), built inside the directory: find, xargs, locate and updatedb, by DejaGnu and by
# scripts.
source "$(dirname "$0")/lib.sh"

prepare() {
    need_source findutils
    # Debian's patches are newer than what Autotools made of the files that they patch.
    (cd "$(source_of findutils)" && find . '(' -name aclocal.m4 -o -name configure -o -name Makefile.in -o -name config.h.in ')' -exec touch -r configure.ac {} +)
    need runtest dejagnu
}

run() {
    local src b part line
    src=$(source_of findutils) b=$dir/build
    mkdir "$b" && cd "$b"
    export FORCE_UNSAFE_CONFIGURE=1
    check configure wrap "$src/configure" --disable-nls -q CFLAGS=-O0
    check make wrap make -s -j"$(nproc)" MAKEINFO=true
    for part in ${ONLY:-find xargs locate tests}; do
        [ -d "$part" ] || continue
        wrap make -k check -C "$part" >"$log/$part.log" 2>&1 || true
    done
    # DejaGnu: PASS: name, by the sums; Automake: by the results of each test.
    find . -name '*.sum' | LC_ALL=C sort | while read -r sum; do
        part=$(basename "$sum" .sum)
        sed -nE "s#^(PASS|XFAIL): (.*)#$part/\2 pass#p; s#^(FAIL|XPASS|ERROR|UNRESOLVED): (.*)#$part/\2 fail#p; s#^(UNTESTED|UNSUPPORTED): (.*)#$part/\2 skip#p" "$sum"
    done | while read -r line; do verdict "${line% *}" "${line##* }"; done
    find . -name '*.trs' | LC_ALL=C sort | while read -r part; do
        case $(sed -nE 's/^:global-test-result: (.*)/\1/p' "$part") in
        PASS | XFAIL) verdict "${part#./}" pass ;;
        SKIP) verdict "${part#./}" skip ;;
        *) verdict "${part#./}" fail; cp "${part%.trs}.log" "$log/" ;;
        esac
    done
}

main "$@"
