#!/bin/sh
# What pip cannot bring: a compiler, Python's headers, and venv. Installs them where it may.
set -eu
python=$1
missing=""
command -v cc >/dev/null 2>&1 || command -v gcc >/dev/null 2>&1 || missing="$missing gcc libc6-dev"
if [ -z "$python" ]; then
    missing="$missing python3 python3-dev python3-venv"
else
    "$python" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
    "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
        missing="$missing python3-dev"
fi
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    apt-get update -q >/dev/null
    # shellcheck disable=SC2086  # a list of words
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $missing >/dev/null
    exit 0
fi
echo "osmosis needs:$missing" >&2
echo "as root on Debian or Ubuntu: apt-get install$missing" >&2
exit 1
