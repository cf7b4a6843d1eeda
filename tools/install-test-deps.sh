#!/bin/sh
# Install what some tests need and pip cannot bring. Says what it could not get; the tests that need it then say so too.
set -u

missing=""
need() { # need PROGRAM PACKAGE WHAT_FOR
    if command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ]; then
        echo "test-deps: $1 is there"
    else
        missing="$missing $2"
        echo "test-deps: $1 is missing ($3): package $2"
    fi
}

need curl curl "downloads over HTTP/1.0, 1.1, h2 and h2c"
need swupdate swupdate "a real hawkBit client"
need mosquitto mosquitto "the broker that everybody knows"
need mosquitto_pub mosquitto-clients "its clients"

left=""
python=.venv/bin/python
if [ -x "$python" ]; then
    if "$python" -c "import aiohttp, rauc_hawkbit" 2>/dev/null; then
        echo "test-deps: rauc-hawkbit is there"
    else
        echo "test-deps: rauc-hawkbit is missing (a real hawkBit client)"
        # what it declares includes bindings that need a compiler and that its client does not use
        "$python" -m pip install -q "aiohttp>=3.10" && "$python" -m pip install -q --no-deps "rauc-hawkbit==0.2.0" || left=" rauc-hawkbit"
    fi
fi

[ -z "$missing$left" ] && exit 0

if [ -n "$missing" ] && command -v apt-get >/dev/null 2>&1; then
    as_root=""
    [ "$(id -u)" = 0 ] || as_root="sudo -n"
    $as_root apt-get update -qq
    for package in $missing; do
        DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq "$package" >/dev/null || left="$left $package"
    done
    missing=""
fi
[ -z "$missing$left" ] && exit 0
echo "test-deps: could not install:$missing$left" >&2
exit 1
