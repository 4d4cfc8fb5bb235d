# shellcheck shell=bash
# Emulated machines with other kernels than this one's; sourced after lib.sh by the scripts that
# run tests in one. No hardware virtualisation is needed. The caller sets WORK, a directory for
# half-made things.
#
# debian_root TARGET PACKAGE..            a Debian 12 in a directory
# in_root ROOT COMMAND..                  a command in it
# make_disk TARGET ROOT [MKFS-OPTION..]   a disk of it that runs the tests when it is booted
# run_tests KERNEL INITRD DISK COMMAND..  boot it, run a command in the repository; INITRD may be ''

MACHINE_PACKAGES=(mmdebstrap qemu-system-x86 e2fsprogs)
TIMEOUT=3600 # seconds for the machine; emulated, it is ten times slower than this one

# shellcheck disable=SC2317  # called by way of quietly
# A command in a root of its own, with /proc, /dev and an empty /tmp; no network.
in_root() {
    local root=$1
    shift
    # shellcheck disable=SC2016
    unshare --mount --net --pid --fork --kill-child bash -c '
        root=$0
        mount -t proc proc "$root/proc" && mount --rbind /dev "$root/dev" &&
            mount -t tmpfs tmpfs "$root/tmp" &&
            exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root "$@"
    ' "$root" "$@"
}

debian_root() {
    local target=$1
    shift
    say "making a Debian 12 with $*"
    quietly mmdebstrap --quiet --variant=minbase --include="$(IFS=,; echo "$*")" bookworm "$target"
}

make_disk() {
    local target=$1 root=$2
    shift 2
    ln -sf ../proc/self/mounts "$root/etc/mtab"
    cat >"$root/guest-init" <<'INIT'
#!/bin/sh
# The first process: unpacks the second disk, runs what it says, and ends the machine.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sysfs /sys 2>/dev/null
mount -t devtmpfs devtmpfs /dev 2>/dev/null # an initrd has done it
mkdir -p /dev/shm /dev/pts /opt/lamina
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t devpts devpts /dev/pts
modprobe -qa loop fuse 2>/dev/null # where they are modules: nothing here loads them when needed
tar -C /opt/lamina -xf /dev/vdb
cd /opt/lamina && sh ./guest-run
echo "guest status: $?"
sync
exec python3 -c 'import ctypes; ctypes.CDLL(None).reboot(0x01234567)'
INIT
    chmod 755 "$root/guest-init"
    truncate -s 6G "$WORK/disk"
    quietly mkfs.ext4 -q -F "$@" -d "$root" "$WORK/disk"
    mv "$WORK/disk" "$target"
    rm -rf "$root"
}

# The repository as it is here, less what git ignores, and the command to run in it.
pack_repository() { # TARGET COMMAND..
    local target=$1
    shift
    printf 'TERM=dumb exec %s\n' "${*@Q}" >"$WORK/guest-run"
    git -C "$REPO" ls-files -z --cached --others --exclude-standard |
        (cd "$REPO" && while IFS= read -r -d '' file; do
            ! [ -e "$file" ] || printf '%s\0' "$file"
        done) | tar -C "$REPO" --null -T - -cf "$target"
    tar -C "$WORK" -rf "$target" guest-run
}

run_tests() {
    local kernel=$1 initrd=$2 disk=$3 status
    shift 3
    pack_repository "$WORK/repository" "$@"
    say "booting"
    timeout --foreground "$TIMEOUT" qemu-system-x86_64 -accel tcg -cpu max -m 3G \
        -nodefaults -nographic -serial stdio -no-reboot -snapshot \
        -kernel "$kernel" ${initrd:+-initrd "$initrd"} \
        -append "console=ttyS0 quiet panic=-1 root=/dev/vda rw init=/guest-init" \
        -drive "file=$disk,if=virtio,format=raw" \
        -drive "file=$WORK/repository,if=virtio,format=raw" \
        </dev/null | sed -u 's,\r,,g' | tee "$WORK/console" || true
    status=$(sed -n 's/^guest status: //p' "$WORK/console" | tail -n 1)
    [ -n "$status" ] || die "the machine ended before the tests did"
    return "$status"
}
