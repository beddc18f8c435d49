#!/bin/bash
# `make run`: three nodes behind nginx, until Ctrl-C. What they store stays in data/.
set -eu
cd "$(dirname "$0")/.."

stop() {
    trap '' INT TERM HUP
    echo "stopping"
    kill $(jobs -pr) 2>/dev/null || true
    for _ in {1..100}; do
        [ -n "$(jobs -pr)" ] || break
        sleep 0.1
    done
    kill -9 $(jobs -pr) 2>/dev/null || true
    wait
}
trap stop EXIT
trap 'exit 0' INT TERM HUP

# answers PORT: waits until it does. Every process that was started must live till then.
answers() {
    for _ in {1..300}; do
        if [ "$(jobs -pr | wc -l)" != 4 ]; then
            echo "A node or nginx did not start. The last lines of each log in data/:"
            tail -n 3 data/*.log
            exit 1
        fi
        curl -sf -o /dev/null --noproxy '*' --max-time 1 "http://127.0.0.1:$1/_health" && return
        sleep 0.1
    done
    echo "The node at port $1 is not ready after half a minute. See data/*.log"
    exit 1
}

mkdir -p data/nginx
peer=--bootstrap
for port in 8001 8002 8003; do
    ./estoraje --listen 127.0.0.1:$port --data data/$port $peer 2>>data/$port.log &
    peer="--join 127.0.0.1:8001"
done
second=$(jobs -p | sed -n 2p)
as_root=
[ "$(id -u)" != 0 ] || as_root="user root;"
nginx -p data/nginx -c "$PWD/nginx.conf" -e stderr -g "$as_root" 2>>data/nginx.log &
for port in 8001 8002 8003 8000; do
    answers $port
done

cat <<END

Three nodes and nginx are up. In another terminal, try

    curl -T README.md http://127.0.0.1:8000/hello          # store a file
    curl http://127.0.0.1:8000/hello                       # read it
    kill -9 $second    # a node dies: both still work
    ./estoraje --listen 127.0.0.1:8002 --data data/8002    # it comes back

and see the ring at http://127.0.0.1:8000/_ring
Logs: data/*.log. Ctrl-C stops everything.

END
wait
