#!/usr/bin/env bash
# Is Triton's perf_analyzer content with the server, over HTTP and gRPC, with and without streams and batches?
#
#     bench/perf_analyzer.sh [FOLDER]
#
# perf_analyzer 2.60.0 needs glibc 2.38. Where the system's is older, Debian 13's is unpacked into FOLDER (default
# build/perf_analyzer), beside the binary, and starts it; nothing is installed. Without FOLDER/ready it takes a minute and
# the network, for Debian's packages and the package index. Then it runs tests/serve/test_perf_analyzer.py; to measure by
# hand, start what it prints as FASTPIPE_PERF_ANALYZER.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(realpath -m "${1:-build/perf_analyzer}")
python=.venv/bin/python

# Unpack Debian 13's packages named as arguments; apt's own state stays as it is.
unpack() {
    local work mirror
    work=$(mktemp -d)
    mirror=$(awk '/^URIs:/ { print $2; exit }' /etc/apt/sources.list.d/debian.sources)
    mkdir -p "$work"/{etc/preferences.d,etc/sources.list.d,state/lists/partial,cache/archives/partial} "$folder/glibc"
    : > "$work/state/status"
    cp -r /etc/apt/apt.conf.d "$work/etc/"
    printf 'Types: deb\nURIs: %s\nSuites: trixie\nComponents: main\nSigned-By: %s\n' \
        "$mirror" /usr/share/keyrings/debian-archive-keyring.gpg > "$work/etc/sources.list.d/trixie.sources"
    cat > "$work/apt.conf" <<CONF
Dir::Etc "$work/etc/";
Dir::Etc::sourcelist "/dev/null";
Dir::State "$work/state";
Dir::State::status "$work/state/status";
Dir::Cache "$work/cache";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Sandbox::User "root";
CONF
    (
        export APT_CONFIG="$work/apt.conf"
        apt-get -qq update
        cd "$work/cache/archives"
        apt-get -qq download "$@"
        for package in *.deb; do dpkg-deb -x "$package" "$folder/glibc"; done
    )
    rm -rf "$work"
}

if [ ! -e "$folder/ready" ]; then
    mkdir -p "$folder"
    "$python" -m pip --version > /dev/null 2>&1 || python=python3
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target "$folder/package" \
        --platform manylinux_2_38_x86_64 --only-binary :all: perf_analyzer==2.60.0
    unpack libc6 libstdc++6 libgcc-s1 zlib1g
    cat > "$folder/perf_analyzer" <<RUN
#!/bin/sh
exec "$folder/glibc/usr/lib64/ld-linux-x86-64.so.2" --library-path "$folder/glibc/usr/lib/x86_64-linux-gnu" \\
    "$folder/package/perf_analyzer/bin/perf_analyzer" "\$@"
RUN
    chmod +x "$folder/perf_analyzer"
    "$folder/perf_analyzer" --version
    touch "$folder/ready"
fi
export FASTPIPE_PERF_ANALYZER="$folder/perf_analyzer"
echo "FASTPIPE_PERF_ANALYZER=$FASTPIPE_PERF_ANALYZER"
exec .venv/bin/pytest -q tests/serve/test_perf_analyzer.py
