//! Credential providers: programs that a cluster's owner installs and that answer with a login for an image
//! (`--image-credential-provider-config`, `--image-credential-provider-bin-dir`).
//!
//! The protocol is `credentialprovider.kubelet.k8s.io/v1`: one JSON request on standard input, one JSON response on
//! standard output. Answers are kept for as long as they say.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use proto::cri::AuthConfig;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::name;
use crate::config::Span;

const GROUP: &str = "credentialprovider.kubelet.k8s.io/";
/// How long a provider may take, as upstream.
const LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    providers: Vec<Provider>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Provider {
    name: String,
    match_images: Vec<String>,
    default_cache_duration: Span,
    api_version: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<Variable>,
    /// Accepted only to be refused in words.
    token_attributes: Option<Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Variable {
    name: String,
    value: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    api_version: String,
    kind: String,
    #[serde(default)]
    cache_key_type: String,
    cache_duration: Option<Span>,
    #[serde(default)]
    auth: BTreeMap<String, Auth>,
}

#[derive(Clone, Debug, Deserialize)]
struct Auth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

type Logins = BTreeMap<String, Auth>;

/// The node's providers and what they answered.
#[derive(Debug, Default)]
pub(crate) struct Providers {
    folder: PathBuf,
    list: Vec<Provider>,
    /// By provider and key; one call of a provider at a time for an image, so that a batch of pods asks once.
    known: Mutex<HashMap<(String, String), (Instant, Logins)>>,
}

/// What an answer is kept under.
fn keys(provider: &str, image: &str) -> [(String, String); 3] {
    let key = |text: String| (provider.to_owned(), text);
    [key(format!("image {image}")), key(format!("registry {}", name::registry(image))), key("global".to_owned())]
}

impl Providers {
    /// Reads the configuration (a file, or a folder of `.json`, `.yaml` and `.yml` files) and looks for the programs.
    ///
    /// # Errors
    /// A file is wrong, or a program is missing; the text names the field or the path.
    pub(crate) fn read(config: Option<&Path>, folder: Option<&Path>) -> Result<Self> {
        let (config, folder) = match (config, folder) {
            (None, None) => return Ok(Self::default()),
            (Some(config), Some(folder)) => (config, folder),
            _ => bail!("--image-credential-provider-config and --image-credential-provider-bin-dir need each other"),
        };
        let mut list: Vec<Provider> = Vec::new();
        for path in files(config).with_context(|| format!("read {}", config.display()))? {
            let what = || format!("credential providers of {}", path.display());
            let text = std::fs::read_to_string(&path).with_context(what)?;
            let value = crate::config::yaml(&text).with_context(what)?;
            let file: File = serde_path_to_error::deserialize(value)
                .map_err(|e| anyhow::anyhow!("field {}: {}", e.path(), e.inner()))
                .with_context(what)?;
            check(&file).with_context(what)?;
            list.extend(file.providers);
        }
        for (index, provider) in list.iter().enumerate() {
            let twice = list[..index].iter().any(|p| p.name == provider.name);
            ensure!(!twice, "credential provider {:?} is named twice", provider.name);
            let program = folder.join(&provider.name);
            let found =
                std::fs::metadata(&program).with_context(|| format!("credential provider {}", program.display()))?;
            ensure!(found.is_file(), "credential provider {} is not a file", program.display());
        }
        Ok(Self { folder: folder.to_owned(), list, known: Mutex::default() })
    }

    /// The logins for an image, the most specific first. A provider that fails is logged; the pull goes on without it.
    pub(crate) async fn logins(&self, image: &str) -> Vec<AuthConfig> {
        let mut found: Vec<(String, Auth)> = Vec::new();
        for provider in self.list.iter().filter(|p| p.match_images.iter().any(|m| name::matches(m, image))) {
            match self.ask(provider, image).await {
                Ok(logins) => found.extend(logins.into_iter().filter(|(pattern, _)| name::matches(pattern, image))),
                Err(e) => {
                    tracing::warn!(
                        provider = provider.name,
                        image,
                        error = format!("{e:#}"),
                        "credential provider failed"
                    );
                }
            }
        }
        found.sort_by(|(a, _), (b, _)| b.len().cmp(&a.len()).then(b.cmp(a)));
        let login = |auth: Auth| AuthConfig { username: auth.username, password: auth.password, ..Default::default() };
        found.into_iter().map(|(_, auth)| login(auth)).collect()
    }

    async fn ask(&self, provider: &Provider, image: &str) -> Result<Logins> {
        let mut known = self.known.lock().await;
        known.retain(|_, (until, _)| *until > Instant::now());
        let keys = keys(&provider.name, image);
        if let Some((_, logins)) = keys.iter().find_map(|k| known.get(k)) {
            return Ok(logins.clone());
        }
        let response = self.run(provider, image).await?;
        let lasts = response.cache_duration.unwrap_or(provider.default_cache_duration).0;
        let key = match response.cache_key_type.as_str() {
            "Image" => 0,
            "Registry" => 1,
            "Global" => 2,
            other => bail!("its cacheKeyType {other:?} is none of Image, Registry, Global"),
        };
        if !lasts.is_zero() {
            known.insert(keys[key].clone(), (Instant::now() + lasts, response.auth.clone()));
        }
        Ok(response.auth)
    }

    async fn run(&self, provider: &Provider, image: &str) -> Result<Response> {
        let program = self.folder.join(&provider.name);
        let request = json!({"apiVersion": provider.api_version, "kind": "CredentialProviderRequest", "image": image});
        let mut child = tokio::process::Command::new(&program)
            .args(&provider.args)
            .envs(provider.env.iter().map(|v| (&v.name, &v.value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let mut stdin = child.stdin.take().context("its standard input")?;
        let talk = async {
            // A program that answers without reading is fine.
            let _ = stdin.write_all(request.to_string().as_bytes()).await;
            drop(stdin);
            child.wait_with_output().await
        };
        let output = tokio::time::timeout(LIMIT, talk).await.context("it did not answer within a minute")??;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "it ended with {}: {}", output.status, said.trim());
        let response: Response = serde_json::from_slice(&output.stdout).context("read its answer")?;
        ensure!(response.kind == "CredentialProviderResponse", "its answer is a {:?}", response.kind);
        ensure!(
            response.api_version == provider.api_version,
            "it answered in {:?}, asked in {:?}",
            response.api_version,
            provider.api_version
        );
        Ok(response)
    }
}

fn files(config: &Path) -> std::io::Result<Vec<PathBuf>> {
    if !std::fs::metadata(config)?.is_dir() {
        return Ok(vec![config.to_owned()]);
    }
    let mut out = Vec::new();
    for entry in std::fs::read_dir(config)? {
        let path = entry?.path();
        if path.is_file() && path.extension().is_some_and(|e| e == "json" || e == "yaml" || e == "yml") {
            out.push(path);
        }
    }
    out.sort();
    Ok(out)
}

fn check(file: &File) -> Result<()> {
    ensure!(
        file.kind == "CredentialProviderConfig" && file.api_version.starts_with("kubelet.config.k8s.io/v1"),
        "it is {:?} {:?}, not kubelet.config.k8s.io/v1 CredentialProviderConfig",
        file.api_version,
        file.kind
    );
    ensure!(!file.providers.is_empty(), "field providers: at least one is needed");
    for (index, p) in file.providers.iter().enumerate() {
        let at = format!("field providers[{index}]");
        let plain = !p.name.is_empty() && !p.name.contains(['/', ' ']) && p.name != "." && p.name != "..";
        ensure!(plain, "{at}.name: {:?} is not the name of a program", p.name);
        ensure!(!p.match_images.is_empty(), "{at}.matchImages: at least one is needed");
        let version = p.api_version.strip_prefix(GROUP);
        ensure!(
            matches!(version, Some("v1" | "v1beta1" | "v1alpha1")),
            "{at}.apiVersion: {:?} is not {GROUP}v1",
            p.api_version
        );
        ensure!(
            p.token_attributes.is_none(),
            "{at}.tokenAttributes: this kubelet gives credential providers no service account tokens"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A provider that counts its calls and answers as told.
    fn provider(answer: &str) -> (tempfile::TempDir, Result<Providers>) {
        let dir = tempfile::tempdir().unwrap();
        let (bin, calls) = (dir.path().join("bin"), dir.path().join("calls"));
        std::fs::create_dir(&bin).unwrap();
        let script = format!("#!/bin/sh\ncat >>{0}; echo >>{0}\n{answer}\n", calls.display());
        std::fs::write(bin.join("login"), script).unwrap();
        std::fs::set_permissions(bin.join("login"), std::fs::Permissions::from_mode(0o755)).unwrap();
        let config = dir.path().join("config.yaml");
        let text = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: login\n  \
                    matchImages: ['*.example.com', 'r.io/team']\n  defaultCacheDuration: 1h\n  \
                    apiVersion: credentialprovider.kubelet.k8s.io/v1\n  args: [get]\n  env: [{name: WHO, value: me}]\n";
        std::fs::write(&config, text).unwrap();
        let read = Providers::read(Some(&config), Some(&bin));
        (dir, read)
    }

    fn calls(dir: &tempfile::TempDir) -> Vec<Value> {
        let text = std::fs::read_to_string(dir.path().join("calls")).unwrap_or_default();
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    fn answer(kind: &str, more: &str) -> String {
        format!(
            r#"echo '{{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderResponse","cacheKeyType":"{kind}",{more}"auth":{{"*.example.com":{{"username":"'$WHO-$1'","password":"p"}},"a.example.com/x":{{"username":"exact","password":"q"}}}}}}'"#
        )
    }

    #[tokio::test]
    async fn a_program_is_asked_once_for_a_registry() {
        let (dir, providers) = provider(&answer("Registry", ""));
        let providers = providers.unwrap();
        let users = |logins: Vec<AuthConfig>| logins.into_iter().map(|l| l.username).collect::<Vec<_>>();
        assert_eq!(users(providers.logins("a.example.com/x/y:1").await), ["exact", "me-get"]);
        assert_eq!(users(providers.logins("a.example.com/other").await), ["me-get"]);
        assert!(providers.logins("quay.io/x").await.is_empty());
        let calls = calls(&dir);
        assert_eq!(calls.len(), 1, "{calls:?}");
        assert_eq!(calls[0]["image"], "a.example.com/x/y:1");
        assert_eq!(calls[0]["kind"], "CredentialProviderRequest");
    }

    #[tokio::test]
    async fn an_answer_that_must_not_be_kept_is_asked_for_again() {
        let (dir, providers) = provider(&answer("Global", r#""cacheDuration":"0s","#));
        let providers = providers.unwrap();
        for _ in 0..2 {
            assert_eq!(providers.logins("b.example.com/x").await.len(), 1);
        }
        assert_eq!(calls(&dir).len(), 2);
    }

    #[tokio::test]
    async fn a_failed_program_gives_no_login() {
        let (_dir, providers) = provider("echo no >&2; exit 3");
        assert!(providers.unwrap().logins("b.example.com/x").await.is_empty());
    }

    #[test]
    fn wrong_files_name_the_field() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        let head = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: x\n";
        for (text, want) in [
            (
                format!("{head}  matchImages: [a]\n  defaultCacheDuration: 1h\n  apiVersion: v9\n"),
                "providers[0].apiVersion",
            ),
            (
                format!("{head}  matchImages: []\n  defaultCacheDuration: 1h\n  apiVersion: {GROUP}v1\n"),
                "providers[0].matchImages",
            ),
            (
                format!("{head}  matchImages: [a]\n  defaultCacheDuration: 1h\n  apiVersion: {GROUP}v1\n  wrong: 1\n"),
                "wrong",
            ),
            (
                format!("{head}  matchImages: [a]\n  defaultCacheDuration: 1h\n  apiVersion: {GROUP}v1\n"),
                "/bin-dir-that-is-not/x",
            ),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Providers::read(Some(&path), Some(Path::new("/bin-dir-that-is-not"))).unwrap_err();
            assert!(format!("{error:#}").contains(want), "{error:#}");
        }
        assert!(Providers::read(Some(&path), None).is_err());
    }
}
