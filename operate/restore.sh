#!/bin/sh
# restore.sh http://NODE:8001 FOLDER...   of a key in two backups the later; what is at NODE already stays
set -e
export LC_ALL=C TZ=UTC
node=$1
shift
for folder; do
    test -r "$folder/keys"
    set -- "$@" "$folder/keys"
    shift
done
awk -F '\t' -v OFS='\t' '$2 == 200 {
        sub(/^[^\/]*\/\/[^\/]*\//, "", $5)
        sub(/\?.*/, "", $5)
        print $5, $3, substr(FILENAME, 1, length(FILENAME) - 4) $1, $4, $6
    }' "$@" | sort -t "$(printf '\t')" -k1,1 -k2,2r | awk -F '\t' -v node="$node" '
    BEGIN { curl = "curl -sSZ --no-progress-meter --parallel-max 9 -K -" }
    $1 "" == last { next }
    { last = $1 ""; query = ""; gsub(/[\\"]/, "\\\\&", $5) }
    $4 {
        split($4, d, /[ :]/)
        month = (index("JanFebMarAprMayJunJulAugSepOctNovDec", d[3]) + 2) / 3
        seconds = mktime(d[4] " " month " " d[2] " " d[5] " " d[6] " " d[7]) - systime()
        if (seconds <= 0) next
        query = "?ttl=" seconds
    }
    {
        printf "%surl = \"%s/%s%s\"\nrequest = PUT\ndata-binary = \"@%s\"\nheader = \"Content-Type: %s\"\n" \
            "header = \"If-None-Match: *\"\npath-as-is\nretry = 9\noutput = /dev/null\nwrite-out = \"%%{http_code} %%{url}\\n\"\n",
            count++ % 1000 ? "next\n" : "", node, $1, query, $3, $5 | curl
        if (count % 1000 == 0) close(curl)
    }' | { ! grep -v '^\(201\|412\) '; } # those that could not be stored
