#!/usr/bin/env bash
# Boots machines n1..nN that see each other as 10.99.0.1..N, and waits until one can log in. Those that run already stay.
#
# usage: up.sh [--nodes N] [--memory MiB] [--disk GiB] [--extra-disks COUNT] [--cpus N]
#        each but the first also as NODE=VALUE, for one machine: --memory 2048 --memory n3=1024
set -uo pipefail
. "$(dirname "$0")/lib.sh"
nodes=1
declare -A size=([memory]=2048 [disk]=8 [extra-disks]=0 [cpus]=2)
while [ $# -gt 0 ]; do
  case $1 in
    -h|--help) sed -n '2,5s/^# \{0,1\}//p' "$0"; exit ;;
    --nodes) nodes=$2; shift ;;
    --memory|--disk|--extra-disks|--cpus)
      case $2 in n[1-5]=*) size[${1#--}.${2%%=*}]=${2#*=} ;; *) size[${1#--}]=$2 ;; esac
      shift ;;
    *) die "unknown argument $1 (see --help)" ;;
  esac
  shift
done
step "Machines"
vm_requirements
base=$("$ROOT/scripts/vm/image.sh") || exit 1
accel=$(vm_accelerator "$base")
note "accelerator: $accel"

free_port() { python3 -c 'import socket; s=socket.socket(); s.bind(("127.0.0.1",0)); print(s.getsockname()[1])'; }

# Every machine's eth1 is a port of a hub in n1's QEMU; the others join by a unix socket, so nothing is on this host's network.
lan() { # number
  local n=$1 other
  if [ "$n" != 1 ]; then
    printf '%s\n' -netdev "stream,id=lan,server=off,addr.type=unix,addr.path=$VM_STATE/n1/lan-$n.sock" -device "virtio-net-pci,netdev=lan,mac=52:54:00:99:00:0$n"
    return
  fi
  printf '%s\n' -netdev hubport,id=lan,hubid=0 -device "virtio-net-pci,netdev=lan,mac=52:54:00:99:00:01"
  for other in 2 3 4 5; do
    printf '%s\n' -netdev "stream,id=s$other,server=on,addr.type=unix,addr.path=$VM_STATE/n1/lan-$other.sock" -netdev "hubport,id=h$other,hubid=0,netdev=s$other"
  done
}

of() { echo "${size[$1.$2]:-${size[$1]}}"; } # size node

boot() { # number
  local n=$1 node=n$1 dir=$VM_STATE/n$1 port arguments i
  mkdir -p "$dir" && rm -f "$dir"/*.sock "$dir/ssh"
  [ -s "$dir/disk.qcow2" ] || qemu-img create -q -f qcow2 -b "$base/disk.img" -F raw "$dir/disk.qcow2" "$(of disk "$node")G" || die "cannot make a disk for $node"
  port=$(free_port); echo "$port" >"$dir/port"
  mapfile -t arguments < <(lan "$n")
  for ((i = 1; i <= $(of extra-disks "$node"); i++)); do
    [ -s "$dir/extra-$i.img" ] || truncate -s 2G "$dir/extra-$i.img"
    arguments+=(-drive "file=$dir/extra-$i.img,if=virtio,format=raw,cache=unsafe")
  done
  qemu-system-x86_64 -name "$node" -accel "$accel" -cpu max,-arch-capabilities -smp "$(of cpus "$node")" -m "$(of memory "$node")" -nodefaults -no-user-config -display none \
    -kernel "$base/vmlinuz" -initrd "$base/initrd.img" \
    -append "root=/dev/vda rw console=ttyS0 net.ifnames=0 quiet mitigations=off systemd.show_status=0 apparmor=1 security=apparmor gantry.hostname=$node gantry.address=10.99.0.$n" \
    -drive "file=$dir/disk.qcow2,if=virtio,format=qcow2,cache=unsafe" \
    -netdev "user,id=out,hostfwd=tcp:127.0.0.1:$port-:22" -device virtio-net-pci,netdev=out,mac=52:54:00:98:00:0$n \
    "${arguments[@]}" -device virtio-rng-pci -serial "file:$dir/console.log" \
    -monitor "unix:$dir/monitor.sock,server=on,wait=off" -daemonize -pidfile "$dir/pid" 2>"$dir/qemu.log" || die "QEMU did not start $node" "$dir/qemu.log"
}

for ((n = 1; n <= nodes; n++)); do
  if vm_running "n$n"; then note "n$n runs already"; else boot "$n"; fi
done
for ((n = 1; n <= nodes; n++)); do
  wait_for 240 "n$n to boot" vm_ssh "n$n" true || die "n$n does not let one log in" "$VM_STATE/n$n/console.log"
  good "n$n: ssh port $(cat "$VM_STATE/n$n/port"), 10.99.0.$n"
done
