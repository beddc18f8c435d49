#!/bin/bash
# `make bench`: how fast the store is, and what a request costs, as one table.
#
# - PUT and linearizable GET of 100 bytes over 1 to 1000 connections, directly and through nginx;
# - larger values, a million keys, and all on one key, with how many writes were answered "unknown";
# - a minute of PUTs, its first and its last ten seconds: what is fast for five seconds may not stay so;
# - beside it, where it takes part, a three-node etcd (through its JSON gateway), and as the ceiling
#   bench_bare.c: libmicrohttpd that does nothing.
#
# One run, one machine, one disk: all that is compared is measured within seconds of each other, with
# the same wrk and the same script (bench.lua). Both clusters stay up all the time, and the one that is
# not asked is at rest. Directly, each of wrk's three threads talks to one node; with one connection,
# etcd is asked at its leader, which is best for it. "us" is CPU a request, in microseconds, of all
# three nodes together, without nginx.
#
#   QUICK=1 tests/bench.sh                      # two or three minutes; without, some twelve, at most 20
#   SECONDS_PER_CELL=5 STEADY=60 MANY=1000000 TMPDIR=/var/tmp tests/bench.sh
[ -n "${BENCH_LIMIT:-}" ] || BENCH_LIMIT=1 exec timeout -k 20 1200 "$0" "$@"
set -eu
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin
QUICK=${QUICK:-}
SECONDS_PER_CELL=${SECONDS_PER_CELL:-${QUICK:+1}}
SECONDS_PER_CELL=${SECONDS_PER_CELL:-5}
STEADY=${STEADY:-${QUICK:+15}}
STEADY=${STEADY:-60}
MANY=${MANY:-${QUICK:+100000}}
MANY=${MANY:-1000000}
KEYS=10000
BIN=${ESTORAJE_BIN:-$PWD/estoraje}
BARE=${BENCH_BARE:-$PWD/build/bench_bare}

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
    nodes= node_pids=
    for i in 1 2 3; do
        port_take
        "$BIN" --listen "127.0.0.1:$port" --data "$folder/estoraje-$i" $peer \
            2>"$folder/estoraje-$i.log" &
        node_pids="$node_pids $!"
        nodes="$nodes $port"
        wait_for "node $i" ask -o /dev/null "http://127.0.0.1:$port/_health"
        [ $i != 1 ] || peer="--join 127.0.0.1:$port"
    done
    for port in $nodes; do
        wait_for "the cluster" at_rest "$port"
    done
}
at_rest() {
    [ "$(ask "http://127.0.0.1:$1/_status" | grep -o '"state":"up","live":true' | wc -l)" = 3 ]
}

etcd_start() {
    local i cluster= client=() peer=()
    members= member_pids=
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
            --quota-backend-bytes $((8 << 30)) >"$folder/etcd-$i.log" 2>&1 &
        member_pids="$member_pids $!"
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

# nginx_start NAME PORTS: with the store's own nginx.conf, the upstream's servers replaced. (etcd has one
# path for all keys, and is asked in turn.)
nginx_start() {
    local servers= p
    port_take
    for p in $2; do
        servers="$servers server 127.0.0.1:$p fail_timeout=1s;"
    done
    sed -e "s/127\.0\.0\.1:8000/127.0.0.1:$port/" -e "s/^ *server 127\.0\.0\.1:8001.*/$servers/" \
        -e '/^ *server 127\.0\.0\.1:800[23]/d' nginx.conf >"$folder/nginx-$1.conf"
    [ "$1" != etcd ] || sed -i '/^ *hash /d' "$folder/nginx-$1.conf"
    mkdir -m 777 "$folder/nginx-$1"
    nginx -p "$folder/nginx-$1" -c "$folder/nginx-$1.conf" -e stderr 2>"$folder/nginx-$1.log" &
    wait_for "nginx before $1" listening "$port"
}
listening() {
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

# --- Measuring ------------------------------------------------------------------------------------

# cpu PID...: microseconds of CPU so far.
cpu() {
    local p ticks=0 fields
    for p; do
        read -r -a fields <<<"$(sed 's/.*) //' "/proc/$p/stat")"
        ticks=$((ticks + fields[11] + fields[12]))
    done
    echo $((ticks * 1000000 / $(getconf CLK_TCK)))
}

# metric PATTERN: the sum over the nodes.
metric() {
    local p
    for p in $nodes; do
        ask --max-time 10 "http://127.0.0.1:$p/_metrics" || true
    done | awk -v pattern="$1" '$0 ~ "^" pattern { sum += $NF } END { printf "%.0f\n", sum }'
}

wrk_run() { # [exec] STORE OPERATION KEYS BYTES CONNECTIONS SECONDS PORTS
    local instead= threads=1
    [ "$1" != exec ] || { instead=exec && shift; }
    [ "$5" = 1 ] || threads=3
    $instead env THREADS=$threads wrk -t$threads -c"$5" -d"$6s" --timeout 10s -s tests/bench.lua \
        "http://127.0.0.1:${7%% *}/" -- "$1" "$2" "$3" "$4" $7
}

# measure the same, PIDS: sets $rate, $p50, $p99 (ms), $us, $errors.
measure() {
    local result requests seconds before
    before=$(cpu $8)
    result=$(wrk_run "$1" "$2" "$3" "$4" "$5" "$6" "$7" | grep ^RESULT) ||
        fail "wrk printed no result"
    read -r _ requests seconds p50 p99 errors <<<"$result"
    us=$(awk "BEGIN { printf \"%.1f\", ($(cpu $8) - $before) / ($requests ? $requests : 1) }")
    rate=$(awk "BEGIN { printf \"%.0f\", $requests / $seconds }")
    p50=$(awk "BEGIN { printf \"%.2f\", $p50 / 1000 }")
    p99=$(awk "BEGIN { printf \"%.2f\", $p99 / 1000 }")
}

# fill KEYS BYTES: until the store has as many, three times.
fill() {
    local job
    (wrk_run exec estoraje fill "$1" "$2" 63 600 "${nodes# }") >/dev/null &
    job=$!
    for _ in {1..3000}; do
        [ "$(metric 'estoraje_keys ')" -lt $((3 * $1)) ] || break
        sleep 0.2
    done
    kill $job 2>/dev/null || true
    wait $job 2>/dev/null || true
}

print() {
    printf '%-4s %8s %8s %5s  %-6s  %8s %8s %8s %7s  %s\n' "$@"
}

# row OPERATION KEYS BYTES CONNECTIONS WAY [alone]: the store, then etcd, then what the one is of the
# other.
row() {
    local ours=${nodes# } theirs=${members# } operation=${1,,} note= unknown
    [ "$4" != 1 ] || ours=${ours%% *} theirs=$leader
    [ "$5" != nginx ] || ours=$nginx_ours theirs=$nginx_theirs
    unknown=$(metric 'estoraje_proposals_total{outcome="unknown"}')
    measure estoraje "$operation" "$2" "$3" "$4" "$SECONDS_PER_CELL" "$ours" "$node_pids"
    unknown=$(($(metric 'estoraje_proposals_total{outcome="unknown"}') - unknown))
    [ "$2" != 1 ] && [ "$errors" = 0 ] || note="   $errors failed, $unknown unknown"
    if [ "${6:-}" = alone ]; then
        print "$1" "$2" "$3" "$4" "$5" "$rate" "$p50" "$p99" "$us" "$note"
        return
    fi
    local our_rate=$rate our_p50=$p50 our_p99=$p99 our_us=$us
    measure etcd "$operation" "$2" "$3" "$4" "$SECONDS_PER_CELL" "$theirs" "$member_pids"
    print "$1" "$2" "$3" "$4" "$5" "$our_rate" "$our_p50" "$our_p99" "$our_us" \
        "$(printf '%8s %8s %8s %7s  %5s' "$rate" "$p50" "$p99" "$us" \
            "$(awk "BEGIN { printf \"%.1f\", $our_rate / ($rate ? $rate : 1) }")")$note"
}

# window SECONDS: requests a second, and CPU a request, of the next seconds.
window() {
    local requests before
    requests=$(metric estoraje_http_requests_total)
    before=$(cpu $node_pids)
    sleep "$1"
    requests=$(($(metric estoraje_http_requests_total) - requests))
    echo "$((requests / $1))/s at $((($(cpu $node_pids) - before) * 10 / requests))"
}

# steady WAY PORTS: a run of $STEADY seconds, its first and its last ten (or a third of it).
steady() {
    local part=$((STEADY < 30 ? STEADY / 3 : 10)) first last
    wrk_run estoraje put "$KEYS" 100 63 "$STEADY" "$2" >"$folder/steady" &
    sleep 0.5
    first=$(window $part)
    sleep $((STEADY - 2 * part - 2))
    last=$(window $part)
    wait $!
    echo "PUT for $STEADY s, $1: first $part s ${first%?}.${first: -1} us, last ${last%?}.${last: -1} us," \
        "$(awk '/^RESULT/ { print $6 }' "$folder/steady") failed"
}

for tool in wrk etcd nginx curl; do
    command -v $tool >/dev/null || { echo "bench: $tool is not installed" >&2; exit 1; }
done
for program in "$BIN" "$BARE"; do
    [ -x "$program" ] || { echo "bench: $program is not there: make bench" >&2; exit 1; }
done
echo "$(date +%F), $(nproc) cores, $("$BIN" --version), $(etcd --version | head -1)"
echo "before it began, others used the machine at a load of $(cut -d' ' -f1-3 /proc/loadavg)"
estoraje_start
etcd_start
nginx_start estoraje "$nodes"
nginx_ours=$port
nginx_start etcd "$members"
nginx_theirs=$port
port_take
"$BARE" "$port" &
bare_pid=$! bare_port=$port
wait_for "the bare server" listening "$port"

fill "$KEYS" 100
wrk_run etcd fill "$KEYS" 100 63 6 "${members# }" >/dev/null
echo
steady direct "${nodes# }"
steady "through nginx" "$nginx_ours"
echo
echo "                                               estoraje                           etcd"
print "" keys bytes conns asked req/s "p50 ms" "p99 ms" us \
    "$(printf '%8s %8s %8s %7s  %5s' req/s "p50 ms" "p99 ms" us ratio)"
for way in direct nginx; do
    for operation in PUT GET; do
        for connections in 1 64 256 1000; do
            row $operation "$KEYS" 100 $connections $way
        done
    done
    for connections in 64 256; do
        row PUT 1 100 $connections $way
    done
done
measure estoraje get 1 100 64 "$SECONDS_PER_CELL" "$bare_port" "$bare_pid"
print GET - 100 64 bare "$rate" "$p50" "$p99" "$us" "   libmicrohttpd alone, one process"
for operation in PUT GET; do
    row $operation 1000 4096 64 direct
done
for operation in PUT GET; do
    row $operation 200 65536 64 direct
done
for connections in 20 64; do # etcd takes no such values
    for operation in PUT GET; do
        row $operation 60 1048576 $connections direct alone
    done
done
resident=$(metric process_resident_memory_bytes)
fill "$MANY" 100
for operation in PUT GET; do
    row $operation "$MANY" 100 64 direct alone
done
grown=$(($(metric process_resident_memory_bytes) - resident))
echo "memory: $((grown / 3 / (MANY - KEYS))) bytes for each more of $MANY keys of 9 bytes"
