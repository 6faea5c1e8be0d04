#!/bin/sh
# The native code's unit tests with Cython's bounds checks, AddressSanitizer and UBSan; then, as
# root, captures of real processes by several threads under ThreadSanitizer.
set -eu
venv=$(cd "$1" && pwd)
top=$(pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r src tests benchmarks tools setup.py pyproject.toml README.md LICENSE "$work"
cd "$work"
rm -f src/_fastproc/*.so src/_fastproc/*.c
FASTPROC_DEBUG=1 FASTPROC_SANITIZE=address,undefined \
    "$venv/bin/python" setup.py -q build_ext --inplace
asan=$(gcc -print-file-name=libasan.so)
# What the sanitizers say goes past pytest, which ends with the process (--capture=sys).
# The interpreter itself keeps memory until it exits: leaks are looked for by other tests.
# Memory given back is kept aside for a while, but little of it: a test watches what stays.
LD_PRELOAD="$asan" ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
    PYTHONPATH="$work/src" "$venv/bin/python" -m pytest -q -p no:cacheprovider --capture=sys \
    tests/unit/test_maps.py tests/unit/test_pagemap.py tests/unit/test_frames.py \
    tests/unit/test_procfs.py tests/unit/test_memory_objects.py tests/unit/test_reach.py \
    tests/unit/test_fds.py tests/unit/test_sockdiag.py

rm -f src/_fastproc/*.so src/_fastproc/*.c
FASTPROC_DEBUG=1 FASTPROC_SANITIZE=thread "$venv/bin/python" setup.py -q build_ext --inplace
tsan=$(gcc -print-file-name=libtsan.so)
# ThreadSanitizer wants its memory at fixed places: without randomization they are free.
fixed="setarch -R"
$fixed true 2>/dev/null || fixed=""
threads() {
    LD_PRELOAD="$tsan" TSAN_OPTIONS="exitcode=66 halt_on_error=1" PYTHONPATH="$work/src" \
        $fixed "$venv/bin/python" tools/alone.py "$@"
}
# The interpreter is not instrumented: so first, is a race found that is there?
if threads tools/race.py >"$work/race" 2>&1 || ! grep -q "data race.*FrameIndex" "$work/race"; then
    cat "$work/race" >&2
    echo "ThreadSanitizer does not see a race of two threads in one index" >&2
    exit 1
fi
threads -m pytest -q -p no:cacheprovider tests/live/test_live_exact.py tests/live/test_live_churn.py
cd "$top"
