#!/usr/bin/env bash
# PostgreSQL (Debian): initdb with checksums, pgbench, a kill -9 in the middle of a run, recovery, then the invariants
# that pgbench promises, amcheck over heap and indexes, and offline checksums.
source "$(dirname "$0")/lib.sh"

prepare() { [ -n "$(programs)" ] || need /none postgresql postgresql-contrib; }

# The newest installed version's programs.
programs() { ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1; }

# shellcheck disable=SC2086
pg() { (cd "$dir" && runuser -u postgres -- ${WRAP:-} "$@"); }
q() { pg psql -h "$sock" -p 54329 -d postgres -Atqc "$1"; }
start() { pg "$bin/pg_ctl" -D "$data" -l "$dir/server.log" -w -t 120 -o "-p 54329 -k $sock -c listen_addresses= -c wal_level=replica -c full_page_writes=on -c fsync=on -c wal_sync_method=${SYNC:-fdatasync}" start; }
stop() { pg "$bin/pg_ctl" -D "$data" -w -m "${1:-fast}" stop; }
crash() { # SIGKILL the whole server and wait until the postmaster is gone
    local pid; pid=$(head -1 "$data/postmaster.pid")
    kill -9 "$pid" $(pgrep -P "$pid"); while kill -0 "$pid" 2>/dev/null; do sleep 0.2; done; sleep 1
}
sums() { # the four sums pgbench keeps equal
    [ "$(q "select count(distinct s) from (select sum(abalance) s from pgbench_accounts union all select sum(bbalance) from pgbench_branches union all select sum(tbalance) from pgbench_tellers union all select coalesce(sum(delta),0) from pgbench_history) x")" = 1 ]
}
acked=0
bench() { pg "$bin/pgbench" -h "$sock" -p 54329 -n -c 4 -j 2 -T "${T:-15}" postgres | tee "$log/bench.out" || true; }
count() { acked=$((acked + $(sed -nE 's/^number of transactions actually processed: ([0-9]+).*/\1/p' "$log/bench.out"))); }
kept() { # every transaction a client was told had committed is still there
    local rows; rows=$(q 'select count(*) from pgbench_history'); echo "acknowledged=$acked rows=$rows"
    [ "$rows" -ge "$acked" ] && sums
}
full_run() { bench && count && kept; }
crash_run() { bench & sleep "$((${T:-15} / 2))"; crash; wait; count; start && kept; }

run() {
    bin=$(programs) data=$dir/data sock=$dir/sock
    mkdir -p "$sock"; chown -R postgres "$dir"; chmod 755 "$dir"
    [ -z "${QUICK:-}" ] || T=${T:-4}
    trap 'stop immediate >/dev/null 2>&1 || true' EXIT
    check initdb     pg "$bin/initdb" -k -D "$data"
    check start      start
    check load       pg "$bin/pgbench" -h "$sock" -p 54329 -i -s 5 postgres
    check bench      full_run
    check crash-1    crash_run
    check crash-2    crash_run
    check amcheck    pg "$bin/pg_amcheck" -h "$sock" -p 54329 --install-missing --heapallindexed --parent-check postgres
    check dump       bash -c "$(declare -f pg); dir='$dir' WRAP='${WRAP:-}'; pg pg_dump -h $sock -p 54329 postgres | md5sum"
    check stop       stop
    check checksums  pg "$bin/pg_checksums" -D "$data" --check
}

main "$@"
