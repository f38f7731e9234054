"""The tools of oslo.config and oslo.policy work with us, by the entry points that pyproject.toml declares."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from calotype import config
from calotype.policy import RULES

ROOT = Path(__file__).parents[1]


@pytest.fixture
def entry_points(tmp_path: Path) -> Path:
    """A directory with the metadata that an installation of this tree has, whatever is installed beside it."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    directory = tmp_path / "site" / "calotype-0.dist-info"
    directory.mkdir(parents=True)
    (directory / "METADATA").write_text("Metadata-Version: 2.1\nName: calotype\nVersion: 0\n")
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {to}\n" for name, to in some.items()) for group, some in declared.items()
    ]
    (directory / "entry_points.txt").write_text("\n".join(lines))
    return tmp_path / "site"


def tool(entry_points: Path, name: str, *arguments: str | Path, code: int = 0) -> str:
    done = subprocess.run(
        [Path(sys.executable).with_name(name), *arguments], capture_output=True, text=True, timeout=120, cwd=entry_points,
        env={**os.environ, "PYTHONPATH": str(entry_points), "XDG_CACHE_HOME": str(entry_points / "cache")},
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_oslo_config_generator_writes_every_option(entry_points: Path) -> None:
    sample = tool(entry_points, "oslo-config-generator", "--namespace", "calotype")
    for section, options in config.GROUPS.items():
        assert f"\n[{section}]\n" in f"\n{sample}"
        for option in options:
            assert f"\n#{option.dest} =" in sample, option.dest
    assert "\n#filesystem_store_datadir = " in sample.partition("\n[backend_defaults]\n")[2]


def test_oslo_config_validator_knows_our_options_and_finds_others(entry_points: Path, tmp_path: Path) -> None:
    conf = tmp_path / "c.conf"
    arguments = ("oslo-config-validator", "--namespace", "calotype", "--namespace", "oslo.log", "--input-file", conf)
    conf.write_text("[DEFAULT]\nimage_size_cap = 5\ndebug = true\n[server]\nbind = 127.0.0.1:1\n")
    tool(entry_points, *arguments)
    conf.write_text("[DEFAULT]\nimage_sise_cap = 5\n")
    assert "image_sise_cap is not part" in tool(entry_points, *arguments, code=1)


def test_oslopolicy_generators_write_every_rule(entry_points: Path, tmp_path: Path) -> None:
    sample = tool(entry_points, "oslopolicy-sample-generator", "--namespace", "calotype")
    assert all(f'"{name}": "{check}"' in sample for name, check in RULES.items())
    conf = tmp_path / "c.conf"
    conf.write_text("[DEFAULT]\n")
    (tmp_path / "policy.yaml").write_text('"delete_image": "role:boss"\n')
    merged = tool(entry_points, "oslopolicy-policy-generator", "--namespace", "calotype", "--config-file", conf)
    assert '"delete_image": "role:boss"' in merged
    assert '"context_is_admin": "role:admin"' in merged


def test_oslopolicy_validator_and_checker_judge_a_policy_file(entry_points: Path, tmp_path: Path) -> None:
    conf, policy = tmp_path / "c.conf", tmp_path / "policy.yaml"
    conf.write_text(f"[oslo_policy]\npolicy_file = {policy}\n")
    arguments = ("oslopolicy-validator", "--namespace", "calotype", "--config-file", conf)
    policy.write_text('"delete_image": "role:boss"\n')
    tool(entry_points, *arguments)
    policy.write_text('"delete_image": "role:boss or ("\n')
    tool(entry_points, *arguments, code=1)
    policy.write_text('"delete_image": "role:boss"\n')
    for role, words in (("boss", "passed: delete_image"), ("clerk", "failed: delete_image")):
        token = {"roles": [{"name": role}], "user": {"id": "u"}, "project": {"id": "p"}}
        (tmp_path / "token.json").write_text(json.dumps({"token": token}))
        said = tool(entry_points, "oslopolicy-checker", "--policy", policy, "--access", tmp_path / "token.json",
                    "--rule", "delete_image")  # fmt: skip
        assert words in said
