//! What the .proto files of a kubelet's plugins say is in the tables of wire facts. Only parts of those interfaces are
//! spoken here, so the tables may say more.

use std::collections::BTreeSet;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto};

fn add_enum(facts: &mut BTreeSet<String>, outer: &str, item: &EnumDescriptorProto) {
    for value in &item.value {
        facts.insert(format!("enum\t{outer}{}\t{}\t{}", item.name(), value.name(), value.number()));
    }
}

fn add_message(facts: &mut BTreeSet<String>, outer: &str, message: &DescriptorProto) {
    let name = format!("{outer}{}", message.name());
    if message.field.is_empty() {
        facts.insert(format!("message\t{name}"));
    }
    for field in &message.field {
        let repeated = if field.label() == Label::Repeated { "repeated " } else { "" };
        let kind = match field.r#type() {
            Type::Message | Type::Enum => field.type_name().to_owned(),
            other => other.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
        };
        facts.insert(format!("message\t{name}\t{}\t{}\t{repeated}{kind}", field.name(), field.number()));
    }
    let outer = format!("{name}.");
    message.enum_type.iter().for_each(|e| add_enum(facts, &outer, e));
    let entry = |m: &DescriptorProto| m.options.as_ref().is_some_and(|o| o.map_entry());
    message.nested_type.iter().filter(|m| !entry(m)).for_each(|m| add_message(facts, &outer, m));
}

fn facts(file: &str) -> BTreeSet<String> {
    let set = protox::compile([file], [concat!(env!("CARGO_MANIFEST_DIR"), "/proto")]).unwrap();
    let mut facts = BTreeSet::new();
    for file in set.file.iter().filter(|f| !f.package().starts_with("google.")) {
        let package = format!(".{}.", file.package());
        let short = |name: &str| name.trim_start_matches(&package).to_owned();
        file.message_type.iter().for_each(|m| add_message(&mut facts, "", m));
        file.enum_type.iter().for_each(|e| add_enum(&mut facts, "", e));
        for service in &file.service {
            for method in &service.method {
                let (input, output) = (short(method.input_type()), short(method.output_type()));
                facts.insert(format!("rpc\t{}\t{}\t\t{input} -> {output}", service.name(), method.name()));
            }
        }
    }
    facts
}

#[test]
fn the_plugin_interfaces_agree_with_their_tables() {
    for (file, table) in [("csi_v1.proto", "csi-v1.tsv"), ("pluginregistration_v1.proto", "pluginregistration-v1.tsv")]
    {
        let path = format!("{}/tests/fixtures/{table}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        let theirs: BTreeSet<String> =
            text.lines().skip(1).map(|l| l.split('\t').take(5).collect::<Vec<_>>().join("\t")).collect();
        let ours = facts(file);
        let wrong: Vec<_> = ours.difference(&theirs).collect();
        assert!(ours.len() > 8 && wrong.is_empty(), "{file} says otherwise than its table: {wrong:#?}");
    }
}
