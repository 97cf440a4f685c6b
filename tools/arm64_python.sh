#!/usr/bin/env bash
# Makes DIR: an arm64 CPython, NumPy and what else training needs, and octosim with its C core cross-built, to run under
# qemu-aarch64 on an x86-64 machine.  Prints the command that runs it.  Needs Debian's apt, a network, and the packages
# qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross.  Nothing is installed on the machine: the Debian packages are unpacked.
#
#     tools/arm64_python.sh DIR PYTHON      PYTHON: this machine's, with cffi, to emit the C source of the extension
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
dir=$(realpath -m "$1")
python=$2
mkdir -p "$dir"/apt/{lists/partial,cache/archives/partial} "$dir"/{root,site,wheels}

# A private apt that knows arm64 only.
: >"$dir/apt/status"
mirror=$(grep -rhE '^(deb |URIs:)' /etc/apt/sources.list /etc/apt/sources.list.d 2>/dev/null | grep -oE 'https?://[^ ]+' | grep -E '/debian/?$' | head -n 1 || true)
release=$(. /etc/os-release && echo "$VERSION_CODENAME")
echo "deb [arch=arm64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $release main" >"$dir/apt/sources.list"
cat >"$dir/apt/apt.conf" <<EOF
APT::Architecture "arm64"; APT::Architectures { "arm64"; }; APT::Sandbox::User "root"; APT::Install-Recommends "false";
Dir::Etc::sourcelist "$dir/apt/sources.list"; Dir::Etc::sourceparts "/dev/null"; Dir::Etc::preferencesparts "/dev/null";
Dir::State "$dir/apt"; Dir::State::status "$dir/apt/status"; Dir::State::lists "$dir/apt/lists"; Dir::Cache "$dir/apt/cache";
EOF
APT_CONFIG="$dir/apt/apt.conf" apt-get update -qq
APT_CONFIG="$dir/apt/apt.conf" apt-get install -qq -y --download-only python3 libgomp1 libstdc++6 >/dev/null
for package in "$dir"/apt/cache/archives/*.deb; do dpkg -x "$package" "$dir/root"; done
minor=$(basename "$(find "$dir/root/usr/bin" -name 'python3.*' | head -n 1)")
version=${minor#python}

"$python" -m pip download -q --disable-pip-version-check --only-binary=:all: --python-version "$version" --implementation cp \
    --abi "cp${version/./}" --abi abi3 --abi none --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
    --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 -d "$dir/wheels" numpy cffi safetensors pooch
for wheel in "$dir"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$dir/site"; done

# octosim: the sources, their metadata (the version), and the extension built for arm64.
cp -r "$here/octosim" "$dir/site/octosim"
rm -f "$dir"/site/octosim/_core*.so
number=$(sed -n 's/^version = "\(.*\)"/\1/p' "$here/pyproject.toml")
mkdir -p "$dir/site/octosim-$number.dist-info"
printf 'Metadata-Version: 2.1\nName: octosim\nVersion: %s\n' "$number" >"$dir/site/octosim-$number.dist-info/METADATA"
(cd "$here/cext" && "$python" -c "import build_ffi; build_ffi.ffi.emit_c_code('$dir/_core.c')" >/dev/null)
headers=$("$python" -c "import sysconfig; print(sysconfig.get_path('include'))")
sources=$(ls "$here"/cext/*.c | grep -v checkasm)
# the limited API of CPython needs no arm64 headers: the sizes that differ are not in it
aarch64-linux-gnu-gcc -std=gnu11 -O3 -ffp-contract=off -fno-math-errno -fvisibility=hidden -shared -fPIC -DPy_LIMITED_API=0x030B0000 \
    -I"$here/cext" -I"$headers" "$dir/_core.c" $sources -o "$dir/site/octosim/_core.abi3.so"

# Compiled once here: under emulation compiling NumPy takes most of an import.
env -u PYTHONDONTWRITEBYTECODE "$python" -c "import sys; sys.exit(f'{sys.version_info[0]}.{sys.version_info[1]}' != '$version')" &&
    env -u PYTHONDONTWRITEBYTECODE "$python" -m compileall -q "$dir/site" >/dev/null || true

qemu=$(command -v qemu-aarch64 || command -v qemu-aarch64-static)
echo "env PYTHONPATH=$dir/site OPENBLAS_NUM_THREADS=1 $qemu -L $dir/root -cpu CPU $dir/root/usr/bin/$minor"
