//! The commands beside `cargo stack`: help, and clear words where something is missing.

use std::process::Command;

use crate::running::text;

fn xtask(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(arguments);
    command
}

#[test]
fn every_command_explains_itself_with_examples() {
    for command in
        ["stack", "verify", "prepare", "image", "soak", "database", "abuse", "fuzz", "rename", "upgrade"]
    {
        let output = xtask(&[command, "--help"]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{command}");
        let said = text(&output);
        assert!(said.contains("Examples:") && said.contains("Usage: cargo "), "{command}: {said}");
    }
}

#[test]
fn an_image_without_docker_says_what_to_do() {
    let output = xtask(&["image"]).env("PATH", "/nonexistent").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output);
    assert!(said.contains("needs Docker") && said.contains("install and start Docker"), "{said}");
}

#[test]
fn outside_the_project_the_commands_say_so() {
    let output = xtask(&["stack", "--env"]).current_dir("/").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("not inside the project"), "{}", text(&output));
}

#[test]
fn verify_names_its_steps_and_how_to_repeat_them() {
    let said = text(&xtask(&["verify", "--full", "--list"]).output().unwrap());
    for expected in
        ["cargo fmt --all --check", "cargo xtask prepare --check", "cargo deny check", "cargo xtask image"]
    {
        assert!(said.contains(expected), "`{expected}` is missing in:\n{said}");
    }
}
