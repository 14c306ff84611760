#!/bin/sh
# Before a removal. deb calls it with remove or upgrade, rpm with the number of versions that stay.
set -e
case ${1:-} in
upgrade | failed-upgrade | 1) exit 0 ;;
esac
[ -d /run/systemd/system ] || exit 0
systemctl disable --quiet micad.service
# Whoever reads a lazy layer needs the process, and it needs no program: it is only ended without.
if grep -q ' /var/lib/micad/[^ ]* .* - fuse.mica ' /proc/self/mountinfo; then
	echo "mica: lazy layers are mounted: this micad goes on serving them until the machine restarts" >&2
	# Without a unit systemd would drop what it keeps for a micad that is installed meanwhile.
	sed 's/^Restart=.*/Restart=no/' /usr/lib/systemd/system/micad.service \
		>/run/systemd/system/micad.service
	exit 0
fi
systemctl stop micad.service
