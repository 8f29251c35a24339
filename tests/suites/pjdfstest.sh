#!/usr/bin/env bash
# pjdfstest (crates.io): 398 POSIX cases: errno, ctime and mtime, permissions, every file type. As root it changes to the
# users `nobody` and `daemon` itself; as another user it skips what only root can try.
source "$(dirname "$0")/lib.sh"

prepare() { need_crate pjdfstest 0.2.2; }

run() {
    chmod 755 "$dir"
    # shellcheck disable=SC2086
    wrap "$BIN/pjdfstest" -c "$here/pjdfstest.toml" -p "$dir" ${ONLY:-} >"$log/out.log" 2>&1 || true
    sed -nE 's/^([^ ]+) +(ok|FAILED|skipped)$/\1 \2/p' "$log/out.log" | sed 's/ ok$/ pass/; s/ FAILED$/ fail/; s/ skipped$/ skip/' >>"$RESULTS"
    grep -q '^Summary' "$log/out.log" || verdict ends fail
}

main "$@"
