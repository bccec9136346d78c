//! Writes every document that a client can ask for below a folder, so that real clients can be tried on them with any
//! static web server: `cargo run -p api-machinery --example dump -- FOLDER`.

use std::path::Path;
use std::{env, fs, io};

use api_machinery::{discovery, openapi, resource};

fn put(root: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let path = root.join(name);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, bytes)
}

fn main() -> io::Result<()> {
    let root = env::args().nth(1).ok_or_else(|| io::Error::other("usage: dump FOLDER"))?;
    let root = Path::new(&root);
    put(root, "openapi/v2.json", &openapi::v2_json().bytes())?;
    put(root, "openapi/v2.pb", &openapi::v2_protobuf().bytes())?;
    put(root, "openapi/v3.json", &openapi::v3_index().bytes())?;
    put(root, "api.json", discovery::api_versions("127.0.0.1:6443").to_string().as_bytes())?;
    put(root, "api-aggregated.json", discovery::aggregated_core().to_string().as_bytes())?;
    put(root, "apis.json", discovery::group_list().to_string().as_bytes())?;
    put(root, "apis-aggregated.json", discovery::aggregated_groups().to_string().as_bytes())?;
    for (group, versions) in resource::groups() {
        for version in versions {
            let path = if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
            if let Some(list) = discovery::resource_list(group, version) {
                put(root, &format!("{path}.json"), list.to_string().as_bytes())?;
            }
            if let Some(document) = openapi::v3_document(&path) {
                put(root, &format!("openapi/v3/{path}.json"), &document.bytes())?;
            }
        }
    }
    Ok(())
}
