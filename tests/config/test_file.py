"""Config files: what is read, and every way in which one can be wrong."""

from __future__ import annotations

import contextlib
import copy
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from clipkit.config import Config, InfoNCE, RandomResizedCrop, Sigmoid
from clipkit.config.file import dump_config, load_config, parse_config
from clipkit.config.reference import list_keys
from clipkit.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
SMALL = """\
data:
  dataset: a.lance
model:
  image: {kind: timm, name: resnet10t}
  text: {kind: transformers, architecture: {layers: 2}}
"""


def parse(text: str, *sets: str) -> Config:
    return parse_config(text, source="x.yaml", sets=sets)


def problems(text: str, *sets: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, *sets)
    assert caught.value.hint
    return [line.strip() for line in caught.value.message.splitlines()[1:]]


class TestReading:
    @pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
    def test_every_config_that_comes_with_clipkit_loads(self, path: Path) -> None:
        config = load_config(path)
        assert config.run.name == path.stem
        assert path.read_text().startswith("# ")

    @pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
    def test_a_dumped_config_reads_as_the_same(self, path: Path) -> None:
        config = load_config(path)
        assert parse(dump_config(config)) == config

    def test_defaults(self) -> None:
        config = parse(SMALL)
        assert config.run.folder == Path("runs/run")
        assert isinstance(config.loss, InfoNCE)
        assert config.train.batch_size == 128

    def test_a_number_that_yaml_takes_for_text(self) -> None:
        group = parse(SMALL + "optim: {groups: {all: {lr: 1e-4, weight_decay: 5E-2, params: ['*']}}}").optim.groups[
            "all"
        ]
        assert (group.lr, group.weight_decay) == (1e-4, 0.05)

    def test_anchors_and_merged_keys(self) -> None:
        text = SMALL + (
            "optim:\n"
            "  groups:\n"
            "    image_encoder: &group {lr: 1e-3, weight_decay: 0.1}\n"
            "    text_encoder: {<<: *group, lr: 1e-5}\n"
            "    heads: *group\n"
        )
        groups = parse(text).optim.groups
        assert (groups["text_encoder"].lr, groups["text_encoder"].weight_decay) == (1e-5, 0.1)
        assert groups["heads"] == groups["image_encoder"]

    def test_encoders_that_start_from_no_weights(self) -> None:
        assert parse(SMALL).model.from_scratch == {"image_encoder", "text_encoder"}
        named = parse(SMALL, "model.text.name=folder", "model.image.weights=file.safetensors")
        assert named.model.from_scratch == frozenset()

    def test_shuffle_and_freeze_are_plain_or_sections(self) -> None:
        config = parse(SMALL + "optim: {freeze: [heads]}", "data.shuffle=false")
        assert (config.data.shuffle, config.optim.freeze) == (False, ("heads",))
        config = parse(SMALL + "optim: {freeze: {heads: 3ep}}", "data.shuffle={block: 64}")
        assert config.optim.freeze == {"heads": "3ep"}
        assert config.data.shuffle.block == 64  # type: ignore[union-attr]


class TestSet:
    def test_values_are_yaml(self) -> None:
        config = parse(
            SMALL,
            "train.batch_size=32",
            "data.train=split = 'train' and width >= 200",
            "data.augment={kind: random_resized_crop, scale: [0.5, 1]}",
            "optim.groups.image_encoder.lr=1e-5",
            "optim.groups.text_encoder.lr=1e-6",
            "optim.groups.heads.lr=3",
            "train.ema.decay=0.99",
            "data.validation=",
        )
        assert config.train.batch_size == 32
        assert config.data.train == "split = 'train' and width >= 200"
        assert isinstance(config.data.augment, RandomResizedCrop)
        assert config.optim.groups["image_encoder"].lr == 1e-5
        assert config.train.ema is not None
        assert config.data.validation is None

    def test_items_of_lists_are_counted_from_0(self) -> None:
        text = SMALL.replace("dataset: a.lance", "sources: [{dataset: a}, {dataset: b}]")
        config = parse(text, "data.sources.1.weight=2")
        assert [source.weight for source in config.data.sources] == [1, 2]

    def test_later_ones_win_and_sections_can_be_replaced(self) -> None:
        config = parse(SMALL + "loss: {kind: infonce, temperature: 0.1}", "loss={kind: sigmoid}", "loss.bias=-5")
        assert config.loss == Sigmoid(bias=-5)

    def test_another_kind_leaves_the_keys_of_the_one_before_behind(self) -> None:
        written_out = dump_config(parse(SMALL + "loss: {kind: infonce, temperature: 0.2, label_smoothing: 0.1}"))
        config = parse(written_out, "loss.kind=sigmoid", "data.augment={kind: random_resized_crop}")
        assert config.loss == Sigmoid(temperature=0.2, min_temperature=0.01)
        assert problems(written_out, "loss.kind=sigmoid", "loss.label_smoothing=0.1") == [
            "--set loss.label_smoothing: loss.label_smoothing: unknown key; another `kind` has it"
        ]

    @pytest.mark.parametrize(
        ("assignment", "expected"),
        [
            ("train.batchsize=3", "--set train.batchsize: train.batchsize: unknown key; did you mean `batch_size`?"),
            (
                "train.batch_size=yes",
                "--set train.batch_size: train.batch_size: a number is meant here, not true or false",
            ),
            ("train.batch_size", "--set train.batch_size: `train.batch_size` is not KEY=VALUE"),
            ("=3", "--set : `=3` is not KEY=VALUE"),
            ("data.mean=[1, 2", "--set data.mean: `[1, 2` is not a YAML value"),
            ("data.train=2024-13-45", "--set data.train: `2024-13-45` is not a YAML value"),
            (
                "train.duration.epochs=3",
                "--set train.duration.epochs: train.duration.epochs: `train.duration` is not a section",
            ),
            ("data.sources.0.weight=2", "--set data.sources.0.weight: data.sources: must be a list"),
        ],
    )
    def test_what_is_wrong_is_said(self, assignment: str, expected: str) -> None:
        found = problems(SMALL + "train: {duration: 3ep}", assignment)
        assert any(problem.startswith(expected) for problem in found), found


class TestProblems:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("train: {batch_sise: 3}", "x.yaml:6: train.batch_sise: unknown key; did you mean `batch_size`?"),
            ("train:\n\n  batch_size: true", "x.yaml:8: train.batch_size: a number is meant here, not true or false"),
            ("run: {seed: 1.5}", "x.yaml:6: run.seed: must be a whole number, not `1.5`"),
            ("run: {seed: -1}", "x.yaml:6: run.seed: must be at least 0, not `-1`"),
            ("run: {name: a b}", "x.yaml:6: run.name: `a b` does not fit: The run's name: letters"),
            ("run: {name: ..}", "x.yaml:6: run.name: `..` does not fit: The run's name: letters"),
            ("run: {name: 7}", "x.yaml:6: run.name: must be text, not `7`; put it in quotes"),
            ("run: x", "x.yaml:6: run: must be a section with keys, not `x`"),
            ("run:", "x.yaml:6: run: is empty; it must be a section with keys, or be left out"),
            ("optim: {clip_grad_norm: .inf}", "x.yaml:6: optim.clip_grad_norm: must be a finite number, not `inf`"),
            ("optim: {betas: [0.9]}", "x.yaml:6: optim.betas: has too few values"),
            ("optim: {betas: [0.9, 1, 1]}", "x.yaml:6: optim.betas: must have 2 values, not 3"),
            ("optim: {betas: 0.9}", "x.yaml:6: optim.betas: must be a list, not `0.9`"),
            ("optim: {betas: [0.9, 1]}", "x.yaml:6: optim.betas.1: must be less than 1, not `1`"),
            (
                "loss: {kind: infonce, temperature: 0.005}",
                "x.yaml:6: loss.temperature: starts below `min_temperature`, 0.01",
            ),
            ("train: {precision: fp8}", "x.yaml:6: train.precision: `fp8` is not one of auto | fp32 | bf16 | fp16"),
            ("train: {compile: maybe}", "x.yaml:6: train.compile: must be true or false, not `maybe`"),
            ("train: {duration: 10 epochs}", "x.yaml:6: train.duration: `10 epochs` is no duration; write 2000st"),
            ("train: {duration: 10}", "x.yaml:6: train.duration: `10` is no duration; write 2000st"),
            ("train: {duration: 0ep}", "x.yaml:6: train.duration: `0ep` must be more than nothing"),
            (
                "optim: {schedule: {warmup: 0.03}}",
                "x.yaml:6: optim.schedule.warmup: `0.03` is no warm-up; write a share",
            ),
            ("optim: {schedule: {warmup: 300%}}", "x.yaml:6: optim.schedule.warmup: `300%` is more than 100 %"),
            ("batch_size: 3", "x.yaml:6: batch_size: unknown key; it stands elsewhere: `train.batch_size`"),
            ("foo: 3", "x.yaml:6: foo: unknown key; the keys here are `run`, `data`, `model`"),
            ("loss: {kind: infonec}", "x.yaml:6: loss.kind: `infonec` is not one of infonce | sigmoid"),
            ("loss: {kind: infonec}", "did you mean `infonce`?"),
            ("loss: {temperature: 1}", "x.yaml:6: loss: needs a `kind`: infonce | sigmoid"),
            ("loss: infonce", "x.yaml:6: loss: must be a section with keys, not `infonce`"),
            (
                "loss: {kind: identity, temperature: 1}",
                "x.yaml:6: loss.temperature: unknown key; another `kind` has it",
            ),
            ("run: {seed: 1}\nrun: {seed: 2}", "x.yaml:7: run: stands twice, first on line 6"),
            ("optim: {freeze: [head]}", "x.yaml:6: optim.freeze: there is no group `head`"),
            ("optim: {freeze: {heads: 3}}", "x.yaml:6: optim.freeze.heads: `3` is no duration"),
            ("optim: {groups: {mine: {lr: 1}}}", "x.yaml:6: optim.groups.mine: a group of your own needs `params`"),
            (
                "train: {batch_size: 1}",
                "x.yaml:6: train.batch_size: must be at least 2: a contrastive loss needs a negative",
            ),
            ("train: {accumulate: 3}", "x.yaml:6: train.accumulate: `train.batch_size`, 128, is not a multiple of it"),
            ("train: {early_stopping: {}}", "x.yaml:6: train.early_stopping: needs `data.validation`"),
        ],
    )
    def test_one_problem_is_named_with_its_line(self, text: str, expected: str) -> None:
        found = problems(SMALL + text)
        assert len(found) == 1, found
        assert expected in found[0]

    def test_all_problems_are_told_at_once(self) -> None:
        found = problems(
            "run: {nmae: x, seed: true}\n"
            "data:\n"
            "  dataset: a.lance\n"
            "  imgae_size: 96\n"
            "  cache: 64\n"
            "  augment: {kind: random_resize_crop, scale: [0.5, 1.5], flp: true}\n"
            "model:\n"
            "  image: {kind: tim, nam: resnet50}\n"
            "  text: {kind: transformers, architecture: {hidden_size: 100, heads: 3}}\n"
            "train: {accumulate: 2, chunk_size: 8, device: 3}\n",
            "optim.grups={}",
        )
        expected = [
            "x.yaml:1: run.nmae: unknown key; did you mean `name`?",
            "x.yaml:1: run.seed: a number is meant here, not true or false",
            "x.yaml:4: data.imgae_size: unknown key; did you mean `image_size`?",
            "x.yaml:5: data.cache: must be at least `data.image_size`, 96",
            "x.yaml:6: data.augment.flp: unknown key; did you mean `flip`?",
            "x.yaml:6: data.augment.kind: `random_resize_crop` is not one of none | random_resized_crop | random_crop; "
            "did you mean `random_resized_crop`?",
            "x.yaml:6: data.augment.scale: must be [from, to] with 0 < from <= to <= 1",
            "x.yaml:8: model.image.kind: `tim` is not one of timm | features; did you mean `timm`?",
            "x.yaml:8: model.image.nam: unknown key; did you mean `name`?",
            "x.yaml:9: model.text.architecture.heads: `hidden_size`, 100, is not a multiple of it",
            "x.yaml:10: train.chunk_size: `train.accumulate` is another way of splitting a batch; give one",
            "x.yaml:10: train.device: must be text, not `3`; put it in quotes",
            "--set optim.grups: optim.grups: unknown key; did you mean `groups`?",
        ]
        assert found == expected

    def test_sections_in_a_list(self) -> None:
        found = problems(
            SMALL.replace(
                "dataset: a.lance", "sources:\n  - {datset: a, weight: -1}\n  - {dataset: b, wieght: 1}\n  - c"
            )
        )
        assert found == [
            "x.yaml:3: data.sources.0.datset: unknown key; did you mean `dataset`?",
            "x.yaml:3: data.sources.0.weight: must be more than 0, not `-1`",
            "x.yaml:4: data.sources.1.wieght: unknown key; did you mean `weight`?",
            "x.yaml:5: data.sources.2: must be a section with keys, not `c`",
        ]

    def test_what_a_first_problem_explains_is_not_told(self) -> None:
        """The batch size is wrong, so nothing follows from its default; the misspelt `name` is not missing too."""
        found = problems(SMALL + "train: {batch_size: many, accumulate: 3}")
        assert found == ["x.yaml:6: train.batch_size: must be a whole number, not `many`"]
        found = problems(SMALL.replace("name: resnet10t", "naem: resnet10t"))
        assert found == ["x.yaml:4: model.image.naem: unknown key; did you mean `name`?"]

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", ["x.yaml:1: data: is missing", "x.yaml:1: model: is missing"]),
            ("- a", ["x.yaml:1: must be sections of keys, such as `data:`"]),
            ("data: [", ["x.yaml:1: not valid YAML: expected the node content, but found '<stream end>'"]),
            ("a:\n\tb: 1", ["x.yaml:2: not valid YAML: found character '\\t' that cannot start any token"]),
            ("data: !python/object:os.system x", ["x.yaml:1: not valid YAML: could not determine a constructor"]),
            ("data: {train: 2024-01-41}", ["x.yaml:1: not valid YAML: day is out of range for month"]),
        ],
    )
    def test_what_is_no_config_at_all(self, text: str, expected: list[str]) -> None:
        found = problems(text)
        assert len(found) == len(expected)
        assert all(problem.startswith(start) for problem, start in zip(found, expected, strict=True)), found

    def test_files_that_cannot_be_read(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="there is no config file"):
            load_config(tmp_path / "none.yaml")
        with pytest.raises(ConfigError, match="cannot be read"):
            load_config(tmp_path)
        (tmp_path / "latin.yaml").write_bytes(b"run: {name: \xff}")
        with pytest.raises(ConfigError, match="cannot be read"):
            load_config(tmp_path / "latin.yaml")


def test_whatever_is_wrong_is_reported_and_never_a_crash() -> None:
    """Configs with random keys dropped, misspelt, or given values that make no sense."""
    rng = random.Random(0)
    bases = [yaml.safe_load(dump_config(load_config(path))) for path in CONFIGS]
    for _ in range(200):
        values = copy.deepcopy(rng.choice(bases))
        for _ in range(rng.randint(1, 4)):
            _spoil(values, rng)
        with contextlib.suppress(ConfigError):
            parse(yaml.safe_dump(values))


def _spoil(values: Any, rng: random.Random) -> None:
    nonsense = [None, True, -1, 1.5, float("nan"), "x", [], [1], {}, {"kind": "timm"}, {"kind": [1]}, {"a": {}}, [{}]]
    while isinstance(values, dict) and values:
        key = rng.choice(list(values))
        if rng.random() < 0.4 or not isinstance(values[key], dict):
            break
        values = values[key]
    else:
        return
    change = rng.choice(["replace", "misspell", "drop", "add"])
    if change == "replace":
        values[key] = copy.deepcopy(rng.choice(nonsense))
    elif change == "misspell":
        values[key[:-1]] = values.pop(key)
    elif change == "drop":
        del values[key]
    else:
        values[rng.choice(["kind", "lr", "foo"])] = copy.deepcopy(rng.choice(nonsense))


class TestReference:
    def test_every_key_has_a_meaning(self) -> None:
        assert [key.path for key in list_keys() if not key.meaning] == []

    def test_keys_are_those_that_a_config_has(self) -> None:
        def walk(values: object, path: str) -> set[str]:
            if not isinstance(values, dict) or path in ("optim.groups", "optim.freeze"):
                return {path}
            return {
                path,
                *(found for key, value in values.items() for found in walk(value, f"{path}.{key}".strip("."))),
            }

        known = {key.path for key in list_keys()}
        shared = tuple(f"{key.path}." for key in list_keys() if "Its keys are those of" in key.meaning)
        for path in CONFIGS:
            used = walk(load_config(path).model_dump(), "") - {""}
            assert {key for key in used if not key.startswith(shared)} <= known

    def test_types_and_defaults(self) -> None:
        keys = {(key.path, key.kind): key for key in list_keys()}
        assert keys["data.image_size", None].type == "whole number >= 1"
        assert keys["data.image_size", None].default == "224"
        assert keys["data.dataset", None].type == "text | null"
        assert keys["data.augment.scale", "random_resized_crop"].default == "[0.6, 1.0]"
        assert keys["model.image.name", "timm"].default is None
        assert keys["train.duration", None].type == "duration"
        assert keys["optim.groups.NAME.lr", None].type == "number >= 0"


def test_problems_are_told_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("foo: 1")
    code = (
        "import sys\n"
        "from clipkit.config.file import load_config\n"
        "from clipkit.errors import ConfigError\n"
        "try: load_config(sys.argv[1])\n"
        "except ConfigError: print(*{'torch', 'numpy', 'pyarrow', 'lance', 'cv2', 'transformers'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
