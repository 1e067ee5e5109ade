#!/bin/sh
# Runs nginx, and reloads it when the link of the certificate moves; certs sees by a handshake whether it
# did. Nothing but what an nginx image has is needed, and nobody outside of the container is asked.
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
    # In the background, so that a signal is not kept waiting.
    sleep 1 & wait $!
done
wait "$nginx"
