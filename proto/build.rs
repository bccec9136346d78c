//! Compiles the .proto files without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let names = [
        "cri_v1.proto",
        "csi_v1.proto",
        "deviceplugin_v1beta1.proto",
        "nri_v1alpha1.proto",
        "pluginregistration_v1.proto",
        "podresources_v1.proto",
        "ttrpc.proto",
    ];
    let files = protox::compile(names, ["proto"])?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
