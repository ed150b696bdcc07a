#!/bin/sh
# Put promtool and prometheus into a directory: `deploy/promtool.sh DIRECTORY`.
#
# No registry of Python packages has them, so they come from Debian's package `prometheus`, which is unpacked and not installed: no service starts, and no
# root is needed where apt has its lists. Where there is no apt, or it has no network, this says so and fails; put promtool on PATH by other means then.
set -eu
target=$1
if command -v promtool >/dev/null && command -v prometheus >/dev/null; then
    ln -sf "$(command -v promtool)" "$(command -v prometheus)" "$target"
    exit
fi
if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
    echo "promtool is missing, and this is no Debian: install Prometheus and put promtool and prometheus on PATH." >&2
    exit 1
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
chmod 755 "$scratch"
cd "$scratch"
# A fresh machine has no lists yet.
# A network that swallows everything must not hold the checks up for minutes.
patient() { apt-get -qq -o Acquire::Retries=1 -o Acquire::http::Timeout=10 -o Acquire::https::Timeout=10 "$@"; }
patient download prometheus 2>/dev/null || { patient update && patient download prometheus; } || {
    echo "promtool is missing, and Debian's package prometheus could not be downloaded: install Prometheus and put promtool and prometheus on PATH." >&2
    exit 1
}
dpkg-deb --extract prometheus_*.deb .
cd - >/dev/null
# Promtool last: make takes it for the sign that both are there.
cp "$scratch/usr/bin/prometheus" "$scratch/usr/bin/promtool" "$target"
