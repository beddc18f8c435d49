#!/bin/sh
# backup.sh http://NODE:8001 FOLDER [consistency=one]   values as files; FOLDER/keys has a line for each
set -e
node=$1 next="/?limit=1000${3:+&$3}" page=0
mkdir -p "$2"
cd "$2"
: >keys
while [ "$next" ]; do
    curl -sSf --retry 9 -D head -o list "$node$next"
    [ -s list ] || break
    page=$((page + 1))
    awk -v node="$node" -v query="${3:+?$3}" -v page=$page '
        { printf "url = \"%s/%s%s\"\noutput = %d.%d\n", node, $0, query, page, NR }' list |
        curl -sSZ --no-progress-meter --parallel-max 9 --path-as-is --retry 9 -K - -w \
            '%{filename_effective}\t%{http_code}\t%header{etag}\t%header{estoraje-expires}\t%{url}\t%{content_type}\n' >>keys
    next=$(sed -n 's/^[Ll]ink: <\(.*\)>.*/\1/p' head)
done
! grep -vP '^\S+\t(200|404)\t' keys # those that could not be read
