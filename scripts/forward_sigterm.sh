#!/usr/bin/env bash
# Runs a launcher, passes a SIGTERM on to the ranks it started, and ends with its exit code.
#
#     scripts/forward_sigterm.sh composer -n 8 -m itt_composer.train RECIPE [KEY=VALUE …]
#
# Composer's launcher passes it on as well, but kills ranks that take more than 30 seconds to save.
set -uo pipefail
"$@" &
launcher=$!
trap 'kill -TERM $(cat "/proc/$launcher/task/$launcher/children")' TERM
wait "$launcher"
code=$?
while kill -0 "$launcher" 2>/dev/null; do # the signal has ended the wait, not the launcher
    wait "$launcher"
    code=$?
done
exit "$code"
