#!/usr/bin/env bash
# GNU coreutils' own tests (Debian source) of the tools that work on files. Quick: those of the installed programs; otherwise a
# real build inside the directory first (configure, make -j), whose programs are then tested.
source "$(dirname "$0")/lib.sh"

prepare() {
    need_source coreutils
    [ -n "${QUICK:-}" ] || for package in gperf texinfo bison; do need "$package" "$package"; done
    need /usr/include/sys/acl.h libacl1-dev
    need setfattr attr
}

groups=${ONLY:-cp mv rm ln mkdir ls touch dd tail-2 install du chmod chown chgrp truncate split readlink cat tee rmdir}

run() {
    local src b tests name
    src=$(source_of coreutils) b=$dir/build
    mkdir "$b" && cd "$b"
    export FORCE_UNSAFE_CONFIGURE=1
    # shellcheck disable=SC2086
    tests=$(cd "$src" && for g in $groups; do grep -oE "tests/$g[A-Za-z0-9_.+/-]*\.(sh|pl)" tests/local.mk || true; done | sort -u)
    if [ -n "${QUICK:-}" ]; then installed; return; fi
    check configure wrap "$src/configure" --disable-nls --enable-no-install-program=stdbuf -q CFLAGS=-O0
    check make wrap make -s -j"$(nproc)" MAKEINFO=true
    # shellcheck disable=SC2086
    wrap make -k check TESTS="$(echo $tests)" SUBDIRS=. RUN_EXPENSIVE_TESTS=no -j"${JOBS:-2}" >"$log/check.log" 2>&1 || true
    for name in $tests; do
        case $(sed -nE 's/^:test-result: (PASS|FAIL|SKIP|ERROR).*/\1/p' "${name%.*}.trs" 2>/dev/null) in
        PASS) verdict "$name" pass ;;
        SKIP) verdict "$name" skip ;;
        *) verdict "$name" fail; cp "${name%.*}.log" "$log/${name//\//_}.log" 2>/dev/null || true ;;
        esac
    done
}

# The tests of a few groups with the programs of the system, as far as they need nothing that is built.
installed() {
    local name status
    mkdir src && : >config.h
    ln -s "$(command -v install)" src/ginstall
    for name in $(grep -E '^tests/(mv|ln|rmdir|readlink|truncate|touch)/.*\.sh$' <<<"$tests"); do
        grep -qE 'getlimits_|very_expensive_|expensive_|require_valgrind_|returns_.*stdbuf' "$src/$name" && continue
        status=0
        (cd "$b" && exec env srcdir="$src" abs_top_srcdir="$src" abs_srcdir="$src" abs_top_builddir="$b" top_srcdir="$src" CONFIG_HEADER="$b/config.h" \
            VERSION="$(dpkg-parsechangelog -l "$src/debian/changelog" -S Version | sed 's/-.*//')" PACKAGE_VERSION=installed LOCALE_FR=none \
            LOCALE_FR_UTF8=none fail=0 built_programs="cp mv rm ln ls touch truncate readlink rmdir" PERL=perl SHELL=/bin/sh \
            timeout 60 /bin/sh -c ". '$src/$name'" "$src/$name" 9>&2) >"$log/${name//\//_}.log" 2>&1 || status=$?
        case $status in
        0) verdict "$name" pass ;;
        77) verdict "$name" skip ;;
        *) verdict "$name" fail ;;
        esac
    done
}

main "$@"
