#!/usr/bin/env bash
# CPython's own regression tests of files, as any user of Python would exercise them: the `test` package of the python3 on
# PATH where it has one, otherwise Debian's.
source "$(dirname "$0")/lib.sh"

python=python3
"$python" -c 'import test.test_os' 2>/dev/null || python=/usr/bin/python3

prepare() {
    need "$python" python3
    local version
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    "$python" -c 'import test.test_os' 2>/dev/null || need /none "libpython$version-testsuite"
}

quick="test_glob test_tempfile test_genericpath test_fileio"
modules="test_os test_io test_fileio test_file test_shutil test_tempfile test_pathlib test_mmap test_posix test_fcntl test_glob
    test_genericpath test_posixpath test_stat test_filecmp test_fileinput test_largefile test_zipfile test_tarfile test_gzip test_bz2
    test_lzma test_mailbox test_shelve test_dbm test_dbm_dumb test_sqlite3 test_zipimport test_py_compile test_compileall
    test_import test_subprocess test_eintr test_file_eintr test_cmd_line_script"

# The cases of a module, from the report that the runner writes at its end.
cases() { # report module
    "$python" - "$1" "$2" <<'END'
import sys, xml.etree.ElementTree as tree
for case in tree.parse(sys.argv[1]).iter("testcase"):
    kinds = {child.tag for child in case}
    ended = "fail" if kinds & {"failure", "error"} else "skip" if "skipped" in kinds else "pass"
    print(sys.argv[2] + "/" + case.get("name").removeprefix("test.").replace(" ", "_"), ended)
END
}

run() {
    local module report case outcome
    cd "$dir" && mkdir tmp
    for module in ${ONLY:-$([ -n "${QUICK:-}" ] && echo "$quick" || echo "$modules")}; do
        report=$log/$module.xml
        TMPDIR=$dir/tmp wrap env -u PYTHONDONTWRITEBYTECODE "$python" -m test -u largefile --tempdir "$dir" --timeout 600 \
            --junit-xml "$report" -v "$module" >"$log/$module.log" 2>&1 || true
        if [ ! -s "$report" ] || grep -qE '^(Timeout|Fatal Python error)|crashed' "$log/$module.log"; then
            verdict "$module/ends" fail
            continue
        fi
        cases "$report" "$module" | while read -r case outcome; do verdict "$case" "$outcome"; done
    done
}

main "$@"
