# Shared by the tests with others' engines: a work folder and cgroup of their own, commands with an expected answer, the end.
# Sourced with $name set, which names both.
# shellcheck shell=bash

work=$(mktemp -d "/var/tmp/gantry-$name.XXXXXX") || exit 1
group=gantry-$name-$$ daemon=

# Ends the daemon, unmounts what it left below the work folder, waits until its cgroups can go, removes the folder.
clean() {
  [ -z "$daemon" ] || { kill "$daemon" 2>/dev/null; wait "$daemon" 2>/dev/null; }
  awk -v w="$work/" 'index($2, w)==1 {print $2}' /proc/self/mounts | sort -r | xargs -r umount
  # The last monitors of containers are just ending.
  for _ in $(seq 50); do
    find /sys/fs/cgroup -depth -type d -path "*/$group*" -exec rmdir {} + 2>/dev/null
    [ -n "$(find /sys/fs/cgroup -type d -path "*/$group*" 2>/dev/null | head -n 1)" ] || break
    sleep 0.2
  done
  rm -rf --one-file-system "$work"
}

fail() { echo "$*"; tail -n 30 "$work/log" 2>/dev/null; exit 1; }
# A command that hangs fails; one that is a function here limits itself.
limited() { if [ "$(type -t "$1")" = function ]; then "$@"; else timeout 60 "$@"; fi; }
# is WHAT WANT CMD...: a command's output, its errors with it, must have WANT in it.
is() { local what=$1 want=$2 got; shift 2; got=$(limited "$@" 2>&1); case $got in *"$want"*) ;; *) fail "$what: wants $want, got: $got" ;; esac; }
# code WHAT WANT CMD...: a command must exit with WANT.
code() { local what=$1 want=$2; shift 2; limited "$@" >"$work/out" 2>&1; local got=$?; [ "$got" = "$want" ] || fail "$what: exit $got, not $want: $(cat "$work/out")"; }

# A root file system of busybox: rootfs FOLDER WORD...
rootfs() {
  local folder=$1 word; shift
  mkdir -p "$folder/bin" "$folder/etc" && cp /bin/busybox "$folder/bin/busybox"
  for word in sh sleep echo cat id tty grep true "$@"; do ln -s busybox "$folder/bin/$word"; done
  echo "root:x:0:0::/:/bin/sh" >"$folder/etc/passwd"
}

# What gantry-run keeps for itself in its root is no container: containers_left FOLDER...
containers_left() { ls -A "$@" 2>/dev/null | grep -vxF -e .kdevtmpfs~ -e .seccomp~; }
