//! The program gantry-overlay.

fn main() -> anyhow::Result<()> {
    gantry_overlay::run::main()
}
