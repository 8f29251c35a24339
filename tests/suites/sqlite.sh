#!/usr/bin/env bash
# SQLite's own judges, built from Debian's source package: speedtest1 (result hash compared with the one that a native run gives),
# threadtest3 (threads, WAL, locks), mptester (processes), and the Tcl suite through testfixture: a storage subset, or
# with FULL=1 `veryquick`, about 300,000 checks.
source "$(dirname "$0")/lib.sh"

b=$CACHE/sqlite

# The newest Tcl for which programs can be built.
tcl() { ls /usr/lib/tcl*/tclConfig.sh /usr/lib/*/tcl*/tclConfig.sh 2>/dev/null | sort -V | tail -1; }

prepare() {
    need tclsh tcl
    [ -n "$(tcl)" ] || need /none tcl-dev
    need_source sqlite3
    local src
    src=$(source_of sqlite3)
    [ -x "$b/testfixture" ] && return
    mkdir -p "$b"
    (cd "$b" && "$src/configure" --enable-all --with-tcl="$(dirname "$(tcl)")" CFLAGS='-O1 -DSQLITE_NO_SYNC=0' &&
        make -j"$(nproc)" sqlite3 speedtest1 threadtest3 mptester testfixture)
}

speed() { # name, options...: the same hash as native, else the data differed
    local name=$1; shift
    local want; want=$("$b/speedtest1" --verify --size 5 "$@" :memory: | grep -i 'hash')
    wrap "$b/speedtest1" --verify --size 5 "$@" "$dir/$name.db" | tee /dev/stderr | grep -qF "$want"
}

run() {
    local src t tests out total failed case
    src=$(source_of sqlite3)
    cd "$dir"
    check speedtest1-delete speed delete
    check speedtest1-wal speed wal --journal wal
    check speedtest1-mmap speed mmap --mmap 268435456
    check speedtest1-nosync speed persist --journal persist
    # Each of its tests takes 10 to 20 seconds.
    check threadtest3 wrap "$b/threadtest3" ${QUICK:+checkpoint_starvation_1 create_drop_index_1}
    for t in config01 config02 crash01 multiwrite01; do
        check "mptest-$t" wrap "$b/mptester" "$dir/$t.db" "$src/mptest/$t.test" --timeout 60000
    done
    tests="io lock lock2 lock4 pager1 journal1 wal wal2 walro mmap1 exclusive backup tempdb vacuum savepoint shared incrblob corrupt2 crash8"
    [ -z "${FULL:-}" ] || tests=veryquick
    [ -z "${QUICK:-}" ] || tests="io lock wal"
    for t in ${ONLY:-$tests}; do
        out=$log/tcl-$t.log
        wrap timeout "${LIMIT:-3000}" "$b/testfixture" "$src/test/$t.test" >"$out" 2>&1 || true
        sed -nE "s#^(.*)\.\.\. Ok\$#$t/\1 pass#p; s#^! ([^ ]+) expected.*#$t/\1 fail#p" "$out" | tr -d '\r' | sort -u |
            while read -r case failed; do verdict "$case" "$failed"; done
        total=$(sed -nE 's/^[0-9]+ errors out of ([0-9]+) tests.*/\1/p' "$out")
        if [ -n "$total" ]; then verdict "$t/of-$total" pass; else verdict "$t/ends" fail; fi
    done
}

main "$@"
