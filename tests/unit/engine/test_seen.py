"""An evaluation says which of its cases the model was made with."""

import csv
import json
import shutil

import pytest

import voxelry
from voxelry.bundle.pretrained import cases_seen_by
from voxelry.bundle.seen import describe_seen, lineage, seen_as, seen_cases
from voxelry.engine.report import evaluate_folder
from voxelry.engine.train import train
from voxelry.phantoms import write_phantoms

CONFIG = {
    "data": {
        "train": ["a", "b"],
        "validation": ["c"],
        "digests": {"train": {"a": "1", "b": "2"}, "validation": {"c": "3"}},
    }
}


def test_contents_count_more_than_names():
    cases = {"a": "1", "renamed": "2", "c": "9", "other": "3", "new": "7"}
    expected = {"a": "train", "renamed": "train", "c": "validation (name alone)", "other": "validation"}
    assert seen_cases(CONFIG, cases) == expected


def test_a_bundle_without_digests_goes_by_names():
    assert seen_cases({"data": {"train": ["a"]}}, {"a": "1", "b": "2"}) == {"a": "train"}
    assert seen_cases({}, {"a": "1"}) == {}


def test_cases_of_what_a_training_began_with_count_too():
    first = {
        "data": {"train": ["p"], "validation": ["q"], "digests": {"train": {"p": "10"}, "validation": {"q": "11"}}}
    }
    second = {"data": {"train": ["r"], "validation": [], "digests": {"train": {"r": "12"}}, "earlier": lineage(first)}}
    config = {"data": {**CONFIG["data"], "earlier": lineage(second)}}
    cases = {"a": "1", "x": "10", "y": "11", "z": "12", "c": "10", "q": "99", "new": "5"}
    assert seen_cases(config, cases) == {
        **{"a": "train", "x": "pretraining", "y": "pretraining", "z": "pretraining"},
        **{"c": "pretraining", "q": "pretraining (name alone)"},
    }
    assert seen_cases(second, {"r": "10"}) == {"r": "pretraining"}
    assert describe_seen({"x": "pretraining"}) == ["the model began with weights made with 1 of these cases: x"]


@pytest.mark.parametrize(("row", "how"), [("a", "train"), ("a liver", "train"), ("ab", ""), ("b", "")])
def test_a_row_belongs_to_the_case_that_it_is_called_by(row, how):
    assert seen_as(row, {"a": "train"}) == how


def test_both_figures_are_given_where_the_model_has_seen_cases(training, phantoms, tmp_path, caplog):
    run = train(training("landmarks_3d", "trainer.max_steps=1"))
    mixed = shutil.copytree(phantoms, tmp_path / "mixed")
    other = write_phantoms(tmp_path / "other", 2, seed=900, shape=(24, 28, 32))
    for kind in ("volumes", "landmarks", "labels"):
        for file in (other / kind).iterdir():
            shutil.copy(file, mixed / kind / file.name.replace("case_", "new_"))
    model = voxelry.load(tmp_path / "run")
    summary = evaluate_folder(model, mixed, tmp_path / "evaluation").summary
    with (tmp_path / "evaluation" / "cases.csv").open(newline="") as file:
        rows = {row["name"]: row["seen"] for row in csv.DictReader(file)}
    names = model.bundle.config["data"]
    assert rows == {
        **dict.fromkeys(names["train"], "train"),
        **dict.fromkeys(names["validation"], "validation"),
        **dict.fromkeys(names["test"], ""),
        "new_000": "",
        "new_001": "",
    }
    assert "the model was trained on 2 of these cases" in caplog.text
    written = json.loads((tmp_path / "evaluation" / "summary.json").read_text())
    assert written["unseen.mre_mm"] == pytest.approx(summary["unseen.mre_mm"])
    assert summary["unseen.mre_mm"] != summary["mre_mm"]
    only_new = evaluate_folder(model, other, tmp_path / "fresh").summary
    assert "the model was trained on" not in caplog.text.split("count as unseen")[-1]
    assert only_new["mre_mm"] > 0
    assert run.bundle is not None


def test_a_fine_tuned_model_says_what_its_pretraining_has_seen(training, phantoms, tmp_path, caplog):
    """The pretraining saw all cases but one, the fine-tuning other ones: neither may pass as a test."""
    first, second = tmp_path / "first", tmp_path / "second"
    few = ("task.sample_steps=2", "task.reconstruct_steps=2", "trainer.max_steps=1")
    train(training("pretrain_3d", *few, f"output_dir={first}", "data.split.fractions=[0.75,0,0.25]"))
    other = write_phantoms(tmp_path / "other", 3, seed=77, shape=(24, 28, 32))
    began = ("trainer.max_steps=1", f"pretrained={first}", f"data.root={other}", f"output_dir={second}")
    train(training("landmarks_3d", *began))
    (begun,) = cases_seen_by(first)
    assert cases_seen_by(first / "checkpoints" / "last.ckpt") == [begun]
    assert cases_seen_by(second / "checkpoints" / "last.ckpt")[1:] == [begun]
    model = voxelry.load(second)
    summary = evaluate_folder(model, phantoms, tmp_path / "evaluation").summary
    with (tmp_path / "evaluation" / "cases.csv").open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    (fresh,) = voxelry.load(first).bundle.config["data"]["test"]
    # the fine-tuning's cases have the same names, but other contents
    assert {name for name, row in rows.items() if row["seen"] == "pretraining"} == set(rows) - {fresh}
    assert "the model began with weights made with 3 of these cases" in caplog.text
    assert summary["unseen.mre_mm"] == pytest.approx(float(rows[fresh]["mre_mm"]))
    assert summary["mre_mm"] != summary["unseen.mre_mm"]
