#!/bin/sh
# Installs those of the named Debian packages that are missing, or what the named group needs. Asks
# nothing and starts no service; where there is no apt, it leaves that to you.
set -eu
if [ "$1" = page ]; then
    "$0" chromium
    command -v npm >/dev/null || "$0" nodejs npm
    [ -d build/node_modules ] || npm install --silent --no-save --prefix build playwright-core
    exit
fi
build='gcc libc6-dev libmicrohttpd-dev libcurl4-openssl-dev libxxhash-dev'
case $1 in
build) set -- $build ;;
test) set -- $build check nginx curl prometheus systemd help2man ;;
clients) set -- restic ccache git nix-bin qemu-utils qemu-block-extra aria2 wget ;;
fuzz) set -- clang libclang-rt-14-dev ;;
run) set -- nginx curl ;;
bench) set -- wrk etcd-server nginx curl ;;
fmt) set -- clang-format ;;
loc) set -- cloc ;;
install) set -- help2man ;;
esac
command -v apt-get >/dev/null || exit 0
missing() {
    for package; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || echo "$package"
    done
}
[ -n "$(missing "$@")" ] || exit 0
[ "$(id -u)" = 0 ] || exec sudo "$0" "$@"
exec 9</var/lib/dpkg # make -j runs several of us at once; each waits here, then looks again
flock 9
missing=$(missing "$@")
[ -n "$missing" ] || exit 0
echo "installing:" $missing
policy=/usr/sbin/policy-rc.d # what Debian asks before it starts a service
if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    trap 'exit 1' INT TERM
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
fi
# Somebody else's apt may run, too. `apt-get install` waits for it, if asked to; `update` never does.
for _ in $(seq 60); do
    ! apt-get -qq update 2>/dev/null || break
    sleep 1
done
DEBIAN_FRONTEND=noninteractive apt-get -qq install -o DPkg::Lock::Timeout=300 \
    --no-install-recommends $missing >/dev/null
