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

run() {
    local module
    cd "$dir" && mkdir tmp
    for module in ${ONLY:-$([ -n "${QUICK:-}" ] && echo "$quick" || echo "$modules")}; do
        TMPDIR=$dir/tmp wrap env -u PYTHONDONTWRITEBYTECODE "$python" -m test -u largefile --tempdir "$dir" --timeout 600 -v "$module" \
            >"$log/$module.log" 2>&1 || true
        # test_x (test.test_os.FileTests.test_x) ... ok
        sed -nE 's/^(.*) \.\.\. (.*)$/\1\t\2/p' "$log/$module.log" | while IFS=$'\t' read -r case outcome; do
            case $outcome in
            *ok | "expected failure") verdict "$module/$case" pass ;;
            skipped*) verdict "$module/$case" skip ;;
            FAIL | ERROR | "unexpected success") verdict "$module/$case" fail ;;
            esac
        done
        if grep -qE '^(Timeout|Fatal Python error)|crashed' "$log/$module.log"; then verdict "$module/ends" fail; fi
    done
}

main "$@"
