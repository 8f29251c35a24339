#!/usr/bin/env bash
# fsx (crates.io): random reads, writes, maps, truncates and holes on one file, each read verified. SEEDS seeds of OPS
# operations; a failure is reproduced by its seed.
source "$(dirname "$0")/lib.sh"

prepare() { need_crate fsx 0.3.2; }

run() {
    local config seed file
    for config in fsx fsx-plain fsx-nomap; do
        for seed in ${ONLY:-$(seq 1 "${SEEDS:-$([ -n "${QUICK:-}" ] && echo 2 || echo 10)}")}; do
            file=$dir/$config.$seed
            check "$config-seed$seed" wrap "$BIN/fsx" -f "$here/$config.toml" -P "$log" -N "${OPS:-5000}" -S "$seed" "$file"
        done
    done
}

main "$@"
