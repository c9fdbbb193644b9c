#!/bin/bash
# uftrace-remote beside other tracers: a peer of a comparison harness.
#
#   uftrace_remote.sh check|build|list|run VARIANT|attach VARIANT|cleanup
#
# The harness gives helper functions in $SB/lib.sh and the variables BUILD, OUT,
# MODE, THREADS, SECS, RATE (and FUNCS, BIN, TPID, HOLD for attach); key=value
# lines on stdout are the results. UFTRACE_REMOTE_BIN is the folder of
# uftrace-agent and uftrace-remote, where they are not in PATH.
#
# Each command starts an agent of its own, and records with the command line
# program, as a user would.
. "$SB/lib.sh"
[ -n "${UFTRACE_REMOTE_BIN:-}" ] && PATH="$UFTRACE_REMOTE_BIN:$PATH"
export UFTRACE_STATE_DIR="$OUT/state"

agent_start() {
	mkdir -p "$OUT/state"
	bg uftrace-agent --listen 127.0.0.1:0 --state-dir "$OUT/state" --budget off >"$OUT/agent.out" 2>"$OUT/agent.log"
	AGENT=$LAST
	wait_for "$OUT/agent.out" '^listening on ' || die "agent: $(tail -1 "$OUT/agent.log")"
	ADDRESS=$(sed -n 's/^listening on //p' "$OUT/agent.out")
}
# record PID SECONDS: in the background; returns when all functions are enabled
record_start() {
	rm -rf "$OUT/trace"
	bg uftrace-remote record "$ADDRESS:$1" "re:$(funcs)" -o "$OUT/trace" --duration "$2s" --json \
		>"$OUT/record.json" 2>"$OUT/note"
	RECORD=$LAST
	for _ in $(seq 6000); do
		enabled_now && return 0
		kill -0 "$RECORD" 2>/dev/null || die "record: $(tail -1 "$OUT/note")"
		sleep 0.02
	done
	die "record: nothing was enabled"
}
enabled_now() {
	uftrace-remote status "$ADDRESS" --json 2>/dev/null | python3 -c '
import json, sys
sessions = json.load(sys.stdin)["sessions"]
sys.exit(not any(each["session"]["tracepoint_count"] for each in sessions))'
}
record_stop() {
	stop INT "$RECORD"
	python3 - "$OUT/record.json" <<'END'
import json, sys
result = json.load(open(sys.argv[1]))
print(f"events={result['delivered']}\nlost={result['lost']}\nbytes={result['event_bytes']}")
END
}

case "$1" in
check)
	command -v uftrace-agent >/dev/null && command -v uftrace-remote >/dev/null || {
		echo "uftrace-agent and uftrace-remote are not in PATH (or UFTRACE_REMOTE_BIN)"
		exit 1
	} ;;
build) build_bin gcc ;;
list) echo "record attach=1" ;;
run)
	target_start "$(bin gcc)"
	agent_start
	kv t_cmd "$(mono)"
	record_start "$TPID" 600
	target_go
	record_stop
	target_quit
	stop TERM "$AGENT"
	;;
attach)
	agent_start
	record_start "$TPID" 600
	ready
	sleep "$HOLD"
	record_stop >/dev/null
	stop TERM "$AGENT"
	;;
esac
