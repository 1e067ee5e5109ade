#!/bin/sh
# Runs nginx, and reloads it when the link of the certificate moves; certs verifies that by a handshake.
# It needs only the programs of an nginx image, and no process outside the container.
set -u
link=${LINK:-/certs/live/site}
config=${CONFIG:-/etc/nginx/site.conf}

until [ -e "$link/privkey.pem" ]; do sleep 0.1; done
loaded=$(readlink "$link")
nginx -e stderr -c "$config" &
nginx=$!
trap 'kill -QUIT "$nginx"' TERM INT QUIT

while kill -0 "$nginx" 2>/dev/null; do
    now=$(readlink "$link")
    if [ "$now" != "$loaded" ] && nginx -t -q -e stderr -c "$config"; then
        kill -HUP "$nginx" && loaded=$now
    fi
    # In the background, so that the shell handles a signal at once.
    sleep 1 & wait $!
done
wait "$nginx"
