"""Config files: what is read, and every way in which one can be wrong."""

from __future__ import annotations

import contextlib
import copy
import logging
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from config_text import CONFIGS, SMALL, parse, problems

from clipkit.config import BlockShuffle, InfoNCE, RandomResizedCrop, Retrieval, Sigmoid
from clipkit.config.file import dump_config, load_config, parse_config
from clipkit.errors import ConfigError


class TestReading:
    @pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
    def test_every_config_that_comes_with_clipkit_loads_and_dumps(self, path: Path) -> None:
        config = load_config(path)
        assert config.run.name == path.stem
        assert parse(dump_config(config)) == config

    def test_defaults(self) -> None:
        config = parse(SMALL)
        assert config.run.folder == Path("runs/run")
        assert config.loss == InfoNCE()
        assert config.optim.groups.keys() == {"image_encoder", "text_encoder", "heads"}

    def test_a_number_that_yaml_takes_for_text(self) -> None:
        assert parse(SMALL, "optim.eps=1e-4").optim.eps == 1e-4

    def test_anchors_and_merged_keys(self) -> None:
        text = (
            "optim:\n"
            "  groups:\n"
            "    image_encoder: &group {lr: 1e-3, weight_decay: 0.1}\n"
            "    text_encoder: {<<: *group, lr: 1e-5}\n"
            "    heads: *group\n"
        )
        groups = parse(SMALL + text).optim.groups
        assert (groups["text_encoder"].lr, groups["text_encoder"].weight_decay) == (1e-5, 0.1)
        assert groups["heads"] == groups["image_encoder"]

    def test_shuffle_and_freeze_are_plain_or_sections(self) -> None:
        config = parse(SMALL, "optim.freeze=[heads]", "data.shuffle=false")
        assert (config.data.shuffle, config.optim.freeze) == (False, ("heads",))
        config = parse(SMALL, "optim.freeze={heads: 3ep}", "data.shuffle={block: 64}")
        assert (config.data.shuffle, config.optim.freeze) == (BlockShuffle(block=64), {"heads": "3ep"})

    def test_evaluators_have_names_and_validation_is_short_for_one(self) -> None:
        config = parse(SMALL, "evaluate.dev={kind: retrieval, where: split = 'dev', every: 2ep}")
        assert config.evaluators == {"dev": Retrieval(where="split = 'dev'", every="2ep")}
        config = parse(SMALL, "data.validation=split = 'dev'", "train.validate_every=3ep")
        assert config.evaluators == {"": Retrieval(where="split = 'dev'", every="3ep")}

    def test_keys_that_are_gone_are_ignored_with_a_warning(self, caplog: pytest.LogCaptureFixture) -> None:
        text = SMALL.replace("dataset: a.lance", "dataset: a.lance\n  worker_kind: thread")
        with caplog.at_level(logging.WARNING):
            assert parse(text, "data.token_cache=true") == parse(SMALL)
        assert caplog.messages == [
            "x.yaml:3: `data.worker_kind` is ignored: images are always decoded in threads",
            "--set data.token_cache: `data.token_cache` is ignored: captions are tokenized as they are read",
        ]


class TestSet:
    def test_values_are_yaml(self) -> None:
        config = parse(
            SMALL,
            "train.batch_size=32",
            "data.train=split = 'train' and width >= 200",
            "data.augment={kind: random_resized_crop, scale: [0.5, 1]}",
            "optim.groups.heads.lr=3",
            "data.validation=",
        )
        assert config.train.batch_size == 32
        assert config.data.train == "split = 'train' and width >= 200"
        assert config.data.augment == RandomResizedCrop(scale=(0.5, 1))
        assert config.optim.groups["heads"].lr == 3
        assert config.data.validation is None

    def test_items_of_lists_are_counted_from_0(self) -> None:
        text = SMALL.replace("dataset: a.lance", "sources: [{dataset: a}, {dataset: b}]")
        assert [source.weight for source in parse(text, "data.sources.1.weight=2").data.sources] == [1, 2]

    def test_later_ones_win_and_sections_can_be_replaced(self) -> None:
        config = parse(SMALL + "loss: {kind: infonce, temperature: 0.1}", "loss={kind: sigmoid}", "loss.bias=-5")
        assert config.loss == Sigmoid(bias=-5)

    def test_another_kind_drops_the_keys_of_the_one_in_the_file(self) -> None:
        dumped = dump_config(parse(SMALL + "loss: {kind: infonce, temperature: 0.2, label_smoothing: 0.1}"))
        config = parse(dumped, "loss.kind=sigmoid", "data.augment.kind=random_resized_crop")
        assert config.loss == Sigmoid(temperature=0.2, min_temperature=0.01)
        assert problems(dumped, "loss.kind=sigmoid", "loss.label_smoothing=0.1") == [
            "--set loss.label_smoothing: loss.label_smoothing: unknown key for `kind: sigmoid`; other kinds have it: "
            "infonce"
        ]

    @pytest.mark.parametrize(
        ("assignment", "expected"),
        [
            ("train.batchsize=3", "train.batchsize: unknown key; did you mean `batch_size`?"),
            ("train.batch_size", "`train.batch_size` is not KEY=VALUE"),
            ("=3", "`=3` is not KEY=VALUE"),
            ("data.mean=[1, 2", "`[1, 2` is not a YAML value"),
            ("data.train=2024-13-45", "`2024-13-45` is not a YAML value"),
            ("train.duration.epochs=3", "train.duration.epochs: `train.duration` is not a section"),
            ("data.sources.0.weight=2", "data.sources: must be a list"),
        ],
    )
    def test_problems_name_the_option(self, assignment: str, expected: str) -> None:
        found = problems(SMALL + "train: {duration: 3ep}", assignment)
        assert f"--set {assignment.partition('=')[0]}: {expected}" in found[-1]


class TestProblems:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("train: {batch_sise: 3}", "train.batch_sise: unknown key; did you mean `batch_size`?"),
            ("batch_size: 3", "batch_size: unknown key; did you mean `train.batch_size`?"),
            ("foo: 3", "foo: unknown key; the keys here are `plugins`, `run`, `task`, `data`, `model`"),
            ("run: {seed: true}", "run.seed: must be a number, not true or false"),
            ("run: {seed: 1.5}", "run.seed: must be a whole number, not `1.5`"),
            ("run: {seed: -1}", "run.seed: must be at least 0, not `-1`"),
            ("run: {name: ..}", "run.name: `..` is not a name; use letters, digits"),
            ("run: {name: 7}", "run.name: must be text, not `7`; put it in quotes"),
            ("run: x", "run: must be a section with keys, not `x`"),
            ("run:", "run: is empty; it must be a section with keys, or be left out"),
            ("optim: {clip_grad_norm: .inf}", "optim.clip_grad_norm: must be a finite number, not `inf`"),
            ("optim: {betas: [0.9]}", "optim.betas: has too few values"),
            ("optim: {betas: [0.9, 1, 1]}", "optim.betas: must have 2 values, not 3"),
            ("optim: {betas: 0.9}", "optim.betas: must be a list, not `0.9`"),
            ("optim: {betas: [0.9, 1]}", "optim.betas.1: must be less than 1, not `1`"),
            ("train: {precision: fp8}", "train.precision: `fp8` is not one of auto | fp32 | bf16 | fp16"),
            ("train: {compile: maybe}", "train.compile: must be true or false, not `maybe`"),
            ("train: {duration: 10}", "train.duration: `10` is not a duration; write 2000st"),
            ("train: {duration: 0ep}", "train.duration: `0ep` must be more than 0"),
            ("optim: {schedule: {warmup: 0.03}}", "optim.schedule.warmup: `0.03` is not a warm-up; write a share"),
            ("optim: {schedule: {warmup: 300%}}", "optim.schedule.warmup: `300%` is more than 100 %"),
            ("optim: {freeze: {heads: 3}}", "optim.freeze.heads: `3` is not a duration"),
            ("loss: {kind: infonec}", "loss.kind: `infonec` is not one of infonce | sigmoid"),
            ("loss: {temperature: 1}", "loss: needs a `kind`: infonce | sigmoid"),
            ("loss: infonce", "loss: must be a section with keys, not `infonce`"),
            ("loss: {kind: identity, temperature: 1}", "loss.temperature: unknown key for `kind: identity`"),
            ("task: {kind: captioning}", "task.kind: `captioning` is not one of contrastive"),
            ("evaluate: {dev: {kind: retreival}}", "evaluate.dev.kind: `retreival` is not one of retrieval"),
            ("evaluate: {a/b: {kind: retrieval}}", "evaluate.a/b: a name may not be empty or contain `/`"),
        ],
    )
    def test_one_problem_is_named_with_its_line(self, text: str, expected: str) -> None:
        found = problems(SMALL + text)
        assert len(found) == 1, found
        assert found[0].startswith(f"x.yaml:6: {expected}")

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("loss: {kind: infonce, temperature: 0.005}", "loss.temperature: must be at least `min_temperature`, 0.01"),
            ("optim: {freeze: [head]}", "optim.freeze: there is no group `head`"),
            ("optim: {groups: {mine: {lr: 1}}}", "optim.groups.mine: a group of your own needs `params`"),
            ("train: {batch_size: 1}", "train.batch_size: must be at least 2: a contrastive loss needs negatives"),
            ("train: {accumulate: 3}", "train.accumulate: must divide `train.batch_size`, 128"),
            ("train: {early_stopping: {}}", "train.early_stopping: needs `evaluate`, or `data.validation`"),
        ],
    )
    def test_keys_that_conflict(self, text: str, expected: str) -> None:
        found = problems(SMALL + text)
        assert len(found) == 1, found
        assert found[0].startswith(f"x.yaml:6: {expected}")

    def test_all_problems_are_reported_at_once(self) -> None:
        found = problems(
            "run: {nmae: x, seed: 0}\n"
            "run: {nmae: x, seed: true}\n"
            "data:\n"
            "  sources:\n"
            "  - {datset: a, weight: -1}\n"
            "  - c\n"
            "  augment: {kind: random_resize_crop, scale: [0.5, 1.5], flp: true}\n"
            "model:\n"
            "  image: {kind: tim, nam: resnet50}\n"
            "  text: {kind: transformers, architecture: {hidden_size: 100, heads: 3}}\n"
            "train: {device: 3}\n"
            "evaluate: {dev: {whre: id < 9}}\n",
            "optim.grups={heads: {lr: -1}}",
        )
        assert found == [
            "x.yaml:2: run: is given twice, first on line 1",
            "x.yaml:2: run.nmae: unknown key; did you mean `name`?",
            "x.yaml:2: run.seed: must be a number, not true or false",
            "x.yaml:5: data.sources.0.datset: unknown key; did you mean `dataset`?",
            "x.yaml:5: data.sources.0.weight: must be more than 0, not `-1`",
            "x.yaml:6: data.sources.1: must be a section with keys, not `c`",
            "x.yaml:7: data.augment.flp: unknown key; did you mean `flip`?",
            "x.yaml:7: data.augment.kind: `random_resize_crop` is not one of none | random_resized_crop | "
            "random_crop; did you mean `random_resized_crop`?",
            "x.yaml:7: data.augment.scale: must be [from, to] with 0 < from <= to <= 1",
            "x.yaml:9: model.image.kind: `tim` is not one of timm | features; did you mean `timm`?",
            "x.yaml:9: model.image.nam: unknown key; did you mean `name`?",
            "x.yaml:10: model.text.architecture.heads: must divide `hidden_size`, 100",
            "x.yaml:11: train.device: must be text, not `3`; put it in quotes",
            "x.yaml:12: evaluate.dev: needs a `kind`: retrieval",
            "--set optim.grups: optim.groups.heads.lr: must be at least 0, not `-1`",
            "--set optim.grups: optim.grups: unknown key; did you mean `groups`?",
        ]

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", ["x.yaml:1: data: is missing", "x.yaml:1: model: is missing"]),
            ("- a", ["x.yaml:1: must be a mapping of keys, such as `data:`"]),
            ("data: [", ["x.yaml:1: not valid YAML: expected the node content, but found '<stream end>'"]),
            ("a:\n\tb: 1", ["x.yaml:2: not valid YAML: found character '\\t' that cannot start any token"]),
            ("data: !python/object:os.system x", ["x.yaml:1: not valid YAML: could not determine a constructor"]),
            ("data: {train: 2024-01-41}", ["x.yaml:1: not valid YAML: day is out of range for month"]),
            ("data: &a {train: *a}", ["x.yaml:1: not valid YAML: maximum recursion depth exceeded"]),
        ],
    )
    def test_text_that_is_not_a_config(self, text: str, expected: list[str]) -> None:
        found = problems(text)
        assert len(found) == len(expected)
        assert all(problem.startswith(start) for problem, start in zip(found, expected, strict=True)), found

    def test_files_that_cannot_be_read(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="there is no config"):
            load_config(tmp_path / "none.yaml")
        (tmp_path / "latin.yaml").write_bytes(b"run: {name: \xff}")
        with pytest.raises(ConfigError, match="cannot be read"):
            load_config(tmp_path / "latin.yaml")


def test_whatever_is_wrong_is_reported_and_never_a_crash() -> None:
    """Configs with random keys dropped, misspelt, or given values that make no sense."""
    rng = random.Random(0)
    bases = [yaml.safe_load(dump_config(load_config(path))) for path in CONFIGS]
    for _ in range(100):
        values = copy.deepcopy(rng.choice(bases))
        for _ in range(rng.randint(1, 4)):
            _spoil(values, rng)
        with contextlib.suppress(ConfigError):
            parse_config(yaml.safe_dump(values), source="x.yaml")


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


def test_problems_are_reported_before_anything_heavy_is_imported(tmp_path: Path) -> None:
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
