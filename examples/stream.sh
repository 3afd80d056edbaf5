#!/bin/sh
# Logs in and streams a chat completion with nothing but curl.
#
#     eval "$(cargo stack --env)"
#     examples/stream.sh "What is ballast for?"
set -eu

: "${API_URL:=http://127.0.0.1:8080}"
: "${MODEL:=sim-small}"
question=${1:-"What is ballast for?"}

# Text as a JSON string.
quote() {
    printf '"%s"' "$(printf '%s' "$1" | sed 's/\\/\\\\/g; s/"/\\"/g' | tr '\n\t' '  ')"
}

if [ -n "${DEMO_API_KEY:-}" ]; then
    token=$DEMO_API_KEY
else
    : "${DEMO_EMAIL:?is not set: run eval \"\$(cargo stack --env)\"}" "${DEMO_PASSWORD:?is not set}"
    token=$(curl -fsS "$API_URL/v1/auth/login" -H 'content-type: application/json' \
        -d "{\"email\": $(quote "$DEMO_EMAIL"), \"password\": $(quote "$DEMO_PASSWORD")}" |
        sed 's/.*"access_token" *: *"\([^"]*\)".*/\1/')
fi

# -N: print what comes when it comes. -f is left out, so that an error shows its text.
curl -sSN "$API_URL/v1/chat/completions" \
    -H "authorization: Bearer $token" -H 'content-type: application/json' \
    -d "{\"model\": $(quote "$MODEL"), \"stream\": true, \"messages\": [{\"role\": \"user\", \"content\": $(quote "$question")}]}"
