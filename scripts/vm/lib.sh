# Shared by the scripts of this folder. Sourced, never run.
# shellcheck shell=bash
#
# A machine is QEMU with Debian 12, systemd, cgroup v2 and AppArmor. All of it lies below $VM_STATE:
#   base-HASH/{disk.img,vmlinuz,initrd.img}   the image, by the hash of what it is made from
#   key, key.pub                              to log in with
#   NODE/{disk.qcow2,pid,port,console.log}    one machine
# Machines see each other on eth1 as 10.99.0.N; eth0 is QEMU's own network, on which only this script reaches them.

. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
VM_STATE=${GANTRY_VM_STATE:-$ROOT/target/vm}
VM_SUITE=bookworm
VM_PACKAGES=systemd,systemd-sysv,dbus,udev,kmod,linux-image-cloud-amd64,initramfs-tools,openssh-server,iproute2,nftables,iputils-ping,procps,apparmor,apparmor-utils,ca-certificates,curl,busybox-static,e2fsprogs,uidmap

# What the image is made from; another text is another image.
vm_image_hash() {
  { echo "$VM_SUITE $VM_PACKAGES"; cat "$ROOT/scripts/vm/image.sh" "$VM_STATE/key.pub"; } | sha256sum | cut -c1-16
}
vm_base() { echo "$VM_STATE/base-$(vm_image_hash)"; }

vm_key() {
  mkdir -p "$VM_STATE" && chmod 700 "$VM_STATE"
  [ -s "$VM_STATE/key" ] || ssh-keygen -q -t ed25519 -N '' -C gantry-vm -f "$VM_STATE/key"
}

vm_nodes() { local d; for d in "$VM_STATE"/n*/; do [ ! -d "$d" ] || basename "$d"; done; }

# The machine's process, if it is the one that we started.
vm_running() { # node
  local pid
  pid=$(cat "$VM_STATE/$1/pid" 2>/dev/null) && [ -n "$pid" ] && [ -r "/proc/$pid/cmdline" ] && tr "\0" " " <"/proc/$pid/cmdline" | grep -q "$VM_STATE/$1/"
}

vm_ssh_options() { # node
  printf '%s\n' -i "$VM_STATE/key" -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
    -o LogLevel=ERROR -o ConnectTimeout=20 -o ServerAliveInterval=10 -o ServerAliveCountMax=6 \
    -o ControlMaster=auto -o ControlPath="$VM_STATE/$1/ssh" -o ControlPersist=600
}

vm_ssh() { # node command...
  local node=$1 options; shift
  mapfile -t options < <(vm_ssh_options "$node")
  timeout "${vm_ssh_limit:-0}" ssh "${options[@]}" -p "$(cat "$VM_STATE/$node/port")" root@127.0.0.1 "$@"
}

vm_scp() { # node arguments of scp, the machine's paths as vm:PATH
  local node=$1 options arguments=() a; shift
  mapfile -t options < <(vm_ssh_options "$node")
  for a in "$@"; do case $a in vm:*) arguments+=("root@127.0.0.1:${a#vm:}") ;; *) arguments+=("$a") ;; esac; done
  scp -q -r -P "$(cat "$VM_STATE/$node/port")" "${options[@]}" "${arguments[@]}"
}

vm_requirements() {
  need_root
  need_packages mmdebstrap qemu-system-x86 qemu-utils e2fsprogs openssh-client
}

# QEMU's accelerator: hardware where a kernel truly boots with it, else software emulation with a thread per processor.
vm_accelerator() { # image folder
  if [ -n "${GANTRY_VM_ACCEL:-}" ]; then echo "$GANTRY_VM_ACCEL"; return; fi
  if [ ! -s "$VM_STATE/accelerator" ]; then
    local found=tcg,thread=multi
    [ ! -w /dev/kvm ] || ! timeout 8 qemu-system-x86_64 -accel kvm -cpu max,-arch-capabilities -m 512 -nodefaults -display none \
      -no-reboot -kernel "$1/vmlinuz" -initrd "$1/initrd.img" -append "console=ttyS0 panic=-1" -serial stdio </dev/null 2>/dev/null |
      grep -q -m 1 'Linux version' || found=kvm
    echo "$found" >"$VM_STATE/accelerator"
  fi
  cat "$VM_STATE/accelerator"
}
