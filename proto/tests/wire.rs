//! The .proto file says what the table of wire facts says: every message, field, number, type, enum value and rpc.

use std::collections::BTreeSet;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto};

/// A type name without the package: `Outer.Inner`.
fn short(name: &str) -> String {
    let packages = [".runtime.v1.", ".nri.pkg.api.v1alpha1.", ".v1beta1.", ".v1."];
    packages.iter().find_map(|p| name.strip_prefix(p)).unwrap_or(name).to_owned()
}

fn scalar(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message | Type::Enum => short(field.type_name()),
        other => other.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    }
}

fn field_type(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    if field.label() != Label::Repeated {
        return scalar(field);
    }
    let entry = message.nested_type.iter().find(|n| {
        n.options.as_ref().is_some_and(|o| o.map_entry()) && field.type_name().ends_with(&format!(".{}", n.name()))
    });
    match entry {
        Some(entry) => format!("map<{}, {}>", scalar(&entry.field[0]), scalar(&entry.field[1])),
        None => format!("repeated {}", scalar(field)),
    }
}

fn add_enum(facts: &mut BTreeSet<String>, outer: &str, item: &EnumDescriptorProto) {
    let name = format!("{outer}{}", item.name());
    facts.extend(item.value.iter().map(|v| format!("enum\t{name}\t{}\t{}\t", v.name(), v.number())));
}

fn add_message(facts: &mut BTreeSet<String>, message: &DescriptorProto) {
    if message.field.is_empty() {
        facts.insert(format!("message\t{}\t\t\t", message.name()));
    }
    for field in &message.field {
        let kind = field_type(message, field);
        facts.insert(format!("message\t{}\t{}\t{}\t{kind}", message.name(), field.name(), field.number()));
    }
    let outer = format!("{}.", message.name());
    message.enum_type.iter().for_each(|e| add_enum(facts, &outer, e));
}

#[test]
fn the_proto_file_agrees_with_the_table_of_wire_facts() {
    let root = env!("CARGO_MANIFEST_DIR");
    let set = protox::compile(["cri_v1.proto"], [format!("{root}/proto")]).unwrap();
    let mut ours = BTreeSet::new();
    for file in &set.file {
        file.message_type.iter().for_each(|m| add_message(&mut ours, m));
        file.enum_type.iter().for_each(|e| add_enum(&mut ours, "", e));
        for service in &file.service {
            for method in &service.method {
                let stream = if method.server_streaming() { "stream " } else { "" };
                let (input, output) = (short(method.input_type()), short(method.output_type()));
                ours.insert(format!("rpc\t{}\t{}\t\t{input} -> {stream}{output}", service.name(), method.name()));
            }
        }
    }
    let table = std::fs::read_to_string(format!("{root}/tests/fixtures/cri-v1.tsv")).unwrap();
    let mut theirs = BTreeSet::new();
    for line in table.lines().skip(1) {
        let mut columns: Vec<&str> = line.split('\t').collect();
        columns.resize(5, "");
        theirs.insert(columns[..5].join("\t"));
    }
    let missing: Vec<_> = theirs.difference(&ours).collect();
    let extra: Vec<_> = ours.difference(&theirs).collect();
    assert!(missing.is_empty() && extra.is_empty(), "missing: {missing:#?}\nnot in the table: {extra:#?}");
}

#[test]
fn the_messages_of_nri_agree_with_its_table() {
    let root = env!("CARGO_MANIFEST_DIR");
    let set = protox::compile(["nri_v1alpha1.proto"], [format!("{root}/proto")]).unwrap();
    let mut ours = BTreeSet::new();
    for file in &set.file {
        file.message_type.iter().for_each(|m| add_message(&mut ours, m));
        file.enum_type.iter().for_each(|e| add_enum(&mut ours, "", e));
    }
    let table = std::fs::read_to_string(format!("{root}/tests/fixtures/nri-v1alpha1.tsv")).unwrap();
    let mut theirs = BTreeSet::new();
    for line in table.lines().skip(1).filter(|l| !l.starts_with("rpc")) {
        let mut columns: Vec<&str> = line.split('\t').collect();
        columns.resize(5, "");
        theirs.insert(columns[..5].join("\t"));
    }
    assert_eq!(ours, theirs);
}

/// What a .proto file says, in the lines of a table.
fn facts(file: &str) -> BTreeSet<String> {
    let root = env!("CARGO_MANIFEST_DIR");
    let set = protox::compile([file], [format!("{root}/proto")]).unwrap();
    let mut ours = BTreeSet::new();
    for file in &set.file {
        file.message_type.iter().for_each(|m| add_message(&mut ours, m));
        for service in &file.service {
            for method in &service.method {
                let stream = if method.server_streaming() { "stream " } else { "" };
                let (input, output) = (short(method.input_type()), short(method.output_type()));
                ours.insert(format!("rpc\t{}\t{}\t\t{input} -> {stream}{output}", service.name(), method.name()));
            }
        }
    }
    ours
}

#[test]
fn device_plugins_and_pod_resources_agree_with_their_tables() {
    let root = env!("CARGO_MANIFEST_DIR");
    for (file, table) in
        [("deviceplugin_v1beta1.proto", "deviceplugin-v1beta1.tsv"), ("podresources_v1.proto", "podresources-v1.tsv")]
    {
        let table = std::fs::read_to_string(format!("{root}/tests/fixtures/{table}")).unwrap();
        let line = |line: &str| {
            let mut columns: Vec<&str> = line.split('\t').collect();
            columns.resize(5, "");
            // The tables name the entry types of maps, and packages.
            let kind = if columns[4].ends_with("Entry") { "map<string, string>" } else { columns[4] };
            let kind = kind.replace(".v1beta1.", "").replace(".v1.", "");
            format!("{}\t{kind}", columns[..4].join("\t"))
        };
        let theirs: BTreeSet<String> = table.lines().skip(1).map(line).collect();
        assert_eq!(facts(file), theirs, "{file}");
    }
}
