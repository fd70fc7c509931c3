#!/usr/bin/env bash
# Runs a launcher, passes SIGTERM and Ctrl-C on to the ranks it started, and ends with its exit code.
#
#     scripts/forward_sigterm.sh composer -n 8 -m itt_composer.train RECIPE [KEY=VALUE …]
#     scripts/forward_sigterm.sh torchrun --nproc-per-node 8 -m itt_composer.train RECIPE [KEY=VALUE …]
#
# The launchers pass them on as well, but with a traceback, and kill ranks that take more than 30
# seconds to save. Ranks that a SIGTERM ends before they can hear it end this with 75 as well. Before
# there are ranks, and after they have failed, the launcher itself is ended.
set -uo pipefail
case ${1:---help} in -h | --help) sed -n '2,/^set/{s/^# \{0,1\}//p}' "$0"; exit $(($# == 0)) ;; esac
export ITT_SIGNALS_ARE_FORWARDED=1 # ranks end with 0 after a Ctrl-C: launchers print a traceback of others
set -m # a process group of its own for the launcher, so that a terminal's Ctrl-C comes here alone
"$@" &
launcher=$!
is_asked=0
is_interrupted=0
to_ranks() {
    local ranks
    ranks=$(cat "/proc/$launcher/task/$launcher/children")
    if [ -n "$ranks" ]; then
        kill -"$1" $ranks
    elif kill -TERM "$launcher"; then
        echo "ended while no rank was at work; the same command goes on, or starts anew" >&3
    fi
}
trap 'is_asked=1; to_ranks TERM' TERM HUP # the terminal is closed
trap 'is_interrupted=1; to_ranks INT' INT
exec 3>&2 2>/dev/null # bash says by itself that a job of its own was terminated
wait "$launcher"
code=$?
while kill -0 "$launcher"; do # the signal has ended the wait, not the launcher
    wait "$launcher"
    code=$?
done
# -15 of a rank, as the launcher hands it on; 143 if it was the launcher's own.
case $is_asked$code in 1241 | 1143) code=75 ;; esac
case $is_interrupted$code in 10 | 1143) code=130 ;; esac
exit "$code"
