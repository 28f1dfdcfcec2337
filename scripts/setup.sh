#!/bin/sh
# Makes .venv ready: the exact requirements.lock, then this package, editable. Does nothing if it already is.
#
#   sh scripts/setup.sh          torch as the package index gives it (CUDA on Linux)
#   CPU=1 sh scripts/setup.sh    torch from PyTorch's public CPU wheels: smaller, for Linux without a GPU
#
# A failure is one line on stderr: what was expected, what came, what to do. .venv/uae-setup holds the folder and
# the checksum of what was installed, or "unfinished"; an unfinished or moved .venv is made anew.
set -u
cd "$(dirname "$0")/.." || exit 1

state=.venv/uae-setup
log=.venv/setup.log
cpu_index=https://download.pytorch.org/whl/cpu

fail() {
    echo "setup: $*" >&2
    exit 1
}

find_python() {
    for python in python3 python3.14 python3.13 python3.12 python3.11 python; do
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && return
    done
    found=$(python3 -c 'import sys; print("Python %d.%d.%d" % sys.version_info[:3])' 2>/dev/null)
    fail "expected Python 3.11 or newer on PATH, found ${found:-none}; install one (https://www.python.org/downloads) and run this again"
}

check_disk() { # FOLDER MEGABYTES
    free_mb=$(df -Pk "$1" | awk 'NR == 2 { print int($4 / 1024) }')
    [ "${free_mb:-$2}" -ge "$2" ] ||
        fail "expected at least $2 MB of free disk in $1 (several GB for a CUDA torch), found $free_mb MB; free some and run this again"
}

explain_log() {
    if grep -qiE 'no space left|disk quota exceeded' "$log"; then
        fail "expected enough free disk in $here and the temporary folder, but it ran out; free some and run this again (details: $log)"
    elif grep -qE 'Connection(Refused)?Error|NewConnection|Max retries|Timeout|timed out|ProxyError|SSLError|Network is unreachable' "$log"; then
        fail "expected to reach the Python package index, but the connection failed; check the network or pip's proxy and index settings and run this again (details: $log)"
    elif grep -qE 'ensurepip is not available|No module named' "$log"; then
        fail "expected $python to make virtual environments, but its venv or ensurepip module is missing; install it (Debian, Ubuntu: apt install python3-venv) and run this again (details: $log)"
    fi
    fail "expected to install requirements.lock with $python, but got '$(grep -i error "$log" | tail -n 1)'; mend that and run this again (details: $log)"
}

logged() {
    "$@" </dev/null >>"$log" 2>&1 || explain_log
}

pip_install() {
    logged .venv/bin/python -m pip install --no-input --disable-pip-version-check "$@"
}

make_venv() {
    [ ! -e .venv ] || [ -e "$state" ] ||
        fail "expected .venv to be absent or made by this script, found another one in $here; move it away and run this again"
    find_python
    check_disk "$here" 2000
    check_disk "${TMPDIR:-/tmp}" 500 # where pip unpacks
    rm -rf .venv
    mkdir .venv 2>/dev/null && echo unfinished >"$state" || fail "expected to write to $here, but could not; check its permissions and run this again"
    echo "Setting up .venv with $python: once, a few minutes (progress: $log)"
    logged "$python" -m venv .venv
}

here=$(pwd -P)
wanted="$here $(cat requirements.lock pyproject.toml | cksum)"
installed=$(cat "$state" 2>/dev/null)
python=.venv/bin/python
if "$python" -c '' 2>/dev/null; then
    [ "$installed" != "$wanted" ] || exit 0
else
    installed=
fi
case $installed in
    "$here "*) echo "Updating .venv to requirements.lock (progress: $log)" ;;
    *) make_venv ;;
esac

echo unfinished >"$state"
: >"$log"
if [ "${CPU:-}" = 1 ]; then
    pip_install --no-deps --index-url "$cpu_index" "$(grep '^torch==' requirements.lock)"
fi
pip_install --requirement requirements.lock
pip_install --no-deps --no-build-isolation --editable .
echo "$wanted" >"$state"
