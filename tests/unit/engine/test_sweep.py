import csv
import json
from pathlib import Path

import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from voxelry.engine.launch import launch
from voxelry.engine.sweep import SweepSummary, few_shot_table, summarise


def row(count, seed, pretrained, error):
    return {"seed": seed, "training_samples": count, "pretrained": pretrained, "on": "test", "mre_mm": error}


def test_runs_are_gathered_by_method_seed_and_count():
    rows = [row(5, 0, False, 3.0), row(5, 1, False, 4.0), row(10, 0, False, 2.0), row(5, 0, True, 1.5)]
    counts, table = few_shot_table(rows, "mre_mm")
    assert counts == [5, 10]
    np.testing.assert_array_equal(table["from scratch"], [[3.0, 2.0], [4.0, np.nan]])
    np.testing.assert_array_equal(table["pretrained"], [[1.5, np.nan], [np.nan, np.nan]])


def test_runs_from_different_weights_do_not_hide_each_other():
    rows = [row(5, 0, True, error) | {"pretrained_from": start} for start, error in (("chest", 2.0), ("hand", 3.0))]
    _, table = few_shot_table([*rows, row(5, 0, False, 4.0)], "mre_mm")
    assert {method: float(values[0, 0]) for method, values in table.items()} == {
        "pretrained: chest": 2.0,
        "pretrained: hand": 3.0,
        "from scratch": 4.0,
    }


def test_a_metric_that_was_not_defined_is_a_gap():
    _, table = few_shot_table([row(5, 0, False, None)], "mre_mm")
    assert np.isnan(table["from scratch"]).all()


def test_a_sweep_ends_with_one_table_and_one_page(tmp_path):
    for number, values in enumerate([row(1, 0, False, 5.0), row(5, 0, False, 3.0), row(1, 0, True, 4.0)]):
        folder = tmp_path / f"run{number}"
        (folder / "metrics").mkdir(parents=True)
        (folder / "metrics" / "summary.json").write_text("{}")
        (folder / "summary.json").write_text(json.dumps(values))
    page = summarise(tmp_path)
    with (tmp_path / "sweep.csv").open(newline="") as file:
        assert [line["run"] for line in csv.DictReader(file)] == ["run0", "run1", "run2"]
    text = page.read_text()
    assert "Few labels" in text
    assert "run2" in text


def test_a_sweep_of_which_nothing_finished_leaves_no_page(tmp_path):
    assert summarise(tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_runs_of_an_earlier_sweep_in_the_folder_do_not_count(tmp_path, capsys):
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})

    def sweep(errors):
        callback = SweepSummary()
        callback.on_multirun_start(config)
        for number, error in enumerate(errors):
            (tmp_path / str(number)).mkdir(exist_ok=True)
            (tmp_path / str(number) / "summary.json").unlink(missing_ok=True)
            (tmp_path / str(number) / "summary.json").write_text(json.dumps(row(1, number, False, error)))
        callback.on_multirun_end(config)
        with (tmp_path / "sweep.csv").open(newline="") as file:
            return [(line["run"], float(line["mre_mm"])) for line in csv.DictReader(file)]

    assert sweep([5.0, 4.0, 3.0]) == [("0", 5.0), ("1", 4.0), ("2", 3.0)]
    assert sweep([2.0]) == [("0", 2.0)]
    capsys.readouterr()
    assert sweep([]) == [("0", 2.0)]
    assert "no run of this sweep finished" in capsys.readouterr().err


def test_a_folder_that_tells_the_runs_apart_is_summarised_as_one_sweep(tmp_path, monkeypatch):
    def run(config):
        folder = Path(HydraConfig.get().runtime.output_dir)
        (folder / "summary.json").write_text(json.dumps(row(config.data.training_samples, 0, False, 1.0)))

    monkeypatch.setattr("voxelry.engine.launch._run", run)
    monkeypatch.setattr("sys.argv", ["voxelry"])
    told = f"output_dir='{tmp_path}/study/samples${{data.training_samples}}/scratch'"
    launch(["--multirun", "experiment=landmarks_2d", "data.root=x", "plan=null", told, "data.training_samples=5,10"])
    with (tmp_path / "study" / "sweep.csv").open(newline="") as file:
        found = [(line["run"], line["training_samples"]) for line in csv.DictReader(file)]
    assert found == [("samples10/scratch/1", "10"), ("samples5/scratch/0", "5")]
