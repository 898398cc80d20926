"""Flags and positional arguments of 'gendd distill'."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from gendd.cli import main, parse_run
from gendd.config import RunConfig, dump

Capture = pytest.CaptureFixture[str]


def parsed(*words: str) -> RunConfig:
    config, _ = parse_run("distill", list(words))
    assert config is not None
    return config


@pytest.mark.parametrize("command", ["distill", "train"])
@pytest.mark.parametrize("word", ["--help", "-h"])
def test_the_help_is_short_and_tells_where_the_rest_is(command: str, word: str, capsys: Capture) -> None:
    assert main([command, word]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 45 and lines[-1].startswith("--help-all lists every setting")
    told = {found[1] for line in lines if (found := re.match(r"  (--[\w.-]+)", line))}
    assert {"--student", "--data", "--data.path", "--training.epochs", "--out", "--resume"} <= told
    assert ("--teacher" in told) == ("--baselines" in told) == (command == "distill")
    assert not any(option.startswith(("--teacher_training", "--gendd", "--readout")) for option in told)
    # each is an existing option
    assert main([command, "--help-all"]) == 0
    everything = capsys.readouterr().out
    assert all(f"  {option}" in everything for option in told) and len(everything.splitlines()) > 300


def test_a_folder_and_two_networks_are_short_for_their_options() -> None:
    words = ["images", "cifar/resnet20", "cifar/resnet8"]
    long = ["--data=folder", "--data.path=images", "--teacher=cifar/resnet20", "--student=cifar/resnet8"]
    whole = dump(parsed(*long, "--seed=3"))
    for given in (
        [*words, "--seed", "3"],
        ["--seed", "3", *words],
        [words[0], "--seed=3", *words[1:], "--data", "folder"],
        [*words, "--seed=3", *long],
        [*words, "--seed=3", "--data.name=folder", "--student.name", "cifar/resnet8"],
    ):
        assert dump(parsed(*given)) == whole


def test_a_run_s_folder_is_a_teacher_there_too(small_run: Path) -> None:
    config = parsed("images", str(small_run), "cifar/resnet8")
    assert (config.teacher.name, config.teacher.weights) == ("cifar/resnet8x0.25", str(small_run))


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ["digits"],
            "expected DIR TEACHER STUDENT or options alone, got 'digits'; a recipe is --recipe NAME.",
        ),
        (
            ["a", "b", "c", "d"],
            "expected DIR TEACHER STUDENT or options alone, got 'a' 'b' 'c' 'd'; a recipe ",
        ),
        (
            ["a", "b", "c", "--data", "cifar10"],
            "expected --data folder beside a b c, got 'cifar10'; leave one ",
        ),
        (["a", "b", "c", "--data.path=d"], "expected --data.path a beside a b c, got 'd'; leave one out."),
        (["a", "b", "c", "--teacher", "d"], "expected --teacher b beside a b c, got 'd'; leave one out."),
        (
            ["a", "b", "c", "--student.name", "d"],
            "expected --student.name c beside a b c, got 'd'; leave one ",
        ),
    ],
)
def test_a_mixture_that_contradicts_is_one_line(words: list[str], message: str, capsys: Capture) -> None:
    assert main(["distill", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"gendd: gendd distill: {message}") and said.count("\n") == 1


def test_train_takes_a_folder_and_a_network(capsys: Capture) -> None:
    long = ["--data=folder", "--data.path=images", "--student=cifar/resnet8"]
    found, expected = (parse_run("train", words)[0] for words in (["images", "cifar/resnet8"], long))
    assert found is not None and expected is not None and dump(found) == dump(expected)
    assert main(["train", "a", "b", "c"]) == 2
    assert capsys.readouterr().err == (
        "gendd: gendd train: expected DIR STUDENT or options alone, got 'a' 'b' 'c'; a recipe is --recipe "
        "NAME.\n"
    )


def test_the_images_may_be_the_path_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("photos", "digits"):
        Path(place).mkdir()
    for word in ("./digits", "photos", str(tmp_path / "digits")):
        data = parsed("--data", word, "--teacher=cifar/resnet20").data
        assert (data.name, data.path) == ("folder", word)
    # the name of a data set takes precedence over a folder
    assert (parsed("--data", "digits").data.name, parsed("--data", "digits").data.path) == ("digits", None)


def test_baselines_are_names_or_a_list_of_them(capsys: Capture) -> None:
    for words in (["kd,kl"], ["[kd,kl]"], ["kd, kl"], ['["kd", "kl"]']):
        assert parsed("--baselines", *words).baselines == ["kd", "kl"]
        assert parsed(f"--baselines={words[0]}").baselines == ["kd", "kl"]
    assert parsed("--baselines", "kd", "--kd.temperature=3").settings["kd"].temperature == 3
    assert parsed("--baselines=[]").baselines == parsed("--baselines", "").baselines == []
    own = str(Path(__file__).parents[1] / "examples" / "own_method.py") + ":AttentionTransfer"
    assert parsed("--baselines", f"kd,{own}").baselines == ["kd", own]
    assert parsed("--baselines+=kd").baselines == ["supervised", "kl", "kd"]
    for wrong, message in (
        ("kd,k", "baselines: expected one of gendd, "),
        ("[kd", "baselines: expected names such as kd,kl, got '[kd'."),
        ("[null]", "baselines: "),
    ):
        assert main(["distill", "--baselines", wrong]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"gendd: {message}") and said.count("\n") == 1


def test_a_shell_completes_commands_and_options(capsys: Capture, tmp_path: Path) -> None:
    pytest.importorskip("shtab")
    assert main(["--print-completion", "bash"]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    for words, found in (
        (["dis"], ["distill"]),
        (["distill", "--training.e"], ["--training.epochs", "--training.ema"]),
        (["train", "--dry"], ["--dry-run"]),
        (["train", "--training.schedule", "s"], ["step"]),
    ):
        ask = f'source {script}; COMP_WORDS=(gendd "$@"); COMP_CWORD=$#; '
        ask += '_shtab_gendd gendd "${COMP_WORDS[COMP_CWORD]}" > /dev/null 2>&1; echo "${COMPREPLY[@]}"'
        done = subprocess.run(["bash", "-c", ask, "bash", *words], capture_output=True, text=True, check=True)
        assert done.stdout.split() == found
    # the parsers of runs are unaffected
    assert parsed("--training.epochs=3").training.epochs == 3


def test_completion_that_cannot_be_is_one_line(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gendd.cli.completion.find_spec", lambda name: None)
    for words, message in (
        (["fish"], "expected one of bash, zsh, tcsh, got 'fish'."),
        ([], "expected one of bash, zsh, tcsh, got ''."),
        (["zsh"], "expected the package shtab, which is not installed. Run: pip install 'gendd[completion]'"),
    ):
        assert main(["--print-completion", *words]) == 2
        assert capsys.readouterr().err == f"gendd: --print-completion: {message}\n"
