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
use k8s_openapi::api::core::v1::Pod;
use kubelet_volumes::Objects;
use proto::cri::AuthConfig;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::name;
use crate::config::{Span, gates};

const GROUP: &str = "credentialprovider.kubelet.k8s.io/";
/// How long a provider may take, as upstream.
const LIMIT: Duration = Duration::from_secs(60);
/// Seconds that a token for a provider lives: what a request that says nothing gets.
const TOKEN_LIFE: i64 = 3600;

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
    token_attributes: Option<TokenAttributes>,
}

/// How a provider gets a token of the pod's service account.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TokenAttributes {
    #[serde(default)]
    service_account_token_audience: String,
    #[serde(default)]
    cache_type: String,
    require_service_account: Option<bool>,
    #[serde(default)]
    required_service_account_annotation_keys: Vec<String>,
    #[serde(default)]
    optional_service_account_annotation_keys: Vec<String>,
}

/// The service account of a pod as a provider sees it.
#[derive(Clone, Debug, Default)]
struct Shown {
    token: String,
    annotations: BTreeMap<String, String>,
    /// What answers are kept under beside the image, and whose the login is.
    account: Option<Account>,
}

/// A service account.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Account {
    /// Its uid.
    pub(crate) uid: String,
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
}

/// A login of a provider; of a service account where it was given that one's token and the login is for it alone.
pub(crate) type Found = (AuthConfig, Option<Account>);

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
fn keys(provider: &Provider, image: &str, shown: &Shown) -> [(String, String); 3] {
    let by_token = provider.token_attributes.as_ref().is_some_and(|t| t.cache_type == "Token");
    // Lists are written with their lengths and quotes, so that no two pods' texts are the same by accident.
    let token = if by_token { super::records::hex(&Sha256::digest(&shown.token)) } else { String::new() };
    let whose = shown.account.as_ref().map(|a| format!("{a:?} {:?} {token}", shown.annotations)).unwrap_or_default();
    let key = |text: String| (provider.name.clone(), format!("{text}\n{whose}"));
    [key(format!("image {image}")), key(format!("registry {}", name::registry(image))), key("global".to_owned())]
}

impl Providers {
    /// Reads the configuration (a file, or a folder of `.json`, `.yaml` and `.yml` files) and looks for the programs.
    /// `tokens` says whether providers may ask for service account tokens.
    ///
    /// # Errors
    /// A file is wrong, or a program is missing; the text names the field or the path.
    pub(crate) fn read(config: Option<&Path>, folder: Option<&Path>, tokens: bool) -> Result<Self> {
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
            check(&file, tokens).with_context(what)?;
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

    /// The logins of a pod for an image, the most specific first. A provider that fails is logged; the pull goes on
    /// without it.
    pub(crate) async fn logins(&self, objects: &dyn Objects, pod: &Pod, image: &str) -> Vec<Found> {
        let mut found: Vec<(String, Auth, Option<Account>)> = Vec::new();
        for provider in self.list.iter().filter(|p| p.match_images.iter().any(|m| name::matches(m, image))) {
            let answer = match shown(objects, pod, provider).await {
                Ok(None) => continue,
                Ok(Some(shown)) => self.ask(provider, image, &shown).await.map(|logins| (logins, shown.account)),
                Err(e) => Err(e),
            };
            match answer {
                Ok((logins, account)) => {
                    let fitting = logins.into_iter().filter(|(pattern, _)| name::matches(pattern, image));
                    found.extend(fitting.map(|(pattern, auth)| (pattern, auth, account.clone())));
                }
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
        found.sort_by(|(a, ..), (b, ..)| b.len().cmp(&a.len()).then(b.cmp(a)));
        let login = |auth: Auth| AuthConfig { username: auth.username, password: auth.password, ..Default::default() };
        found.into_iter().map(|(_, auth, account)| (login(auth), account)).collect()
    }

    /// Service accounts whose tokens providers of an image get: whoever runs under them may use what was pulled so.
    pub(crate) fn asks_for_accounts(&self, image: &str) -> bool {
        let fits = |p: &&Provider| p.match_images.iter().any(|m| name::matches(m, image));
        self.list.iter().filter(fits).any(|p| p.token_attributes.is_some())
    }

    async fn ask(&self, provider: &Provider, image: &str, shown: &Shown) -> Result<Logins> {
        let mut known = self.known.lock().await;
        known.retain(|_, (until, _)| *until > Instant::now());
        let keys = keys(provider, image, shown);
        if let Some((_, logins)) = keys.iter().find_map(|k| known.get(k)) {
            return Ok(logins.clone());
        }
        let response = self.run(provider, image, shown).await?;
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

    async fn run(&self, provider: &Provider, image: &str, shown: &Shown) -> Result<Response> {
        let program = self.folder.join(&provider.name);
        let mut request =
            json!({"apiVersion": provider.api_version, "kind": "CredentialProviderRequest", "image": image});
        if !shown.token.is_empty() {
            request["serviceAccountToken"] = json!(shown.token);
        }
        if !shown.annotations.is_empty() {
            request["serviceAccountAnnotations"] = json!(shown.annotations);
        }
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

/// The image patterns of an answer; none where it is no answer.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn patterns_of(answer: &[u8]) -> Vec<String> {
    let answer = serde_json::from_slice::<Response>(answer).ok();
    answer.into_iter().flat_map(|answer| answer.auth.into_keys()).collect()
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

fn check(file: &File, tokens: bool) -> Result<()> {
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
        if let Some(attributes) = &p.token_attributes {
            let at = format!("{at}.tokenAttributes");
            ensure!(tokens, "{at}: the feature gate {} is off", gates::PROVIDER_TOKENS);
            ensure!(version == Some("v1"), "{at}: only providers of apiVersion {GROUP}v1 get tokens");
            check_attributes(attributes, &at)?;
        }
    }
    Ok(())
}

fn check_attributes(attributes: &TokenAttributes, at: &str) -> Result<()> {
    let TokenAttributes { required_service_account_annotation_keys: required, .. } = attributes;
    let optional = &attributes.optional_service_account_annotation_keys;
    ensure!(!attributes.service_account_token_audience.is_empty(), "{at}.serviceAccountTokenAudience: it is needed");
    let kind = &attributes.cache_type;
    ensure!(
        matches!(kind.as_str(), "ServiceAccount" | "Token"),
        "{at}.cacheType: {kind:?} is none of ServiceAccount, Token"
    );
    let Some(wanted) = attributes.require_service_account else {
        bail!("{at}.requireServiceAccount: it is needed");
    };
    ensure!(
        wanted || required.is_empty(),
        "{at}.requiredServiceAccountAnnotationKeys: requireServiceAccount cannot be false with it"
    );
    for (field, keys) in [("required", required), ("optional", optional)] {
        for (index, key) in keys.iter().enumerate() {
            let at = format!("{at}.{field}ServiceAccountAnnotationKeys[{index}]");
            let why = api_machinery::validate::qualified_name(&key.to_lowercase());
            ensure!(why.is_empty(), "{at}: {key:?}: {}", why.join(", "));
            ensure!(!keys[..index].contains(key), "{at}: {key:?} is named twice");
        }
    }
    if let Some(both) = required.iter().find(|key| optional.contains(key)) {
        bail!("{at}: annotation key {both:?} cannot be both required and optional");
    }
    Ok(())
}

/// What a provider gets to see of the pod's service account; `None` where it is not asked for this pod.
async fn shown(objects: &dyn Objects, pod: &Pod, provider: &Provider) -> Result<Option<Shown>> {
    let Some(attributes) = &provider.token_attributes else { return Ok(Some(Shown::default())) };
    let name = pod.spec.as_ref().and_then(|s| s.service_account_name.clone()).unwrap_or_default();
    if name.is_empty() {
        // A pod of a manifest has none.
        return Ok((attributes.require_service_account == Some(false)).then(Shown::default));
    }
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let found = objects.service_account(&namespace, &name).await?;
    let found = found.with_context(|| format!("service account {namespace}/{name} does not exist"))?;
    let has = found.metadata.annotations.unwrap_or_default();
    let mut annotations = BTreeMap::new();
    for key in &attributes.required_service_account_annotation_keys {
        // Accounts take part by it; the others are none of the provider's.
        let Some(value) = has.get(key) else { return Ok(None) };
        annotations.insert(key.clone(), value.clone());
    }
    for key in &attributes.optional_service_account_annotation_keys {
        annotations.extend(has.get(key).map(|value| (key.clone(), value.clone())));
    }
    let token = objects.token(pod, Some(&attributes.service_account_token_audience), TOKEN_LIFE).await?.token;
    let account = Account { uid: found.metadata.uid.unwrap_or_default(), namespace, name };
    Ok(Some(Shown { token, annotations, account: Some(account) }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use futures::future::BoxFuture;
    use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service, ServiceAccount};
    use kubelet_volumes::{ObjectError, Token};
    use serde_json::Value;

    use super::*;

    /// One service account, whose tokens are counted.
    #[derive(Default)]
    struct Accounts(std::sync::atomic::AtomicU32);

    type Answer<'a, T> = BoxFuture<'a, Result<T, ObjectError>>;

    impl Objects for Accounts {
        fn config_map<'a>(&'a self, _: &'a str, _: &'a str) -> Answer<'a, Option<ConfigMap>> {
            Box::pin(async { Ok(None) })
        }

        fn secret<'a>(&'a self, _: &'a str, _: &'a str) -> Answer<'a, Option<Secret>> {
            Box::pin(async { Ok(None) })
        }

        fn token<'a>(&'a self, _: &'a Pod, audience: Option<&'a str>, _: i64) -> Answer<'a, Token> {
            let count = self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let token = format!("token-{}-{count}", audience.unwrap_or_default());
            Box::pin(async { Ok(Token { token, expires: jiff::Timestamp::MAX }) })
        }

        fn services<'a>(&'a self, _: &'a str) -> Answer<'a, Vec<Service>> {
            Box::pin(async { Ok(Vec::new()) })
        }

        fn service_account<'a>(&'a self, namespace: &'a str, name: &'a str) -> Answer<'a, Option<ServiceAccount>> {
            let annotations = if name == "builder" { json!({"r.io/role": "b", "r.io/team": "t"}) } else { json!({}) };
            let meta =
                json!({"name": name, "namespace": namespace, "uid": format!("uid-{name}"), "annotations": annotations});
            Box::pin(async move { Ok(serde_json::from_value(json!({"metadata": meta})).ok()) })
        }
    }

    fn pod_of(account: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"serviceAccountName": account, "containers": []}}))
        .unwrap()
    }

    impl Providers {
        async fn plain(&self, image: &str) -> Vec<AuthConfig> {
            self.logins(&Accounts::default(), &Pod::default(), image).await.into_iter().map(|(auth, _)| auth).collect()
        }
    }

    /// A provider that counts its calls and answers as told.
    fn provider(answer: &str) -> (tempfile::TempDir, Result<Providers>) {
        provider_with(answer, "")
    }

    fn provider_with(answer: &str, more: &str) -> (tempfile::TempDir, Result<Providers>) {
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
        std::fs::write(&config, format!("{text}{more}")).unwrap();
        let read = Providers::read(Some(&config), Some(&bin), true);
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
        assert_eq!(users(providers.plain("a.example.com/x/y:1").await), ["exact", "me-get"]);
        assert_eq!(users(providers.plain("a.example.com/other").await), ["me-get"]);
        assert!(providers.plain("quay.io/x").await.is_empty());
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
            assert_eq!(providers.plain("b.example.com/x").await.len(), 1);
        }
        assert_eq!(calls(&dir).len(), 2);
    }

    #[tokio::test]
    async fn a_failed_program_gives_no_login() {
        let (_dir, providers) = provider("echo no >&2; exit 3");
        assert!(providers.unwrap().plain("b.example.com/x").await.is_empty());
    }

    const ATTRIBUTES: &str = "  tokenAttributes:\n    serviceAccountTokenAudience: r.io\n    cacheType: ServiceAccount\n    \
                              requireServiceAccount: true\n    requiredServiceAccountAnnotationKeys: [r.io/role]\n    \
                              optionalServiceAccountAnnotationKeys: [r.io/team, r.io/none]\n";

    #[tokio::test]
    async fn a_program_sees_the_token_and_annotations_of_the_pods_account() {
        let (dir, providers) = provider_with(&answer("Registry", ""), ATTRIBUTES);
        let (providers, objects) = (providers.unwrap(), Accounts::default());
        assert!(providers.asks_for_accounts("a.example.com/x") && !providers.asks_for_accounts("quay.io/x"));
        let found = providers.logins(&objects, &pod_of("builder"), "a.example.com/x").await;
        assert_eq!(found.len(), 2);
        let want = Account { uid: "uid-builder".into(), namespace: "n".into(), name: "builder".into() };
        assert_eq!(found[0].1, Some(want));
        for (account, images) in [("builder", 2), ("other", 0), ("", 0)] {
            assert_eq!(
                providers.logins(&objects, &pod_of(account), "a.example.com/x").await.len(),
                images,
                "{account}"
            );
        }
        let calls = calls(&dir);
        assert_eq!(
            calls.len(),
            1,
            "the answer is kept for the account, and those without the annotation are not asked for"
        );
        assert_eq!(calls[0]["serviceAccountToken"], "token-r.io-0");
        assert_eq!(calls[0]["serviceAccountAnnotations"], json!({"r.io/role": "b", "r.io/team": "t"}));
    }

    #[tokio::test]
    async fn an_answer_for_one_token_is_not_anothers() {
        let more = ATTRIBUTES.replace("cacheType: ServiceAccount", "cacheType: Token").replace("[r.io/role]", "[]");
        let (dir, providers) = provider_with(&answer("Global", ""), &more.replace("Account: true", "Account: false"));
        let (providers, objects) = (providers.unwrap(), Accounts::default());
        for account in ["builder", "builder", ""] {
            assert!(!providers.logins(&objects, &pod_of(account), "a.example.com/x").await.is_empty());
        }
        let calls = calls(&dir);
        assert_eq!(calls.len(), 3);
        assert!(calls[2].get("serviceAccountToken").is_none(), "a pod without an account has no token: {}", calls[2]);
    }

    #[test]
    fn wrong_token_attributes_name_the_field() {
        for (from, to, want) in [
            ("Audience: r.io", "Audience: ''", "tokenAttributes.serviceAccountTokenAudience"),
            ("cacheType: ServiceAccount", "cacheType: Pod", "tokenAttributes.cacheType"),
            ("Account: true", "Account: false", "tokenAttributes.requiredServiceAccountAnnotationKeys"),
            ("    requireServiceAccount: true\n", "", "tokenAttributes.requireServiceAccount"),
            ("[r.io/role]", "['a b']", "requiredServiceAccountAnnotationKeys[0]"),
            ("r.io/none]", "r.io/team]", "optionalServiceAccountAnnotationKeys[1]"),
            ("r.io/none]", "r.io/role]", "both required and optional"),
            ("r.io/none]", "r.io/none]\n    more: 1", "more"),
        ] {
            let (_dir, read) = provider_with("", &ATTRIBUTES.replace(from, to));
            let error = format!("{:#}", read.unwrap_err());
            assert!(error.contains("providers[0]") && error.contains(want), "{want}: {error}");
        }
        let (dir, read) = provider_with("", ATTRIBUTES);
        assert!(read.is_ok());
        let (config, bin) = (dir.path().join("config.yaml"), dir.path().join("bin"));
        let error = format!("{:#}", Providers::read(Some(&config), Some(&bin), false).unwrap_err());
        assert!(error.contains("KubeletServiceAccountTokenForCredentialProviders"), "{error}");
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
            let error = Providers::read(Some(&path), Some(Path::new("/bin-dir-that-is-not")), true).unwrap_err();
            assert!(format!("{error:#}").contains(want), "{error:#}");
        }
        assert!(Providers::read(Some(&path), None, true).is_err());
    }
}
