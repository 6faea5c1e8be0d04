#!/bin/sh
# The native code's unit tests with Cython's bounds checks, AddressSanitizer and UBSan.
set -eu
venv=$(cd "$1" && pwd)
top=$(pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r src tests setup.py pyproject.toml README.md LICENSE "$work"
cd "$work"
rm -f src/_fastproc/*.so src/_fastproc/*.c
FASTPROC_DEBUG=1 FASTPROC_SANITIZE=address,undefined \
    "$venv/bin/python" setup.py -q build_ext --inplace
asan=$(gcc -print-file-name=libasan.so)
# The interpreter itself keeps memory until it exits: leaks are looked for by other tests.
LD_PRELOAD="$asan" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
    PYTHONPATH="$work/src" "$venv/bin/python" -m pytest -q -p no:cacheprovider \
    tests/unit/test_maps.py tests/unit/test_pagemap.py tests/unit/test_frames.py \
    tests/unit/test_procfs.py tests/unit/test_memory_objects.py tests/unit/test_reach.py \
    tests/unit/test_fds.py tests/unit/test_sockdiag.py
cd "$top"
