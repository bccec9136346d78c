#!/usr/bin/env bash
# Builds the machines' image once: Debian with systemd and the cloud kernel, no Rust, nothing of Gantry.
# usage: image.sh     prints the folder of the image
set -uo pipefail
. "$(dirname "$0")/lib.sh"
case ${1:-} in -h|--help) sed -n '2,3s/^# \{0,1\}//p' "$0"; exit ;; esac
vm_requirements >&2
vm_key || die "cannot make a key in $VM_STATE"
base=$(vm_base)
if [ -s "$base/disk.img" ] && [ -s "$base/vmlinuz" ] && [ -s "$base/initrd.img" ]; then echo "$base"; exit; fi
note "building the image (once; a few minutes)" >&2
work=$(mktemp -d "$VM_STATE/building.XXXXXX") || die "no room in $VM_STATE"
trap 'rm -rf --one-file-system "$work"' EXIT
root=$work/root
mirror=$(sed -n 's/^deb \(\[[^]]*\] \)\{0,1\}\(http[^ ]*\) .*/\2/p; s/^URIs: *\([^ ]*\).*/\1/p' /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | grep -v security | head -n 1)
configure() { # in the new root: what makes it a machine of ours
  local r=$1
  echo 'MODULES=list' >"$r/etc/initramfs-tools/conf.d/gantry"
  printf '%s\n' virtio_pci virtio_blk virtio_net ext4 >"$r/etc/initramfs-tools/modules"
  chroot "$r" update-initramfs -u
  echo '/dev/vda / ext4 rw,noatime 0 0' >"$r/etc/fstab"
  mkdir -p "$r/root/.ssh" "$r/etc/systemd/network" && cp "$VM_STATE/key.pub" "$r/root/.ssh/authorized_keys" && chmod 700 "$r/root/.ssh"
  printf '[Match]\nName=eth0\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\n[DHCPv4]\nUseDNS=no\nUseHostname=no\n' >"$r/etc/systemd/network/10-eth0.network"
  # The address on eth1 is told by the kernel's command line: gantry.address=10.99.0.N
  cat >"$r/usr/local/sbin/vm-address" <<'SCRIPT'
#!/bin/sh
for word in $(cat /proc/cmdline); do
  case $word in
    gantry.address=*) ip addr replace "${word#*=}/24" dev eth1; ip link set eth1 up ;;
    gantry.hostname=*) hostname "${word#*=}"; echo "${word#*=}" >/etc/hostname ;;
  esac
done
for n in 1 2 3 4 5; do grep -q " n$n\$" /etc/hosts || echo "10.99.0.$n n$n" >>/etc/hosts; done
SCRIPT
  chmod 755 "$r/usr/local/sbin/vm-address"
  printf '[Unit]\nDescription=Address and name of this machine\nDefaultDependencies=no\nAfter=local-fs.target systemd-udev-settle.service\nWants=systemd-udev-settle.service\nBefore=network.target ssh.service\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/usr/local/sbin/vm-address\n[Install]\nWantedBy=multi-user.target\n' >"$r/etc/systemd/system/vm-address.service"
  chroot "$r" systemctl enable vm-address.service systemd-networkd.service ssh.service
  chroot "$r" systemctl mask apt-daily.timer apt-daily-upgrade.timer fstrim.timer e2scrub_all.timer systemd-timesyncd.service man-db.timer getty@tty1.service systemd-networkd-wait-online.service
  mkdir -p "$r/etc/systemd/journald.conf.d" && printf '[Journal]\nStorage=persistent\nForwardToConsole=no\n' >"$r/etc/systemd/journald.conf.d/vm.conf"
  rm -rf "$r"/var/cache/apt/archives/*.deb "$r"/var/lib/apt/lists/*
  : >"$r/etc/machine-id"
}
log=$VM_STATE/image.log
{ mmdebstrap --variant=minbase --include="$VM_PACKAGES" "$VM_SUITE" "$root" ${mirror:+"$mirror"} && configure "$root"; } >"$log" 2>&1 || die "the image could not be built" "$log"
mkdir -p "$work/out"
cp "$root"/boot/vmlinuz-* "$work/out/vmlinuz" && cp "$root"/boot/initrd.img-* "$work/out/initrd.img" || die "the image has no kernel" "$log"
mke2fs -q -t ext4 -L root -d "$root" "$work/out/disk.img" 8G >>"$log" 2>&1 || die "cannot make the file system" "$log"
mv "$work/out" "$base" || die "cannot keep the image in $base"
for old in "$VM_STATE"/base-*; do [ "$old" = "$base" ] || rm -rf --one-file-system "$old"; done
echo "$base"
