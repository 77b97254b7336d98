#!/bin/sh
# The quickstart with nothing but curl, as a person would paste it.
set -eu

field() {
    sed -n "s/.*\"$1\":\"\{0,1\}\([^\",}]*\).*/\1/p" | head -n 1
}

answer=$(curl -fsS -X POST "$BASE_URL/start/run-task" \
    -H "Authorization: Bearer wr_0123456789abcdef" \
    -H "Content-Type: application/json" \
    -d '{"taskDetails": "Go to example.com and tell me its heading", "startingUrl": "https://example.com"}')
session=$(printf '%s' "$answer" | field sessionId)
task=$(printf '%s' "$answer" | field taskId)
until printf '%s' "$answer" | grep -q '"type":"task_completed"'; do
    sleep 0.05
    answer=$(curl -fsS "$BASE_URL/task/$session/$task")
done
printf '{"at":"end","result":%s}\n' "$answer"
