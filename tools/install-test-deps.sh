#!/bin/sh
# Install what some tests need and pip cannot bring. Says what it could not get; the tests that need it then say so too.
set -u

missing=""
need() { # need PROGRAM PACKAGE WHAT_FOR
    if command -v "$1" >/dev/null 2>&1; then
        echo "test-deps: $1 is there"
    else
        missing="$missing $2"
        echo "test-deps: $1 is missing ($3): package $2"
    fi
}

need curl curl "downloads over HTTP/1.0, 1.1, h2 and h2c"

[ -z "$missing" ] && exit 0

if command -v apt-get >/dev/null 2>&1; then
    as_root=""
    [ "$(id -u)" = 0 ] || as_root="sudo -n"
    $as_root apt-get update -qq && DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq $missing >/dev/null && exit 0
fi
echo "test-deps: could not install:$missing" >&2
exit 1
