#!/bin/sh
# Installs those of the named Debian packages that are missing. Asks nothing and starts no service;
# where there is no apt, it leaves that to you.
set -eu
command -v apt-get >/dev/null || exit 0
missing=$(for package; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || echo "$package"
done)
[ -n "$missing" ] || exit 0
[ "$(id -u)" = 0 ] || exec sudo "$0" "$@"
echo "installing:" $missing
policy=/usr/sbin/policy-rc.d # what Debian asks before it starts a service
if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    trap 'exit 1' INT TERM
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
fi
apt-get -qq update
DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends $missing >/dev/null
