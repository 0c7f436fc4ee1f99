#!/usr/bin/env bash
# unpack_python.sh SUITE ARCHITECTURE VERSION FOLDER: unpacks a Python of Debian's suite into a folder; installs nothing.
#
#     releasing/unpack_python.sh bookworm arm64 3.11 build/python-arm64       a Python for aarch64, which qemu-user runs
#     releasing/unpack_python.sh sid amd64 3.14 build/python-3.14             a newer Python than this system has
#
# Needs Debian, and for amd64 patchelf: that Python is made to run with the C library that comes with it.
set -euo pipefail
suite=$1 architecture=$2 version=$3 folder=$(realpath -m "$4")

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mirror=$(awk '/^URIs:/ { print $2; exit }' /etc/apt/sources.list.d/debian.sources)
mkdir -p "$folder" "$work"/{etc/preferences.d,etc/sources.list.d,state/lists/partial,cache/archives/partial}
: > "$work/state/status"
cp -r /etc/apt/apt.conf.d "$work/etc/"
cat > "$work/etc/sources.list.d/suite.sources" <<END
Types: deb
URIs: $mirror
Suites: $suite
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
END
cat > "$work/apt.conf" <<END
Dir::Etc "$work/etc/";
Dir::Etc::sourcelist "/dev/null";
Dir::State "$work/state";
Dir::State::status "$work/state/status";
Dir::Cache "$work/cache";
APT::Architecture "$architecture";
APT::Architectures { "$architecture"; };
APT::Sandbox::User "root";
END
export APT_CONFIG="$work/apt.conf"
apt-get -qq update
cd "$work/cache/archives"
# Of some libraries the name is another one in newer suites: those of which there is such a package.
names=$(apt-cache pkgnames | grep -x -E 'libssl3(t64)?|libzstd1' || true)
apt-get -qq download "python$version-minimal" "libpython$version-minimal" "libpython$version-stdlib" \
    "libpython$version-dev" $names libbz2-1.0 libc6 libexpat1 libffi8 libgcc-s1 liblzma5 libsqlite3-0 libstdc++6 libuuid1 \
    zlib1g
for package in *.deb; do
    dpkg-deb -x "$package" "$folder"
done
# Debian's own header names the one of each architecture, by a path below /usr/include.
cp "$folder"/usr/include/*-linux-gnu/"python$version"/pyconfig.h "$folder/usr/include/python$version/pyconfig.h"
if [ "$architecture" = amd64 ]; then
    loader=$(find "$folder" -name ld-linux-x86-64.so.2 | head -n 1)
    patchelf --set-interpreter "$loader" --force-rpath \
        --set-rpath "$(dirname "$(find "$folder" -name 'libc.so.6' | head -n 1)"):$folder/lib/x86_64-linux-gnu" \
        "$folder/usr/bin/python$version"
fi
