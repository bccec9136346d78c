#!/usr/bin/env bash
# A node joins with a bootstrap token, renews its client certificate without a restart, serves with a certificate that
# the apiserver issued, takes a new client CA, and asks the apiserver who may do what: real apiserver, CRI daemon and
# kubelet in a network namespace of their own.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
if [ -z "${GANTRY_CERTIFICATES_NS:-}" ]; then
  ns=gantry-certs-$$
  ip netns add "$ns" && ip -n "$ns" link set lo up || exit 1
  trap 'ip netns delete "$ns"' EXIT
  GANTRY_CERTIFICATES_NS=$ns nsenter --net="/run/netns/$ns" "$0" "$@"
  exit
fi
work=$(mktemp -d /var/tmp/gantry-certs.XXXXXX) || exit 1
export GANTRY_STATE=$work/state GANTRY_RUN=$work/run GANTRY_BIN_DIR=${GANTRY_BIN_DIR:-$root/target/gantry/bin}
export GANTRY_NODE_NAME=joiner GANTRY_CGROUP_ROOT=/$GANTRY_CERTIFICATES_NS
. "$root/scripts/lib.sh"
. "$root/scripts/node.sh"
BIN_DIR=$GANTRY_BIN_DIR
pki=$STATE/kubelet/pki

finish() {
  local code=$?
  [ "$code" = 0 ] || tail -n 30 "$STATE"/logs/*.log
  for name in kubelet gantry-cri gantry-apiserver; do stop_daemon "$name" 10; done
  find /sys/fs/cgroup -depth -type d -path "*$GANTRY_CGROUP_ROOT*" -exec rmdir {} \; 2>/dev/null
  rm -rf --one-file-system "$work"
  exit "$code"
}
trap finish EXIT
fail() { echo "FAILED: $*"; exit 1; }
# within SECONDS WHAT COMMAND...: until it succeeds
within() {
  local end=$((SECONDS + $1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || fail "$what did not happen in time: $*"
    sleep 0.2
  done
  echo "ok: $what"
}
serial() { openssl x509 -noout -serial -in "$1" 2>/dev/null; }
changed() { [ "$(serial "$pki/kubelet-client-current.pem")" != "$first" ]; }
states() { kubectl get csr -o "jsonpath={range .items[?(@.spec.signerName==\"kubernetes.io/$1\")]}{.metadata.name} {end}"; }
pending_serving() { for r in $(states kubelet-serving); do kubectl get csr "$r" --no-headers | grep -q Pending && echo "$r" && return; done; return 1; }
served_by() { echo | openssl s_client -connect "127.0.0.1:$KUBELET_PORT" -CAfile "$STATE/apiserver/pki/ca.crt" -verify_return_error 2>/dev/null | openssl x509 -noout -subject 2>/dev/null; }
admin() { curl -sS --max-time 10 --cacert "$STATE/apiserver/pki/ca.crt" --cert "$work/admin.crt" --key "$work/admin.key" "$@"; }

write_node_config || fail "write the configuration"
cat >>"$STATE/kubelet.yaml" <<EOF
rotateCertificates: true
serverTLSBootstrap: true
EOF
# Certificates that live for half a minute, so that a renewal can be seen.
mkdir -p "$STATE/logs"
daemon gantry-apiserver "$BIN_DIR/gantry-apiserver" --data-dir "$STATE/apiserver" --bind-address 127.0.0.1 \
  --secure-port "$API_PORT" --cluster-signing-duration 40s
within 30 "the apiserver answers" api_ready
start_cri
within 30 "the CRI daemon answers" cri_ready
cp "$STATE/apiserver/pki/ca.crt" "$work/clients.crt"
sed -i "s#clientCAFile: .*#clientCAFile: $work/clients.crt#" "$STATE/kubelet.yaml"
kubectl create -f - >/dev/null <<EOF || fail "create the token"
apiVersion: v1
kind: Secret
metadata: {name: bootstrap-token-abcdef, namespace: kube-system}
type: bootstrap.kubernetes.io/token
stringData: {token-id: abcdef, token-secret: 0123456789abcdef, usage-bootstrap-authentication: "true"}
EOF
cat >"$work/bootstrap.kubeconfig" <<EOF
apiVersion: v1
kind: Config
current-context: join
clusters: [{name: c, cluster: {server: "$API_URL", certificate-authority: "$STATE/apiserver/pki/ca.crt"}}]
contexts: [{name: join, context: {cluster: c, user: u}}]
users: [{name: u, user: {token: abcdef.0123456789abcdef}}]
EOF
for part in certificate key; do
  kubectl config view --raw -o "jsonpath={.users[0].user.client-$part-data}" | base64 -d >"$work/admin.$([ $part = key ] && echo key || echo crt)"
done

daemon kubelet "$BIN_DIR/kubelet" --config "$STATE/kubelet.yaml" --kubeconfig "$STATE/kubelet.conf" \
  --bootstrap-kubeconfig "$work/bootstrap.kubeconfig" --root-dir "$STATE/kubelet" --cert-dir "$pki" \
  --hostname-override "$NODE_NAME" --node-ip 127.0.0.1
within 60 "the node is Ready with a certificate that it asked for" node_ready
read -r pid _ <"$RUN/kubelet.pid"
first=$(serial "$pki/kubelet-client-current.pem")
[ -n "$first" ] || fail "no client certificate"
openssl x509 -noout -subject -in "$pki/kubelet-client-current.pem" | grep -q 'O = system:nodes, CN = system:node:joiner' || fail "another subject"
grep -q abcdef "$STATE/kubelet.conf" && fail "the token is in the kubelet's own kubeconfig"
[ "$(stat -L -c %a "$pki/kubelet-client-current.pem")" = 600 ] || fail "others can read the key"

within 60 "the kubelet asks for a serving certificate" pending_serving
served_by | grep -q . && fail "a certificate of the authority is served before it was approved"
kubectl certificate approve "$(pending_serving)" >/dev/null || fail "approve"
within 30 "the issued certificate is served" sh -c "echo | openssl s_client -connect 127.0.0.1:$KUBELET_PORT -CAfile $STATE/apiserver/pki/ca.crt -verify_return_error"
within 10 "an administrator is let in" admin -f "https://127.0.0.1:$KUBELET_PORT/pods"

# The apiserver knows tokens and decides who may do what, by subresource.
kubectl apply -f - >/dev/null <<EOF || fail "create roles"
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader, namespace: default}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: reader}
rules: [{apiGroups: [""], resources: [nodes/pods, nodes/metrics], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: reader}
subjects: [{kind: ServiceAccount, name: reader, namespace: default}]
EOF
token=$(kubectl create token reader) || fail "create a token"
asked() { curl -sk --max-time 10 -o /dev/null -w '%{http_code}' -H "Authorization: Bearer $1" -X "${3:-GET}" "https://127.0.0.1:$KUBELET_PORT$2"; }
for path in /pods /metrics /metrics/resource; do [ "$(asked "$token" $path)" = 200 ] || fail "$path is refused"; done
for path in /configz /stats/summary /logs/ /containerLogs/a/b/c; do [ "$(asked "$token" $path)" = 403 ] || fail "$path is allowed"; done
[ "$(asked "$token" /run/a/b/c POST)" = 403 ] || fail "running commands is allowed"
[ "$(asked none /pods)" = 401 ] || fail "a wrong token is taken"
[ "$(curl -sk --max-time 10 -o /dev/null -w '%{http_code}' "https://127.0.0.1:$KUBELET_PORT/pods")" = 401 ] || fail "nobody is let in"
echo "ok: tokens are reviewed and each path is authorized by its subresource"

within 60 "the client certificate is renewed" changed
kill -0 "$pid" || fail "the kubelet ended"
# Longer than the first certificate lives: the node is still there only if the new one is used.
end=$(date -d "$(openssl x509 -noout -enddate -in "$(ls "$pki"/kubelet-client-2*.pem | head -n 1)" | cut -d= -f2)" +%s)
within 60 "the first certificate dies" sh -c "[ \$(date +%s) -gt $((end + 1)) ]"
renewed() { [ "$(date -d "$(kubectl get lease -n kube-node-lease "$NODE_NAME" -o 'jsonpath={.spec.renewTime}')" +%s)" -gt "$end" ]; }
within 60 "the node reports with the new certificate" renewed
ttl=$(admin "https://127.0.0.1:$KUBELET_PORT/metrics" -k | awk '/^kubelet_certificate_manager_client_ttl_seconds/ {print $2}')
case $ttl in ''|*Inf*|0|-*) fail "the certificate's life is told as \"$ttl\"" ;; esac

# Another client CA: its people are let in, the old authority's are not, and nothing is restarted.
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=other -keyout "$work/ca2.key" -out "$work/ca2.crt" 2>/dev/null
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /O=system:masters/CN=jane -keyout "$work/jane.key" -out "$work/jane.csr" 2>/dev/null
openssl x509 -req -in "$work/jane.csr" -CA "$work/ca2.crt" -CAkey "$work/ca2.key" -CAcreateserial -days 1 \
  -extfile <(printf 'basicConstraints=CA:FALSE\nextendedKeyUsage=clientAuth\n') -out "$work/jane.crt" 2>/dev/null
code() { curl -sk --max-time 10 -o /dev/null -w '%{http_code}' --cert "$1" --key "$2" "https://127.0.0.1:$KUBELET_PORT/pods"; }
jane() { [ "$(code "$work/jane.crt" "$work/jane.key")" = "$1" ]; }
old() { [ "$(code "$work/admin.crt" "$work/admin.key")" = "$1" ]; }
jane 401 || fail "a stranger is let in"
cp "$work/ca2.crt" "$work/new.crt" && mv "$work/new.crt" "$work/clients.crt"
within 20 "people of the new client CA are let in" jane 200
old 401 || fail "the old authority still counts"
kill -0 "$pid" || fail "the kubelet ended"
echo "ok: certificates"
