"""The distribution's name, and the configs that come with it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from clipkit.config.packaged import find_config, list_configs
from clipkit.errors import ConfigError, MissingExtra

ROOT = Path(__file__).parent.parent
# `clipkit` on PyPI is another project: installing it by that name installs a stranger's code.
WRONG_NAMES = ("install clip" + "kit", "install 'clip" + "kit[", 'install "clip' + "kit[", " clip" + "kit[")


def test_nothing_tells_to_install_the_other_project() -> None:
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.splitlines() or [str(path.relative_to(ROOT)) for path in ROOT.rglob("*.*")]
    for name in names:
        if (ROOT / name).is_file():
            text = (ROOT / name).read_text(errors="replace")
            for right in ("install clip" + "kit-train", "uninstall clip" + "kit"):
                text = text.replace(right, "")
            assert not [wrong for wrong in WRONG_NAMES if wrong in text], name


def test_a_missing_extra_names_the_distribution() -> None:
    assert MissingExtra("peft", "lora", "`model.lora`").hint == "`pip install 'clipkit-train[lora]'`"


def test_a_name_finds_the_packaged_config_unless_a_file_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert sorted(list_configs()) == sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
    (tmp_path / "shapes").mkdir()  # as the corpus of that name may lie here
    assert find_config("shapes").samefile(ROOT / "configs" / "shapes.yaml")
    (tmp_path / "shapes.yaml").touch()  # as of `clipkit config shapes > shapes.yaml`
    assert find_config("shapes").samefile(ROOT / "configs" / "shapes.yaml")
    (tmp_path / "lance-clip").touch()
    assert find_config("lance-clip") == Path("lance-clip")


@pytest.mark.parametrize("name", ["shapse", "shapse.yaml", "configs/shapse"])
def test_an_unknown_config_is_reported_with_a_guess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"no config file `{name}`; did you mean `shapes`"):
        find_config(name)


def test_no_packaged_config_fixes_what_auto_decides_except_recipes_of_others() -> None:
    for name in ("shapes", "flickr8k-cpu"):
        text = list_configs()[name].read_text()
        assert "precision:" not in text
        assert "device:" not in text
