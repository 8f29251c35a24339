# What every suite shares. A suite is a script that sources this, defines `prepare` and `run`, and ends with
# `main "$@"`:
#
#   NAME.sh prepare     installs and builds what it needs, once, into $CACHE; never under the shim
#   NAME.sh DIR         prepares, then runs in $DIR/NAME, which it leaves behind for a comparison
#
#   CACHE     where things are built and kept               default ~/.cache/storeshim-suites
#   BIN       where the built programs are                  default $CACHE/bin
#   LOG       where the outputs go                          default $CACHE/logs
#   RESULTS   the verdicts: one line `CASE pass|fail|skip` for each case, names without blanks
#   WRAP      words put before each client command, e.g. WRAP="env LD_PRELOAD=/x/libx.so"
#   ONLY      only these cases, as the suite takes them
#   QUICK=1   a subset that takes seconds
#   PREPARED=1  skips `prepare`
#
# The last line is: RESULT NAME pass=N fail=N skip=N secs=N; the exit status is 0 only where nothing failed.
set -euo pipefail

suite=$(basename "$0" .sh)
here=$(cd "$(dirname "$0")" && pwd)
CACHE=${CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/storeshim-suites}
BIN=${BIN:-$CACHE/bin}
log=${LOG:-$CACHE/logs}/$suite
RESULTS=${RESULTS:-$log/results}

# Runs a client under the wrapper.
wrap() { ${WRAP:-} "$@"; }

# Notes the verdict of a case.
verdict() { echo "${1// /_} $2" >>"$RESULTS"; } # name pass|fail|skip

# Runs one named check; its output goes to the suite's log.
check() { # name command...
    local name=$1; shift
    if "$@" >"$log/$name.log" 2>&1; then
        verdict "$name" pass
    else
        verdict "$name" fail; echo "not ok - $suite/$name (see $log/$name.log)"
    fi
}

# Installs Debian packages where a file (or a program of PATH) is missing.
need() { # probe package...
    { [ -e "$1" ] || command -v "$1" >/dev/null; } && return
    shift
    if [ "$(id -u)" != 0 ]; then echo "$suite needs more than there is; type: sudo apt-get install $*" >&2; exit 1; fi
    install_packages "$@" || { apt-get update && install_packages "$@"; }
}
install_packages() { DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y --no-install-recommends "$@"; }

# Installs a program from crates.io into $CACHE/bin. rustix would otherwise make its own system calls, past any preload;
# the programs share one target folder, and so most of their dependencies.
need_crate() { # program version
    [ -x "$CACHE/bin/$1" ] && return
    RUSTFLAGS='--cfg=rustix_use_libc' CARGO_TARGET_DIR=$CACHE/build CARGO_PROFILE_DEV_DEBUG=0 \
        cargo install --quiet --locked --debug --root "$CACHE" "$1@$2"
}

# Unpacks a Debian source package once into $CACHE/debsrc, using a private list, so that the machine's own sources stay as
# they are.
need_source() { # package
    local root=$CACHE/debsrc
    mkdir -p "$root/lists/partial" "$root/src"
    [ -e "$root/src/$1" ] && return
    need dpkg-source dpkg-dev
    local keyring=/usr/share/keyrings/debian-archive-keyring.gpg mirror release
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -m1 '/debian/$')
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    echo "deb-src [signed-by=$keyring] $mirror $release main" >"$root/sources.list"
    printf '%s\n' "Dir::Etc::sourcelist \"$root/sources.list\";" 'Dir::Etc::sourceparts "-";' \
        "Dir::State::lists \"$root/lists\";" 'Dir::Cache::pkgcache "";' 'Dir::Cache::srcpkgcache "";' >"$root/apt.conf"
    (cd "$root/src" && export APT_CONFIG=$root/apt.conf && apt-get update && apt-get source "$1" &&
        ln -s "$(basename "$(ls -d "$1"-[0-9]*/ | head -1)")" "$1")
}

# The folder of a source package that was unpacked.
source_of() { realpath "$CACHE/debsrc/src/$1"; } # package

# What every suite ends with. One preparation at a time: they share the package manager and the folders.
main() {
    : "${1:?usage: $0 prepare | DIR}"
    mkdir -p "$log"
    if [ -z "${PREPARED:-}" ]; then
        mkdir -p "$CACHE"
        (flock 9 && prepare) 9>"$CACHE/lock" >"$log/prepare.log" 2>&1 || { tail -20 "$log/prepare.log" >&2; exit 1; }
        [ "$1" != prepare ] || exit 0
    fi
    mkdir -p "$1"
    dir=$(realpath "$1")/$suite
    rm -rf "$dir"
    mkdir -p "$dir"
    : >"$RESULTS"
    started=$SECONDS
    run
    count() { grep -c " $1\$" "$RESULTS" || true; }
    echo "RESULT $suite pass=$(count pass) fail=$(count fail) skip=$(count skip) secs=$((SECONDS - started))"
    [ "$(count fail)" = 0 ] && [ -s "$RESULTS" ]
}
