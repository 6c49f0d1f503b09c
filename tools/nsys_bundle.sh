#!/bin/bash
# A real Nsight Systems, for tests and for machines without one, from Debian's packages; nothing is
# installed. The binaries are NVIDIA's and proprietary: they stay out of the repository.
#   usage: tools/nsys_bundle.sh DIR [ARCHIVE.tar.xz]
# makes DIR/nsys/bin/nsys (144 MB), which runs from any path on x86-64 Linux with glibc ≥ 2.34, and
# an archive of it (31 MB) to take elsewhere. kernelbench finds it where DIR is
# ~/.cache/kernelbench/nsys. Needs apt-get, dpkg and some 1 GB of disk meanwhile; unpacks nothing
# where DIR/nsys/bin/nsys answers already.
set -euo pipefail
[ $# = 1 ] || [ $# = 2 ] || { echo "usage: $0 DIR [ARCHIVE.tar.xz]" >&2; exit 2; }
for needed in apt-get dpkg; do
  command -v "$needed" > /dev/null || { echo "nsys_bundle: no $needed here; it takes Debian's packages" >&2; exit 1; }
done
[[ $1 != *" "* ]] || { echo "nsys_bundle: nsys cannot start from a folder with a space" >&2; exit 1; }
out=$(mkdir -p "$1" && cd "$1" && pwd)
archive() { [ -z "$1" ] || tar -C "$out" -cJf "$1" nsys; }
if "$out/nsys/bin/nsys" --version 2> /dev/null; then
  archive "${2:-}"
  exit 0
fi
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -m1 '/debian/$' || true)
[ -n "$mirror" ] || { echo "nsys_bundle: apt knows no Debian mirror here" >&2; exit 1; }
mkdir -p "$out"/apt/{lists/partial,cache/archives/partial} "$out/debs" "$out/full"
key=/usr/share/keyrings/debian-archive-keyring.gpg
printf 'deb [signed-by=%s] %s trixie non-free\ndeb [signed-by=%s] %s bookworm main\n' \
  "$key" "$mirror" "$key" "$mirror" > "$out/apt/sources.list"
apt=(apt-get -oDir::Etc::sourcelist="$out/apt/sources.list" -oDir::Etc::sourceparts=/dev/null
     -oDir::State::lists="$out/apt/lists" -oDir::Cache="$out/apt/cache" -oAPT::Sandbox::User=root)
"${apt[@]}" update -qq
(cd "$out/debs" && "${apt[@]}" download -qq nsight-systems nsight-systems-target libssh-4)
for package in "$out"/debs/*.deb; do dpkg -x "$package" "$out/full"; done

target=$out/full/usr/lib/x86_64-linux-gnu/nsight-systems/target-linux-x64
host=$out/full/usr/lib/nsight-systems/host-linux-x64
new=$out/nsys.new
rm -rf "$new"
mkdir -p "$new"/target-linux-x64/python/lib "$new"/host-linux-x64/python/lib "$new/bin"
# What captures.
for file in nsys nsys-launcher libToolsInjection64.so libToolsInjectionProxy64.so \
            libLinuxKeyboardInterceptorProxy.so libToolsInjectionMemoryAllocator.so \
            libcupti.so.12.4 libnvlog.so nvlog.config.template GpuMetrics CudaGpuInfoDumper; do
  [ ! -e "$target/$file" ] || cp -aL "$target/$file" "$new/target-linux-x64/"
done
# What makes a .nsys-rep of a .qdstrm. It looks beside its own folder, so host is target's sibling,
# and for libssh among its libraries.
cp -a "$host/QdstrmImporter" "$new/host-linux-x64/"
LD_LIBRARY_PATH=$host:$out/full/usr/lib/x86_64-linux-gnu ldd "$host/QdstrmImporter" |
  sed -n 's/.* => \(.*\) (0x.*/\1/p' | grep -F "$out/full/" | sort -u |
  while read -r library; do cp -L "$library" "$new/host-linux-x64/"; done
cp -L "$out/full/usr/lib/x86_64-linux-gnu/libssh.so.4" "$new/host-linux-x64/libssh.so.4"
ln -sf libssh.so.4 "$new/host-linux-x64/libssh.so"
# What `nsys stats` needs; its own Python 3.8 looks for modules nowhere else.
cp -a "$host/reports" "$host/rules" "$host/sqlite3" "$new/host-linux-x64/"
cp "$target"/python/lib/*.py "$new/host-linux-x64/python/lib/"
ln -sf ../target-linux-x64/nsys "$new/bin/nsys"

rm -rf "$out/full" "$out/debs" "$out/apt" "$out/nsys"
mv "$new" "$out/nsys"
archive "${2:-}"
"$out/nsys/bin/nsys" --version
