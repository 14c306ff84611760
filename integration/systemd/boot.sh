#!/bin/bash
# Becomes systemd, or PROGRAM, the first process of a system with little in it. Runs in new process, mount, cgroup, network, IPC and
# UTS namespaces, so that systemd changes nothing outside.
#
#   boot.sh ROOT INSTALLED WORK [PROGRAM...]
#
# ROOT has systemd, / or another; INSTALLED/usr/local becomes its /usr/local, WORK its /mnt, WORK/lib its /var/lib, WORK/etc its /etc.
set -euo pipefail
root=${1%/} installed=$2 work=$3
mount --make-rprivate /
if [ -n "$root" ]; then
	mount --bind "$root" "$root"
	mkdir -p "$root"/{proc,sys,dev,run,mnt,etc,usr/local,var/lib}
	mount --rbind /dev "$root/dev"
	mount -t sysfs sysfs "$root/sys"
	mount -t proc proc "$root/proc"
elif mountpoint -q /sys/fs/cgroup; then
	umount -R /sys/fs/cgroup || umount -l /sys/fs/cgroup
fi
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount --bind "$work" "$root/mnt"
mount --bind "$installed/usr/local" "$root/usr/local"
mount --bind "$work/lib" "$root/var/lib"
mount --bind "$work/etc" "$root/etc"
mount -t tmpfs tmpfs "$root/run"
shift 3
[ $# -gt 0 ] || set -- /usr/lib/systemd/systemd --system --unit=test.target --log-target=console \
	--log-level=info --show-status=no
exec chroot "${root:-/}" env -i PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin container=mica "$@"
