#!/usr/bin/env bash
# Looks for inputs that make the code panic, hang or eat memory: libFuzzer, guided by coverage, on the pinned stable toolchain.
# Prints one line a target: runs, edges covered, memory, result; for a fault, the input and how to run it again.
#
# usage: fuzz.sh [--seconds N] [--jobs N] [--seed N] [--all|--list] [TARGET...]
#   TARGET       a target, or the start of several (runtime, cni_); default: those whose parts build in a minute or so
#   --seconds N  how long each runs (default 60); 0 only tries what fuzz/corpus holds
#   --jobs N     how many run side by side (default: one a processor)
#   --seed N     tries the same inputs each time, beginning with fuzz/corpus alone
#   --all        all targets; --list names them
set -uo pipefail
. "$(dirname "$0")/lib.sh"
seconds=60 jobs=$(nproc) seed='' wanted=() all='' list=''
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit ;;
    --seconds | --jobs | --seed)
      [[ ${2:-} =~ ^[0-9]{1,6}$ ]] || die "$1 takes a number"
      printf -v "${1#--}" %s "$2"
      shift ;;
    --all) all=1 ;;
    --list) list=1 ;;
    -*) die "unknown argument $1 (see --help)" ;;
    *) wanted+=("$1") ;;
  esac
  shift
done
cd "$ROOT" || exit

# What the manifest says: a target a line, and the part it belongs to.
known=$(awk -F'"' '/^name = /{n=$2} /^required-features = /{print n, $2}' fuzz/Cargo.toml)
light=$(awk -F'[][]' '/^light = /{gsub(/[",]/, " ", $2); print $2}' fuzz/Cargo.toml)
if [ -n "$list" ]; then echo "$known" | cut -d' ' -f1; exit; fi
targets=() parts=()
while read -r target part; do
  take=$all
  if [ -z "$all" ] && [ ${#wanted[@]} = 0 ]; then [[ " $light " = *" $part "* ]] && take=1; fi
  for word in "${wanted[@]}"; do [[ $target = "$word"* ]] && take=1; done
  if [ -n "$take" ]; then targets+=("$target"); [[ " ${parts[*]} " = *" $part "* ]] || parts+=("$part"); fi
done <<<"$known"
[ ${#targets[@]} -gt 0 ] || die "no target is called so: ${wanted[*]} (see --list)"

step "Building ${#targets[@]} fuzz targets"
need_cargo
[ "$(id -u)" != 0 ] || need_packages g++
command -v g++ >/dev/null || die "g++ is missing: libFuzzer is C++ (Debian: apt-get install g++)"
target_dir=${CARGO_TARGET_DIR:-$ROOT/target}
home=$target_dir/fuzz bin=$target_dir/debug
mkdir -p "$home" || exit
args=(); for target in "${targets[@]}"; do args+=(--bin "$target"); done
printf -v features '%s,' "${parts[@]}"
# Not --locked: a dependency that a crate got since is no reason to stop here; the programs' own lock file decides what they get.
CARGO_TARGET_DIR=$target_dir RUSTC_WRAPPER=$ROOT/fuzz/rustc.sh CARGO_INCREMENTAL=0 long "$home/build.log" \
  cargo build --manifest-path fuzz/Cargo.toml --no-default-features --features "$features" "${args[@]}"

# Where targets put files: in memory where there is room, for the disk would be what is measured.
scratch=$(mktemp -d /dev/shm/gantry-fuzz.XXXXXX 2>/dev/null || mktemp -d) || exit
trap 'chmod -R u+rwx "$scratch" 2>/dev/null; rm -rf "$scratch"' EXIT
ulimit -c 0

# Runs one target and prints its line: run TARGET
run() {
  local target=$1 log=$home/$1.log faults=$home/faults/$1/ rc limit=$seconds args stat cov input
  mkdir -p "$home/corpus/$target" "$faults" "$scratch/$target" "$scratch/$target.found"
  args=(-rss_limit_mb=1024 -timeout=30 -max_len=65536 -print_final_stats=1 -artifact_prefix="$faults")
  [ ! -e "fuzz/dict/$target.dict" ] || args+=(-dict="fuzz/dict/$target.dict")
  # New inputs go to the first folder: the repository holds those that someone chose.
  if [ "$limit" = 0 ]; then
    args+=(-runs=0)
  elif [ -n "$seed" ]; then
    args+=(-max_total_time="$limit" -seed="$seed" "$scratch/$target.found")
  else
    args+=(-max_total_time="$limit" "$home/corpus/$target")
  fi
  TMPDIR=$scratch/$target timeout -k 10 $((limit + 120)) nice -n 5 "$bin/$target" "${args[@]}" "fuzz/corpus/$target" >"$log" 2>&1
  rc=$?
  if [ "$rc" = 0 ]; then
    stat=$(awk '/^stat::number_of_executed_units/{n=$2} /^stat::average_exec_per_sec/{s=$2} /^stat::peak_rss_mb/{m=$2} END{print n, s, m}' "$log")
    cov=$(grep -oE ' cov: [0-9]+' "$log" | tail -n 1)
    # shellcheck disable=SC2086 # three words
    printf '    %-24s %9s runs %6s/s %5s MB %6s edges  no fault\n' "$target" $stat "${cov##* }"
    return 0
  fi
  input=$(sed -n 's/^artifact_prefix=.*Test unit written to //p' "$log" | tail -n 1)
  printf '    %-24s %sFAULT%s (exit code %s)\n' "$target" "$red" "$plain" "$rc"
  grep -E -A 2 'panicked at|^==[0-9]+== ?ERROR|^SUMMARY' "$log" | grep -v '^--$' | head -n 12 | sed 's/^/    | /'
  printf '    | input: %s\n    | again: %s %s\n' "${input:-none was written, see $log}" "$bin/$target" "$input"
  return 1
}

step "Running each for $seconds s, $jobs side by side"
failed=0 running=0
for target in "${targets[@]}"; do
  if [ "$running" -ge "$jobs" ]; then wait -n || failed=$((failed + 1)); running=$((running - 1)); fi
  run "$target" &
  running=$((running + 1))
done
while [ "$running" -gt 0 ]; do wait -n || failed=$((failed + 1)); running=$((running - 1)); done
echo "$((${#targets[@]} - failed)) without a fault, $failed with one"
[ "$failed" = 0 ]
