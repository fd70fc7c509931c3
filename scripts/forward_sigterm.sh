#!/usr/bin/env bash
# Runs a launcher, passes a SIGTERM on to the ranks it started, and ends with its exit code.
#
#     scripts/forward_sigterm.sh composer -n 8 -m itt_composer.train RECIPE [KEY=VALUE …]
#
# Composer's launcher passes it on as well, but kills ranks that take more than 30 seconds to save.
# Ranks that the SIGTERM ends before there is anything to save end this with 75 as well.
set -uo pipefail
"$@" &
launcher=$!
is_asked=0
trap 'is_asked=1; kill -TERM $(cat "/proc/$launcher/task/$launcher/children")' TERM
wait "$launcher"
code=$?
while kill -0 "$launcher" 2>/dev/null; do # the signal has ended the wait, not the launcher
    wait "$launcher"
    code=$?
done
# -15 of a rank, as the launcher hands it on; 143 if it was the launcher's own.
case $is_asked$code in 1241 | 1143) code=75 ;; esac
exit "$code"
