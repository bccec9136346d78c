#!/usr/bin/env bash
# Wears gantry-cri down: hundreds of pods at once, dozens of starts at once, thousands of lives one after another, and everything
# killed at random moments meanwhile; gigabytes through commands and forwarded ports, logs at full speed. Says what calls take and
# what the daemon holds before and after; fails when anything is left.
# In namespaces and folders of its own; needs root and scripts/build.sh. An hour or so with the defaults.
#
# usage: soak.sh [pods|once|lives|storm|streams|logs ...]   which parts; all without an argument
# env:   PODS (500), AT_ONCE (50), LIVES (10000), KILLED (300) lives while things are killed, SECONDS_AT_MOST (3600) for LIVES,
#        STREAM_MIB (1024) each way four times (needs CRICTL), LOG_MIB (200)
set -uo pipefail
. "$(dirname "$0")/lib.sh"
case ${1:-} in -h|--help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit ;; esac
need_root
need_cargo
for p in gantry-cri gantry-monitor gantry-run gantry-cni; do
  [ -x "$BIN_DIR/$p" ] || die "$BIN_DIR/$p is missing: run scripts/build.sh"
done
export GANTRY_BIN_DIR=$BIN_DIR GANTRY_SOAK_PODS=${PODS:-500} GANTRY_SOAK_AT_ONCE=${AT_ONCE:-50} GANTRY_SOAK_CYCLES=${LIVES:-10000} \
  GANTRY_SOAK_SECONDS=${SECONDS_AT_MOST:-3600} GANTRY_STORM_CYCLES=${KILLED:-300} GANTRY_STREAM_MIB=${STREAM_MIB:-1024} GANTRY_LOG_MIB=${LOG_MIB:-200}
cd "$ROOT" || exit
failed=0
part() { # name, test, words that choose its cases
  step "$1"
  cargo test --locked -q -p cri --test "$2" -- --nocapture --test-threads 1 "$3" || failed=1
}
[ $# -gt 0 ] || set -- pods once lives storm streams logs
for name; do
  case $name in
    pods) part "$GANTRY_SOAK_PODS pods" soak many_pods ;;
    once) part "$GANTRY_SOAK_AT_ONCE pods at once" soak asked_for_at_once ;;
    lives) part "$GANTRY_SOAK_CYCLES lives" soak one_after_another ;;
    storm) part "$GANTRY_STORM_CYCLES lives while everything is killed" storm whatever_is_killed ;;
    streams) part "$GANTRY_STREAM_MIB MiB through commands and ports" streaming much_goes_through ;;
    logs) part "$GANTRY_LOG_MIB MiB of log" logs no_line_is_lost ;;
    *) die "unknown part $name (see --help)" ;;
  esac
done
exit $failed
