#!/usr/bin/env bash
# Makes .venv from requirements.lock and installs the project into it, editable.
#
#   make setup                         what `make quickstart`, `make test` and `make check` do first
#   make setup SET=floor               .venv-floor from requirements.floor.lock: the oldest versions
#   make setup PYTHON=/path/to/python  with that interpreter (3.10 to 3.13; floor: 3.10 to 3.12)
#
# Today's torch has no build for Python 3.10: where no other is there, .venv gets the oldest versions.
#
# Returns at once when nothing changed since the last success. pip is slow on this many
# packages, so pip installs only uv (at the lock's version and hash) and uv installs the rest.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" && exit ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$(pwd -P)

# Measured on Linux: 8.0 GB in .venv and 0.4 GB that only uv's cache holds. The two share the rest
# as hard links; a cache on another filesystem needs 8 GB there too.
needed_gb=${ITT_SETUP_DISK_GB:-9}
case ${SET:-} in
    "") venv=.venv lock=requirements.lock pythons=(3.11 3.12 3.13) ;;
    floor) venv=.venv-floor lock=requirements.floor.lock pythons=(3.10 3.11 3.12) ;;
    *) echo "set-up: there is no SET=$SET; leave it out for today's versions, or SET=floor." >&2 && exit 1 ;;
esac
case ${SET:-} in "") supported_pythons="3.10 to 3.13" ;; *) supported_pythons="3.10, 3.11 or 3.12" ;; esac
log=$venv/setup.log
state=$venv/setup.state # "unfinished", or after a success what the environment was made from

fail() {
    echo "set-up: $*" >&2
    exit 1
}

# The path is part of it because a moved .venv still runs, but with the old folder's code;
# pyproject.toml because the editable install is made from it.
made_from() {
    echo "$root"
    cat pyproject.toml "$(lock_for "$venv/bin/python")"
}

version_of() { # "3.11.7", or nothing when it does not run (a pyenv shim without its version)
    "$1" -E -S -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null || true
}

supported() {
    case " ${pythons[*]} " in *" ${1%.*} "*) true ;; *) false ;; esac
}

lock_for() { # lock_for PYTHON
    case ${SET:-},$(version_of "$1") in ,3.10.*) echo requirements.floor.lock ;; *) echo "$lock" ;; esac
}

# Sets `python`, or what was `found` instead and whether one is `without_venv`.
search() {
    local candidate version
    found="" without_venv=""
    for candidate in "$@"; do
        command -v "$candidate" >/dev/null || continue
        version=$(version_of "$candidate")
        [ -n "$version" ] || continue
        if ! supported "$version"; then
            case " $found " in *" $version "*) ;; *) found="$found $version" ;; esac
        elif ! "$candidate" -c 'import venv, ensurepip; ensurepip.version()' >/dev/null 2>&1; then
            without_venv=$version
        else
            python=$candidate
            return
        fi
    done
    return 1
}

# The one called python3 comes first: it is the one the user has made active.
find_python() {
    local candidates=(python3 "python${pythons[2]}" "python${pythons[1]}" "python${pythons[0]}" python)
    if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
    search "${candidates[@]}" && return
    if [ -z "${SET:-}$without_venv" ]; then
        pythons+=(3.10)
        if [ -z "${PYTHON:-}" ]; then candidates+=(python3.10); fi
        search "${candidates[@]}" && return
    fi
    if [ -n "$without_venv" ]; then
        fail "Python $without_venv comes without venv; install it (Debian and Ubuntu:" \
            "apt install python${without_venv%.*}-venv) and run the same command again."
    elif [ -n "${PYTHON:-}" ]; then
        fail "PYTHON=$PYTHON is ${found:+Python$found, }not a working Python $supported_pythons."
    else
        fail "needs Python $supported_pythons and found ${found:+only}${found:-none};" \
            "install one, or name one with make PYTHON=/path/to/python."
    fi
}

# One set-up at a time in a folder. The lock belongs to the open file, so this shell holds it
# after the Python that took it has ended, and whatever ends this shell releases it.
wait_for_other_setup() {
    exec 9>>"$lock"
    "$python" - 2>/dev/null <<'PYTHON' || true # a filesystem without locks: go on without one
import fcntl
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("Another set-up is at work in this folder: waiting for it.", flush=True)
    fcntl.flock(9, fcntl.LOCK_EX)
PYTHON
}

# Why an existing .venv cannot be brought up to date in place (nothing: it can). An unfinished
# one cannot: a package that was cut off half-way looks installed.
why_anew() {
    local version asked
    version=$(version_of "$venv/bin/python")
    asked=${PYTHON:+$(version_of "$PYTHON")}
    if [ "$(cat "$state" 2>/dev/null)" = unfinished ]; then
        echo "its set-up was interrupted"
    elif [ -z "$version" ]; then
        echo "its Python is gone"
    elif ! supported "$version" || [ "$version" != "${asked:-$version}" ]; then
        echo "its Python is $version"
    elif ! grep -qsF "$root/$venv" "$venv/bin/activate"; then
        echo "it was made in another folder"
    fi
}

is_ready() {
    [ -f "$state" ] && [ "$(made_from)" = "$(<"$state")" ] && [ -z "$(why_anew)" ]
}

# uv reads none of pip's settings, so the ones that decide whether an index can be reached are
# passed on: from pip's environment, else from its configuration file, unless uv has its own.
share_pip_setting() { # share_pip_setting index-url UV_DEFAULT_INDEX
    local value
    printenv "$2" >/dev/null && return
    value=$(printenv "PIP_$(echo "$1" | tr '[:lower:]-' '[:upper:]_')" ||
        "$venv/bin/python" -m pip config get "global.$1" 2>/dev/null || true)
    if [ -n "$value" ]; then export "$2=$value"; fi
}

network_errors='connection|connect error|sending request|dns error|name resolution'
network_errors="$network_errors|network timeout|read timed out|proxy|certificate"

# Runs one install. Shows its steps and its downloads from 100 MB up; says a failure in a sentence.
install() {
    local progress='^(Downloading .*\([0-9]{3,}[.0-9]*MiB|Prepared|Installed|Bytecode)'
    echo "\$ $*" >"$log"
    if "$@" 2>&1 | tee -a "$log" | { grep --line-buffered -E "$progress" || true; }; then
        return
    fi
    if grep -qiE 'no space left|disk quota exceeded' "$log"; then
        fail "the disk is full; free some space, or move uv's downloads with UV_CACHE_DIR" \
            "(details in $log)."
    elif grep -qiE "$network_errors" "$log"; then
        echo "$previous" >"$state" # packages are all fetched first, so none is half installed
        fail "the package index cannot be reached; check the network, HTTPS_PROXY and" \
            "PIP_INDEX_URL, then run the same command again (details in $log)."
    else
        fail "an install failed; $log has the details (make clean removes .venv for a fresh start)."
    fi
}

# Of the packages in a lock; the last one may have listed some that no lock does now.
names() { sed -n 's/^\([^ =]*\)==.*/\1/p' | sort -u; }

# Refused whatever is there already.
if [ -n "${PYTHON:-}" ] && [ -z "$(version_of "$PYTHON")" ]; then find_python; fi
is_ready && exit 0
if [ ! -w . ] || [ ! -w "$lock" ]; then
    fail "cannot write to $root; run it in a copy of your own."
fi
find_python
wait_for_other_setup
is_ready && exit 0 # the other one did it

if [ -e $venv ]; then
    reason=$(why_anew)
    if [ -n "$reason" ]; then
        echo "Making $venv anew: $reason."
        rm -rf "$venv"
    fi
fi
lock=$(lock_for "$python")
if [ "$lock,${SET:-}" = requirements.floor.lock, ]; then
    echo "Python 3.10 cannot have today's torch: taking the oldest versions (docs/versions.md)."
fi
if [ ! -e $venv ]; then
    free_gb=$(df -Pk . | awk 'NR == 2 { print int($4 / 1e6) }')
    [ "$free_gb" -ge "$needed_gb" ] ||
        fail "needs $needed_gb GB of free disk space in $root and finds $free_gb GB."
    echo "Setting up $venv with Python $(version_of "$python"). A few minutes: 8 GB on disk," \
        "4 GB to download unless uv's cache has it."
    mkdir $venv
    previous=""
    echo unfinished >"$state"
    "$python" -m venv "$root/$venv" >"$log" 2>&1 ||
        fail "$python cannot make a virtual environment; $log has the details."
else
    echo "Bringing $venv up to date with $lock."
    previous=$(cat "$state" 2>/dev/null || true)
    echo unfinished >"$state"
fi

uv=$root/$venv/bin/uv
if [ ! -x "$uv" ]; then
    awk '/^uv==/ { on = 1 } on { print } on && !/\\$/ { exit }' "$lock" >$venv/uv.lock
    install $venv/bin/python -m pip install --disable-pip-version-check --retries 2 \
        --no-deps --require-hashes -r $venv/uv.lock
fi
share_pip_setting index-url UV_DEFAULT_INDEX
share_pip_setting cert SSL_CERT_FILE
share_pip_setting proxy HTTPS_PROXY

# In the root of the repository uv would put the overrides of pyproject.toml in the place of pins.
log=$root/$log state=$root/$state
cd /
left=$(comm -23 <(names <<<"$previous") <(names <"$root/$lock"))
if [ -n "$left" ]; then
    # shellcheck disable=SC2086 # one word a package
    install "$uv" pip uninstall --python "$root/$venv/bin/python" $left
fi
into=("$uv" pip install --python "$root/$venv/bin/python" --no-deps)
install "${into[@]}" --require-hashes --compile-bytecode -r "$root/$lock"
install "${into[@]}" --no-build-isolation -e "$root"
(cd "$root" && made_from) >"$state"
echo "Set-up done. To use it in this shell: . $venv/bin/activate"
