//! The real kubectl against the real server: create, read, apply, patch, delete, and a kill -9 that loses nothing.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A server that ends with the test, however that ends: one left behind would hold the test runner's output open.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(data: &Path, port: u16) -> Server {
    let child = Command::new(env!("CARGO_BIN_EXE_gantry-apiserver"))
        .args(["--data-dir", &data.to_string_lossy(), "--secure-port", &port.to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Server(child)
}

fn kubectl(data: &Path, args: &[&str]) -> (bool, String) {
    let out = Command::new("kubectl").env("KUBECONFIG", data.join("admin.kubeconfig")).args(args).output().unwrap();
    (out.status.success(), format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)))
}

fn wait_ready(data: &Path) {
    for _ in 0..100 {
        if data.join("admin.kubeconfig").exists() && kubectl(data, &["get", "--raw", "/readyz"]).0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("the server did not become ready");
}

#[test]
fn kubectl_creates_applies_patches_and_deletes_and_a_kill_loses_nothing() {
    if Command::new("kubectl").arg("version").arg("--client").output().is_err() {
        println!("skipped: no kubectl");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = start(dir.path(), port);
    wait_ready(dir.path());
    let manifest = dir.path().join("cm.yaml");
    std::fs::write(&manifest, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {x: z}\n").unwrap();
    let file = manifest.to_string_lossy().into_owned();
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n  - {name: c, image: \"b:1\", ports: \
               [{containerPort: 80}], env: [{name: A, value: b}]}\n";
    let (plain, tolerant) = (dir.path().join("p.yaml"), dir.path().join("t.yaml"));
    std::fs::write(&plain, pod).unwrap();
    let text = format!("{pod}  tolerations: [{{key: a, operator: Exists}}]\n").replace("name: p}", "name: t}");
    std::fs::write(&tolerant, text).unwrap();
    let (plain, tolerant) = (plain.to_string_lossy().into_owned(), tolerant.to_string_lossy().into_owned());
    let steps: &[(&[&str], &str)] = &[
        (&["apply", "-f", &plain], "pod/p created"),
        (&["apply", "-f", &plain], "pod/p unchanged"),
        (&["apply", "-f", &tolerant], "pod/t created"),
        // The list of tolerations is one value: kubectl sends it whole, and the server adds its own again.
        (&["apply", "-f", &tolerant], "pod/t configured"),
        (
            &["get", "pod", "t", "-o", "jsonpath={.metadata.generation} {.spec.tolerations[*].key}"],
            "1 a node.kubernetes.io/not-ready node.kubernetes.io/unreachable",
        ),
        (&["get", "--raw", "/readyz?verbose"], "[+]etcd ok"),
        (&["get", "--raw", "/livez/ping"], "ok"),
        (&["apply", "-f", &file], "configmap/a created"),
        (&["apply", "-f", &file], "configmap/a unchanged"),
        (&["apply", "--server-side", "--force-conflicts", "-f", &file], "serverside-applied"),
        (&["patch", "cm", "a", "--type", "merge", "-p", r#"{"data":{"m":"1"}}"#], "patched"),
        (&["label", "cm", "a", "k=v"], "labeled"),
        (&["get", "cm", "-l", "k=v"], "a "),
    ];
    for (args, wanted) in steps {
        let (_, text) = kubectl(dir.path(), args);
        assert!(text.contains(wanted), "{args:?}: {text}");
    }
    drop(server);
    let _server = start(dir.path(), port);
    wait_ready(dir.path());
    let (_, text) = kubectl(dir.path(), &["get", "cm", "a", "-o", "jsonpath={.data.m}"]);
    let deleted = kubectl(dir.path(), &["delete", "cm", "a"]).1;
    assert_eq!((text.as_str(), deleted.contains("deleted")), ("1", true));
}

#[test]
fn each_node_gets_a_pod_network_of_its_own_and_a_deleted_nodes_is_free_again() {
    if Command::new("kubectl").arg("version").arg("--client").output().is_err() {
        println!("skipped: no kubectl");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let _server = start(dir.path(), port);
    wait_ready(dir.path());
    let add = |name: &str| {
        let file = dir.path().join(format!("{name}.yaml"));
        std::fs::write(&file, format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n")).unwrap();
        let (done, text) = kubectl(dir.path(), &["create", "-f", &file.to_string_lossy()]);
        assert!(done, "{text}");
        for _ in 0..100 {
            let network =
                kubectl(dir.path(), &["get", "node", name, "-o", "jsonpath={.spec.podCIDR} {.spec.podCIDRs}"]).1;
            if network.contains('/') {
                return network;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{name} got no network");
    };
    assert_eq!(add("n1"), "10.244.0.0/24 [\"10.244.0.0/24\"]");
    assert_eq!(add("n2"), "10.244.1.0/24 [\"10.244.1.0/24\"]");
    assert!(kubectl(dir.path(), &["delete", "node", "n1"]).0);
    assert_eq!(add("n3"), "10.244.0.0/24 [\"10.244.0.0/24\"]");
}

/// Writes a CertificateSigningRequest and creates it as someone: what kubectl said.
fn ask(data: &Path, who: &[&str], name: &str, signer: &str, usage: &str, names: &[&str]) -> (bool, String) {
    use base64::Engine as _;
    let key = gantry_kube::csr::new_key().unwrap();
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let pem = gantry_kube::csr::request(&key, "system:node:n1", &["system:nodes".to_owned()], &names).unwrap();
    let request = base64::engine::general_purpose::STANDARD.encode(pem);
    let text = format!(
        "apiVersion: certificates.k8s.io/v1\nkind: CertificateSigningRequest\nmetadata: {{name: {name}}}\nspec:\n  \
         request: {request}\n  signerName: {signer}\n  usages: [digital signature, {usage}]\n  username: somebody else\n"
    );
    let file = data.join(format!("{name}.yaml"));
    std::fs::write(&file, text).unwrap();
    let path = file.to_string_lossy().into_owned();
    kubectl(data, &[who, &["create", "-f", &path]].concat())
}

/// Waits until `kubectl get csr` shows a state.
fn wait_state(data: &Path, name: &str, state: &str) {
    let mut text = String::new();
    for _ in 0..100 {
        text = kubectl(data, &["get", "csr", name, "--no-headers"]).1;
        if text.trim_end().ends_with(state) {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{name} is not {state}: {text}");
}

#[test]
fn nodes_join_with_a_token_and_people_approve_the_rest() {
    use base64::Engine as _;
    if Command::new("kubectl").arg("version").arg("--client").output().is_err() {
        println!("skipped: no kubectl");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let _server = start(data, port);
    wait_ready(data);
    let token = "apiVersion: v1\nkind: Secret\nmetadata: {name: bootstrap-token-abcdef, namespace: kube-system}\n\
                 type: bootstrap.kubernetes.io/token\nstringData: {token-id: abcdef, token-secret: 0123456789abcdef, \
                 usage-bootstrap-authentication: \"true\"}\n";
    std::fs::write(data.join("token.yaml"), token).unwrap();
    let (done, text) = kubectl(data, &["create", "-f", &data.join("token.yaml").to_string_lossy()]);
    assert!(done, "{text}");
    // Without the administrator's certificate, which would win over the token.
    let ca = data.join("pki/ca.crt").to_string_lossy().into_owned();
    let server = format!("--server=https://127.0.0.1:{port}");
    let joiner = ["--kubeconfig=/dev/null", &server, "--certificate-authority", &ca, "--token=abcdef.0123456789abcdef"];
    const CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
    const SERVING: &str = "kubernetes.io/kubelet-serving";
    let (done, text) = ask(data, &joiner, "first", CLIENT, "client auth", &[]);
    assert!(done, "{text}");
    wait_state(data, "first", "Approved,Issued");
    let of = |name: &str, path: &str| kubectl(data, &["get", "csr", name, "-o", &format!("jsonpath={{{path}}}")]).1;
    assert_eq!(of("first", ".spec.username"), "system:bootstrap:abcdef", "whoever asks cannot say who he is");
    let pem = base64::engine::general_purpose::STANDARD.decode(of("first", ".status.certificate")).unwrap();
    let facts = gantry_kube::pki::inspect(std::str::from_utf8(&pem).unwrap()).unwrap();
    assert_eq!((facts.common_name.as_str(), facts.organizations), ("system:node:n1", vec!["system:nodes".to_owned()]));
    let (refused, text) = kubectl(data, &[&joiner[..], &["get", "secrets", "-A"]].concat());
    assert!(!refused && text.contains("Forbidden"), "{text}");

    assert!(ask(data, &[], "serving", SERVING, "server auth", &["n1"]).0);
    wait_state(data, "serving", "Pending");
    let (done, text) = kubectl(data, &["certificate", "approve", "serving"]);
    assert!(done, "{text}");
    wait_state(data, "serving", "Approved,Issued");
    assert!(ask(data, &[], "unwanted", SERVING, "server auth", &["n1"]).0);
    assert!(kubectl(data, &["certificate", "deny", "unwanted"]).0);
    wait_state(data, "unwanted", "Denied");
    let (done, text) = kubectl(data, &["certificate", "approve", "unwanted"]);
    assert!(!done, "what is denied stays denied: {text}");
    assert!(ask(data, &[], "wrong", SERVING, "client auth", &["n1"]).0);
    assert!(kubectl(data, &["certificate", "approve", "wrong"]).0);
    wait_state(data, "wrong", "Approved,Failed");
}
