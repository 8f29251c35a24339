#!/usr/bin/env bash
# fsx (crates.io): random reads, writes, maps, truncates and holes on one file, each read verified. SEEDS seeds of OPS
# operations; a failure is reproduced by its seed.
source "$(dirname "$0")/lib.sh"

prepare() { need_crate fsx 0.3.2; }

run() {
    local config seed file
    local seeds=4 ops=5000
    [ -z "${QUICK:-}" ] || { seeds=1 ops=1500; }
    for config in fsx fsx-plain fsx-nomap; do
        for seed in ${ONLY:-$(seq 1 "${SEEDS:-$seeds}")}; do
            file=$dir/$config.$seed
            check "$config-seed$seed" wrap "$BIN/fsx" -f "$here/$config.toml" -P "$log" -N "${OPS:-$ops}" -S "$seed" "$file"
        done
    done
}

main "$@"
