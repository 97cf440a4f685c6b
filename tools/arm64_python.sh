#!/usr/bin/env bash
# A CPython for 64-bit Arm with octosim in it, in a folder, to be run by qemu-aarch64 on any machine.
#
#     tools/arm64_python.sh DIR        makes or updates DIR and writes the launcher DIR/python
#     QEMU_CPU=cortex-a53 DIR/python -c "from octosim import core; print(core.isa())"
#
# Installs nothing outside DIR.  Debian's arm64 packages are unpacked through a private apt configuration, the dependencies of
# training come as aarch64 wheels, octosim's own is cross-built.  Needs the Debian packages qemu-user (or qemu-user-static),
# gcc-aarch64-linux-gnu and libc6-dev-arm64-cross, and a Python with pip, cffi and setuptools (PYTHON, else python3).
# Exit code 77 and a line that says why: something is not installed here or cannot be downloaded.
set -euo pipefail
PACKAGES="numpy cffi safetensors pooch typer rich"

unavailable() { echo "arm64_python.sh: $*" >&2; exit 77; }
[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
here=$(cd "$(dirname "$0")/.." && pwd)
dir=$(realpath -m "$1")
python=$(command -v "${PYTHON:-python3}") || unavailable "no ${PYTHON:-python3}"
cc=$(command -v aarch64-linux-gnu-gcc) || unavailable "no aarch64-linux-gnu-gcc (package gcc-aarch64-linux-gnu)"
qemu=$(command -v qemu-aarch64 || command -v qemu-aarch64-static) || unavailable "no qemu-aarch64 (package qemu-user)"
for tool in apt-get dpkg; do command -v "$tool" >/dev/null || unavailable "no $tool"; done

mkdir -p "$dir"
exec 9>"$dir/lock" # others that want the same folder wait here
flock 9

# 1. The interpreter, once.
if [ ! -e "$dir/root/complete" ]; then
    rm -rf "$dir/root" "$dir/apt"
    mkdir -p "$dir"/apt/lists/partial "$dir"/apt/cache/archives/partial "$dir/root"
    : >"$dir/apt/status"
    suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    mirror=$(grep -rhE '^(deb |URIs:)' /etc/apt/sources.list /etc/apt/sources.list.d 2>/dev/null | grep -oE 'https?://[^ ]+' |
        grep -m 1 -E '/debian/?$' || true)
    [ -n "$mirror" ] || unavailable "no Debian mirror in apt's sources"
    echo "deb [arch=arm64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$dir/apt/sources.list"
    cat >"$dir/apt/apt.conf" <<END
APT::Architecture "arm64"; APT::Architectures { "arm64"; }; APT::Sandbox::User "root"; APT::Install-Recommends "false";
Dir::Etc::sourcelist "$dir/apt/sources.list"; Dir::Etc::sourceparts "/dev/null"; Dir::Etc::preferencesparts "/dev/null";
Dir::State "$dir/apt"; Dir::State::status "$dir/apt/status"; Dir::State::lists "$dir/apt/lists"; Dir::Cache "$dir/apt/cache";
END
    export APT_CONFIG="$dir/apt/apt.conf"
    apt-get update -qq >"$dir/apt/log" 2>&1 || unavailable "apt-get update failed: $(tail -n 1 "$dir/apt/log")"
    apt-get install -qq -y --download-only python3 libgomp1 libstdc++6 >"$dir/apt/log" 2>&1 ||
        unavailable "the arm64 packages cannot be downloaded: $(tail -n 1 "$dir/apt/log")"
    version=$(cd "$dir/apt/cache/archives" && ls | sed -nE 's/^python(3\.[0-9]+)_.*/\1/p')
    # The headers alone: with what they depend on they would bring a whole C library.
    (cd "$dir/apt/cache/archives" && apt-get download -qq "libpython$version-dev") >"$dir/apt/log" 2>&1 ||
        unavailable "libpython$version-dev for arm64 cannot be downloaded: $(tail -n 1 "$dir/apt/log")"
    for package in "$dir"/apt/cache/archives/*.deb; do dpkg -x "$package" "$dir/root"; done
    rm -rf "$dir/apt"
    echo "$version" >"$dir/root/complete"
fi
version=$(cat "$dir/root/complete")

# 2. The wheels, once.  The interpreter's own byte code and theirs is made here: emulated, it would take a minute.
if [ "$PACKAGES" != "$(cat "$dir/site/complete" 2>/dev/null)" ]; then
    rm -rf "$dir/site" "$dir/wheels"
    platforms=()
    for glibc in 2_17 2_24 2_27 2_28 2_31 2_34; do platforms+=(--platform "manylinux_${glibc}_aarch64"); done
    # shellcheck disable=SC2086
    "$python" -m pip download -q --disable-pip-version-check --only-binary=:all: --implementation cp --python-version "$version" \
        --abi "cp${version/./}" --abi abi3 --abi none "${platforms[@]}" --platform manylinux2014_aarch64 -d "$dir/wheels" $PACKAGES \
        >"$dir/pip.log" 2>&1 || unavailable "the aarch64 wheels cannot be downloaded: $(grep -v WARNING "$dir/pip.log" | tail -n 1)"
    for wheel in "$dir"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$dir/site"; done
    rm -rf "$dir/wheels" "$dir/pip.log"
    if [ "$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" = "$version" ]; then
        "$python" -m compileall -q "$dir/site" "$dir/root/usr/lib/python$version" >/dev/null || true # some tests hold bad syntax on purpose
    fi
    echo "$PACKAGES" >"$dir/site/complete"
fi

# 3. octosim, where its files are others now: its wheel, cross-built in $dir/dist.
files=$(cd "$here" && find octosim cext hwprofiles pyproject.toml setup.py -type f ! -name '*.so' ! -name '*.pyc' -exec sha256sum {} + | sort | sha256sum)
if [ "$files" != "$(cat "$dir/octosim/complete" 2>/dev/null)" ]; then
rm -rf "$dir/octosim" "$dir/dist" && mkdir -p "$dir/octosim/octosim"
(cd "$here" && CC="$cc -I$dir/root/usr/include/python$version -idirafter $dir/root/usr/include" LDSHARED="$cc -shared" \
    _PYTHON_HOST_PLATFORM=linux-aarch64 \
    "$python" -m pip wheel -q --disable-pip-version-check --no-deps --no-build-isolation -w "$dir/dist" .)
"$python" -m zipfile -e "$dir"/dist/*.whl "$dir/octosim"

cat >"$dir/python" <<END
#!/bin/sh
export PYTHONPATH="$dir/octosim:$dir/site" PYTHONDONTWRITEBYTECODE=1 PYTHONSAFEPATH=1 OPENBLAS_NUM_THREADS=1
exec "$qemu" -L "$dir/root" "$dir/root/usr/bin/python$version" "\$@"
END
chmod +x "$dir/python"
echo "$files" >"$dir/octosim/complete"
fi
