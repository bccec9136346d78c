//! Environment variables that tell a container where Services are.

use k8s_openapi::api::core::v1::Service;

/// The namespace and name of the Service in front of the apiserver, which every container hears of.
pub(crate) const MASTER: (&str, &str) = ("default", "kubernetes");

/// Variables of all Services that have an address: `X_SERVICE_HOST`, `X_SERVICE_PORT[_NAME]` and the Docker-link forms.
pub(crate) fn variables<'a>(services: impl IntoIterator<Item = &'a Service>) -> Vec<(String, String)> {
    services.into_iter().flat_map(of_service).collect()
}

fn of_service(service: &Service) -> Vec<(String, String)> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let ip = spec.cluster_ip.as_deref().unwrap_or_default();
    let ports = spec.ports.as_deref().unwrap_or_default();
    if ip.is_empty() || ip == "None" || ports.is_empty() || spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let prefix = name(service.metadata.name.as_deref().unwrap_or_default());
    let mut out = vec![
        (format!("{prefix}_SERVICE_HOST"), ip.to_owned()),
        (format!("{prefix}_SERVICE_PORT"), ports[0].port.to_string()),
    ];
    for port in ports {
        if let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            out.push((format!("{prefix}_SERVICE_PORT_{}", name(port_name)), port.port.to_string()));
        }
    }
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    for (index, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().filter(|p| !p.is_empty()).unwrap_or("TCP");
        let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
        if index == 0 {
            out.push((format!("{prefix}_PORT"), url.clone()));
        }
        let stem = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
        out.push((stem.clone(), url));
        out.push((format!("{stem}_PROTO"), protocol.to_lowercase()));
        out.push((format!("{stem}_PORT"), port.port.to_string()));
        out.push((format!("{stem}_ADDR"), ip.to_owned()));
    }
    out
}

fn name(text: &str) -> String {
    text.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_service_gives_both_families_of_variables() {
        let service: Service =
            serde_json::from_value(json!({"metadata": {"name": "my-db"}, "spec": {"clusterIP": "10.1.0.9",
            "ports": [{"name": "sql-a", "port": 5432}, {"port": 53, "protocol": "UDP"}]}}))
            .unwrap();
        let got: Vec<String> = variables([&service]).into_iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(
            got,
            [
                "MY_DB_SERVICE_HOST=10.1.0.9",
                "MY_DB_SERVICE_PORT=5432",
                "MY_DB_SERVICE_PORT_SQL_A=5432",
                "MY_DB_PORT=tcp://10.1.0.9:5432",
                "MY_DB_PORT_5432_TCP=tcp://10.1.0.9:5432",
                "MY_DB_PORT_5432_TCP_PROTO=tcp",
                "MY_DB_PORT_5432_TCP_PORT=5432",
                "MY_DB_PORT_5432_TCP_ADDR=10.1.0.9",
                "MY_DB_PORT_53_UDP=udp://10.1.0.9:53",
                "MY_DB_PORT_53_UDP_PROTO=udp",
                "MY_DB_PORT_53_UDP_PORT=53",
                "MY_DB_PORT_53_UDP_ADDR=10.1.0.9",
            ]
        );
    }

    #[test]
    fn headless_and_external_services_give_none() {
        for spec in [json!({"clusterIP": "None", "ports": [{"port": 1}]}), json!({"type": "ExternalName"}), json!({})] {
            let service: Service = serde_json::from_value(json!({"metadata": {"name": "x"}, "spec": spec})).unwrap();
            assert!(variables([&service]).is_empty());
        }
    }
}
