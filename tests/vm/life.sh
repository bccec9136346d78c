# Tests of what pods live through: restarts, crashes and hangs of daemons, reboots, resets, an upgrade, and the end.
# shellcheck shell=bash

t_restart() {
  local before after
  containers >"$work/containers"; before=$(cat "$work/containers"); [ -n "$before" ]
  on n1 'systemctl restart kubelet gantry-cri; systemctl restart gantry-apiserver'
  tunnel
  until_so 60 "n1 is Ready" node_is_ready n1
  until_so 60 "all pods are Ready" pods_are_ready "$(wc -l <"$work/containers")"
  after=$(containers)
  diff <(echo "$before") <(echo "$after") || fail "containers restarted"
  [ "$(k exec a1 -- /bin/gantry-demo hostname)" = a1 ] || fail "no exec after the restart"
}

t_kill() {
  local before events_before pods changes
  before=$(containers); pods=$(wc -l <<<"$before"); events_before=$(events)
  # Every change of a pod or node is seen while daemons die, so a flap between two looks is seen too.
  (timeout 100 kubectl --kubeconfig "$work/kubeconfig" get pods --watch -o 'jsonpath={.metadata.name}{" "}{.status.conditions[?(@.type=="Ready")].status}{"\n"}' >"$work/watch" 2>/dev/null) &
  local watcher=$! round unit
  for round in 1 2 3; do
    for unit in kubelet gantry-cri; do
      on n1 "old=\$(systemctl show -P MainPID $unit); kill -9 \$old; for i in \$(seq 300); do new=\$(systemctl show -P MainPID $unit); [ \$new != 0 ] && [ \$new != \$old ] && systemctl is-active -q $unit && exit 0; sleep 0.1; done; exit 1"
    done
  done
  until_so 60 "all pods are Ready" pods_are_ready "$pods"
  kill $watcher 2>/dev/null || true
  diff <(echo "$before") <(containers) || fail "containers restarted"
  ! grep -E ' False' "$work/watch" || fail "readiness flapped"
  changes=$(comm -13 <(echo "$events_before") <(events) | grep -cvE '^(Starting|NodeReady|NodeNotReady) ' || true)
  [ "$changes" -lt 6 ] || { comm -13 <(echo "$events_before") <(events); fail "$changes new Events"; }
  addresses_agree n1
}

t_watchdog() {
  local before unit; before=$(containers)
  for unit in gantry-cri kubelet; do
    on n1 "mkdir -p /run/systemd/system/$unit.service.d; printf '[Service]\nWatchdogSec=6\nTimeoutAbortSec=2\n' >/run/systemd/system/$unit.service.d/fast.conf"
  done
  on n1 'systemctl daemon-reload; systemctl restart gantry-cri kubelet'
  for unit in gantry-cri kubelet; do
    on n1 "old=\$(systemctl show -P MainPID $unit); kill -STOP \$old; for i in \$(seq 120); do new=\$(systemctl show -P MainPID $unit); [ \$new != 0 ] && [ \$new != \$old ] && systemctl is-active -q $unit && exit 0; sleep 0.5; done; exit 1"
    on n1 "journalctl -u $unit --no-pager | grep 'Watchdog timeout'"
  done
  # Fed well, they stay: no restart in three limits.
  on n1 'pids=$(systemctl show -P MainPID gantry-cri kubelet | xargs); sleep 18; test "$pids" = "$(systemctl show -P MainPID gantry-cri kubelet | xargs)"'
  on n1 'rm -r /run/systemd/system/gantry-cri.service.d /run/systemd/system/kubelet.service.d; systemctl daemon-reload; systemctl restart gantry-cri kubelet'
  until_so 60 "n1 is Ready" node_is_ready n1
  diff <(echo "$before") <(containers) || fail "containers restarted"
}

# 20 pods on n1: 18 that are bound, 2 from files.
twenty() {
  local i have
  have=$(k get pods --field-selector spec.nodeName=n1 --no-headers | wc -l)
  on n1 'mkdir -p /etc/kubernetes/manifests'
  # A hard reset may follow: what is not on the disk by then is an empty file after it.
  for i in 1 2; do pod static$i n1 | sed '/nodeName/d' | on n1 "cat >/etc/kubernetes/manifests/static$i.yaml && sync /etc/kubernetes/manifests/static$i.yaml"; done
  [ "$have" -ge 20 ] || for ((i = have + 3; i <= 20; i++)); do pod many$i n1; done | apply
  until_so 240 "20 pods on n1 are Ready" twenty_ready
}
twenty_ready() {
  local n; n=$(k get pods --field-selector spec.nodeName=n1 -o 'jsonpath={range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}' | grep -c True)
  echo "$n of 20 are Ready"; k get pods -o wide; [ "$n" -ge 20 ]
}
restarts() { k get pods --field-selector spec.nodeName=n1 -o 'jsonpath={range .items[*]}{.status.containerStatuses[0].restartCount}{"\n"}{end}' | sort | uniq -c; }

all_came_back() {
  until_so 240 "20 pods on n1 are Ready after the boot" came_back
  addresses_agree n1
  on n1 'gantry-cri fsck' || fail "gantry-cri fsck finds something"
  ! on n1 'journalctl -b -u gantry-cri -u kubelet --no-pager | grep -i "name is reserved"' || fail "a name is reserved"
  # Volumes: one folder per pod that lives.
  local folders uids
  folders=$(on n1 'ls /var/lib/kubelet/pods | sort')
  [ "$(wc -l <<<"$folders")" -le "$(k get pods -A --field-selector spec.nodeName=n1 --no-headers | wc -l)" ] || fail "folders of pods that are gone: $folders"
  restarts
}
# Ready as told by a kubelet of this boot: every container was started again.
came_back() {
  [ "$(k get pods --field-selector spec.nodeName=n1 -o 'jsonpath={range .items[*]}{.status.containerStatuses[0].containerID}{"\n"}{end}' | sort | comm -12 - "$work/ids" | wc -l)" = 0 ] || { echo "containers of before the boot are still reported"; return 1; }
  twenty_ready
}
note_ids() { k get pods --field-selector spec.nodeName=n1 -o 'jsonpath={range .items[*]}{.status.containerStatuses[0].containerID}{"\n"}{end}' | sort >"$work/ids"; }

t_reboot() {
  twenty; note_ids; addresses_agree n1
  local boot; boot=$(on n1 cat /proc/sys/kernel/random/boot_id)
  on n1 'systemctl reboot' || true
  on n1 -O exit >/dev/null 2>&1 || true
  until_so 240 "n1 boots" booted_since "$boot"
  tunnel
  all_came_back
}
booted_since() { local now; now=$(on n1 cat /proc/sys/kernel/random/boot_id) && [ "$now" != "$1" ]; }

t_reset() {
  # What the tests wrote of late is theirs to keep; the daemons see to their own from here on.
  on n1 sync
  twenty; note_ids
  "$vm/reset.sh" n1
  until_so 120 "the apiserver of n1 answers" tunnel
  all_came_back
}

t_upgrade() {
  local before; before=$(containers)
  on n1 'dpkg -i /root/gantry_99*.deb'
  on n1 'dpkg -s gantry | grep "Version: 99"; for u in gantry-apiserver gantry-cri kubelet; do systemctl is-active $u; done'
  # The new programs run, not the deleted old ones.
  on n1 'for u in gantry-apiserver gantry-cri kubelet; do readlink /proc/$(systemctl show -P MainPID $u)/exe; done | grep deleted && exit 1 || true'
  tunnel
  until_so 60 "n1 is Ready" node_is_ready n1
  until_so 60 "pods are Ready" twenty_ready
  diff <(echo "$before") <(containers) || fail "containers restarted"
  on n1 'grep "10.99.0.1" /etc/default/kubelet' # configuration that was changed stays
}

t_purge() {
  # Manifests are the administrator's own files, which no purge may take.
  on n1 'rm -rf /etc/kubernetes/manifests/static*.yaml /etc/kube-flannel; dpkg -P gantry'
  local left
  machine_state n1 | sort -u >"$work/after-n1"
  left=$(comm -13 "$VM_STATE/before-n1" "$work/after-n1" | grep -vE '^file /(root|var/lib/apt|var/lib/private|usr/share/man)(/|$)' || true)
  [ -z "$left" ] || { echo "$left"; fail "the purge left something"; }
  on n1 'systemctl is-system-running; systemctl list-units --failed --no-pager' || true
}
