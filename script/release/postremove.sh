#!/bin/sh
# After a removal: purge takes what images have left, unless it is mounted.
set -e
[ ! -d /run/systemd/system ] || systemctl daemon-reload
[ "${1:-}" = purge ] || exit 0
if grep -q ' /var/lib/micad/' /proc/self/mountinfo; then
	echo "mica: /var/lib/micad stays, because images below it are mounted" >&2
	exit 0
fi
rm -rf /var/lib/micad /etc/micad
