#!/bin/bash
# `make bench`: PUT and linearizable GET of 100 bytes, against three nodes of the store and a three-
# node etcd (through its JSON gateway), each directly and through nginx; over 1 connection and over
# 63 (21 a node); on many keys and all on one.
#
# One run, one machine, one disk: all that is compared is measured within seconds of each other,
# with the same wrk and the same script (bench.lua). Both clusters stay up all the time, and the one
# that is not asked is at rest. Directly, each of wrk's three threads talks to one node; with one
# connection, etcd is asked at its leader, which is best for it.
#
#   SECONDS_PER_CELL=5 KEYS=10000 TMPDIR=/var/tmp tests/bench.sh
set -eu
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin
SECONDS_PER_CELL=${SECONDS_PER_CELL:-5}
KEYS=${KEYS:-10000}
BIN=${ESTORAJE_BIN:-$PWD/estoraje}

folder=$(mktemp -d "${TMPDIR:-/tmp}/estoraje-bench-XXXXXX")
chmod 755 "$folder"
stop() {
    trap '' INT TERM HUP
    kill $(jobs -pr) 2>/dev/null || true
    for _ in {1..50}; do
        [ -n "$(jobs -pr)" ] || break
        sleep 0.1
    done
    kill -9 $(jobs -pr) 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf "$folder"
}
trap stop EXIT
trap 'exit 1' INT TERM HUP

fail() {
    echo "bench: $1" >&2
    tail -n 5 "$folder"/*.log >&2
    exit 1
}

# wait_for WHAT COMMAND...: until it succeeds.
wait_for() {
    local what=$1
    shift
    for _ in {1..400}; do
        ! "$@" || return 0
        sleep 0.05
    done
    fail "$what is not ready after 20 s"
}

ask() {
    curl -sf --noproxy '*' --max-time 2 "$@" 2>/dev/null
}

used=
port_free() {
    case " $used " in *" $1 "*) return 1 ;; esac
    ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}
port_take() { # sets $port
    port=$((10000 + ($$ * 17 + RANDOM) % 20000))
    until port_free "$port"; do
        port=$((10000 + (port - 9999) % 20000))
    done
    used="$used $port"
}

# --- The two clusters, and an nginx before each ---------------------------------------------------

estoraje_start() {
    local peer=--bootstrap i
    nodes=
    for i in 1 2 3; do
        port_take
        "$BIN" --listen "127.0.0.1:$port" --data "$folder/estoraje-$i" $peer \
            2>"$folder/estoraje-$i.log" &
        nodes="$nodes $port"
        wait_for "node $i" ask -o /dev/null "http://127.0.0.1:$port/_health"
        [ $i != 1 ] || peer="--join 127.0.0.1:$port"
    done
    for port in $nodes; do
        wait_for "the cluster" settled "$port"
    done
}
settled() {
    [ "$(ask "http://127.0.0.1:$1/_status" | grep -o '"state":"up","live":true' | wc -l)" = 3 ]
}

etcd_start() {
    local i cluster= client=() peer=()
    members=
    for i in 1 2 3; do
        port_take
        client[i]=$port
        port_take
        peer[i]=$port
        cluster="$cluster${cluster:+,}n$i=http://127.0.0.1:$port"
        members="$members ${client[i]}"
    done
    for i in 1 2 3; do
        local ours="http://127.0.0.1:${client[i]}" peers="http://127.0.0.1:${peer[i]}"
        etcd --name "n$i" --data-dir "$folder/etcd-$i" --log-level error \
            --initial-cluster "$cluster" --initial-cluster-state new \
            --listen-peer-urls "$peers" --initial-advertise-peer-urls "$peers" \
            --listen-client-urls "$ours" --advertise-client-urls "$ours" \
            >"$folder/etcd-$i.log" 2>&1 &
    done
    for port in $members; do
        wait_for etcd ask -o /dev/null "http://127.0.0.1:$port/health"
    done
    for port in $members; do
        status=$(ask -X POST -d '{}' "http://127.0.0.1:$port/v3/maintenance/status")
        own=$(sed 's/.*"member_id":"\([0-9]*\)".*/\1/' <<<"$status")
        [ "$own" != "$(sed 's/.*"leader":"\([0-9]*\)".*/\1/' <<<"$status")" ] || leader=$port
    done
    [ -n "${leader:-}" ] || fail "etcd has no leader"
}

# nginx_start NAME PORTS: with the store's own nginx.conf, the upstream's servers replaced.
nginx_start() {
    local servers= p
    port_take
    for p in $2; do
        servers="$servers server 127.0.0.1:$p fail_timeout=1s;"
    done
    sed -e "s/127\.0\.0\.1:8000/127.0.0.1:$port/" -e "s/^ *server 127\.0\.0\.1:8001.*/$servers/" \
        -e '/^ *server 127\.0\.0\.1:800[23]/d' nginx.conf >"$folder/nginx-$1.conf"
    mkdir -m 777 "$folder/nginx-$1"
    nginx -p "$folder/nginx-$1" -c "$folder/nginx-$1.conf" -e stderr 2>"$folder/nginx-$1.log" &
    wait_for "nginx before $1" listening "$port"
}
listening() {
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

# --- Measuring ------------------------------------------------------------------------------------

# measure STORE OPERATION KEYS CONNECTIONS SECONDS PORTS: sets $rate, $p50, $p99 (ms).
measure() {
    local threads=1 result
    [ "$4" = 1 ] || threads=3
    result=$(THREADS=$threads wrk -t$threads -c"$4" -d"$5s" --timeout 10s -s tests/bench.lua \
        "http://127.0.0.1:${6%% *}/" -- "$1" "$2" "$3" $6 | grep ^RESULT) ||
        fail "wrk did not tell a result"
    read -r _ requests seconds p50 p99 errors <<<"$result"
    [ "$errors" = 0 ] ||
        echo "    $errors of $requests failed: $1, $2, $3 keys, $4 connections, ports $6"
    rate=$(awk "BEGIN { printf \"%.0f\", $requests / $seconds }")
    p50=$(awk "BEGIN { printf \"%.2f\", $p50 / 1000 }")
    p99=$(awk "BEGIN { printf \"%.2f\", $p99 / 1000 }")
}

# row OPERATION KEYS CONNECTIONS WAY: the store, then etcd, then what the one is of the other.
row() {
    local ours=${nodes# } theirs=${members# } what="$2 keys" operation=${1,,}
    [ "$2" != 1 ] || what="one key"
    [ "$3" != 1 ] || ours=${ours%% *} theirs=$leader
    [ "$4" != nginx ] || ours=$nginx_ours theirs=$nginx_theirs
    measure estoraje "$operation" "$2" "$3" "$SECONDS_PER_CELL" "$ours"
    local our_rate=$rate our_p50=$p50 our_p99=$p99
    measure etcd "$operation" "$2" "$3" "$SECONDS_PER_CELL" "$theirs"
    printf '%-4s %-10s %3d  %-6s %8d %7s %7s   %8d %7s %7s   %5.1f\n' "$1" "$what" "$3" "$4" \
        "$our_rate" "$our_p50" "$our_p99" "$rate" "$p50" "$p99" \
        "$(awk "BEGIN { print $our_rate / ($rate ? $rate : 1) }")"
}

for tool in wrk etcd nginx curl; do
    command -v $tool >/dev/null || { echo "bench: $tool is not installed" >&2; exit 1; }
done
[ -x "$BIN" ] || { echo "bench: $BIN is not there: make" >&2; exit 1; }
echo "$(date +%F), $(nproc) cores, $("$BIN" --version), $(etcd --version | head -1)"
estoraje_start
etcd_start
nginx_start estoraje "$nodes"
nginx_ours=$port
nginx_start etcd "$members"
nginx_theirs=$port
measure estoraje fill "$KEYS" 63 60 "${nodes# }"
measure etcd fill "$KEYS" 63 60 "${members# }"
echo
echo "                           estoraje                     etcd"
echo "     keys     conns  asked     req/s  p50 ms  p99 ms      req/s  p50 ms  p99 ms   ratio"
for way in direct nginx; do
    for operation in PUT GET; do
        for connections in 1 63; do
            for keys in "$KEYS" 1; do
                row $operation "$keys" $connections $way
            done
        done
    done
done
