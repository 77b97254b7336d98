#!/bin/sh
# Brings the servers that Onlooker is compared with into `installed/` and `node/node_modules`, and nothing anywhere else:
# Debian's packages are unpacked, not installed, so no service is started. What cannot be had is left out with a
# sentence, and so is its column in the table.
set -u
cd "$(dirname "$0")"
debian=installed/debian

# What they are linked with comes too: a small machine may lack it.
packages='nats-server redis-server redis-tools nginx libnginx-mod-nchan libatomic1 libhiredis0.14 libjemalloc2 liblua5.1-0
    liblzf1 lua-bitop lua-cjson libpcre2-8-0'

have() {
    [ -x "$debian/usr/sbin/nginx" ] && [ -x "$debian/usr/sbin/nats-server" ] && [ -x "$debian/usr/bin/redis-server" ]
}

debian_packages() {
    if have; then return; fi
    if ! command -v apt-get >/dev/null 2>&1 || ! command -v dpkg-deb >/dev/null 2>&1; then
        echo "nats-server, nchan and redis are left out: this is no Debian. Those on the PATH are used." >&2
        return
    fi
    mkdir -p installed/packages "$debian"
    echo "==> unpacking $(echo $packages | cut -d' ' -f1-5) and what they need"
    for package in $packages; do
        if ! (cd installed/packages && apt-get download -qq "$package") 2>/dev/null; then
            echo "$package cannot be had: run  apt-get update  if nothing can." >&2
        fi
    done
    for file in installed/packages/*.deb; do
        [ -e "$file" ] && dpkg-deb -x "$file" "$debian"
    done
    rm -rf installed/packages
}

node_packages() {
    if [ -e node/node_modules/.installed ] && [ ! node/package-lock.json -nt node/node_modules/.installed ]; then return; fi
    if ! command -v node >/dev/null 2>&1 || ! command -v npm >/dev/null 2>&1; then
        echo "node ws and socket.io are left out: Node.js or npm is missing." >&2
        return
    fi
    echo "==> npm's ws and socket.io"
    (cd node && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error) && touch node/node_modules/.installed
}

debian_packages
node_packages
exit 0
