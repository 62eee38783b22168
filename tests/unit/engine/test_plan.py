"""What is planned for data of all kinds, from invented fingerprints; and a run that follows a plan."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from math import prod
from pathlib import Path

import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf

from voxelry.bundle.registry import recipe_of_config
from voxelry.core.errors import CheckpointError, ConfigError, FileError
from voxelry.core.space import Space
from voxelry.data.fingerprint.record import CaseFacts, Fingerprint
from voxelry.engine.check import check_settings
from voxelry.engine.compose import compose_training, parted
from voxelry.engine.plan import size_rules, training_rules
from voxelry.engine.plan.auto import planned as planned_now
from voxelry.engine.plan.contradictions import contradictions
from voxelry.engine.plan.in_crops import in_crops
from voxelry.engine.plan.inherited import as_pretrained
from voxelry.engine.plan.plan import GIVEN, RULES, decide, plan_folder
from voxelry.engine.plan.situation import Machine, Situation
from voxelry.engine.plan.table import render
from voxelry.engine.plan_file import Decision, decisions_of, is_settled, read_plan, write_plan
from voxelry.engine.train import train
from voxelry.io import write_image

GIB = 1 << 30
LAPTOP = Machine(8 * GIB, 4)
QUICK = ("model=unet_tiny", "model.block=pre_norm", "model.attention=none", "model.middle_attention=none")


def facts(shape, spacing=1.0, **more) -> CaseFacts:
    space = Space.from_spacing(shape, spacing)
    told = {"placed": True, "channels": 1, "dtype": "uint16", **more}
    return CaseFacts("", "", shape=space.shape, affine=tuple(map(tuple, space.affine.tolist())), **told)


@cache
def composed(experiment, *settings):
    small = QUICK if experiment.startswith(("landmarks", "pretrain_2d", "pretrain_3d")) else ()
    return compose_training([f"experiment={experiment}", "data.root=DIR", *small, *settings])


def situation(cases, experiment="landmarks_3d", machine=LAPTOP, settings=()) -> Situation:
    """A situation with some settings given; of a U-Net a small one is the default."""
    named = [CaseFacts(**{**vars(case), "name": f"case {place}"}) for place, case in enumerate(cases)]
    config = composed(experiment, *settings)
    given = frozenset(text.partition("=")[0] for text in settings)
    return Situation(Fingerprint("DIR", False, tuple(named)), machine, config, recipe_of_config(config), given)


def planned(*arguments, **settings):
    plan = decide(situation(*arguments, **settings))
    check_settings(plan.config)  # whatever is planned is something that a training takes
    assert all(decision.why for decision in plan.decisions)
    return plan, {decision.setting: decision.value for decision in plan.decisions}


def by_data(cases, **settings):
    """What the rules that ask no network decide, and what is odd."""
    now, found = situation(cases, **settings), {}
    for rule in RULES[: RULES.index(size_rules.sizes)]:
        for decision in rule(now):
            found[decision.setting] = decision.value
            now = now.after(decision)
    check_settings(now.config)
    return found, list(contradictions(now, None))


POINTS = {"landmarks": ("left hip", "right hip")}


def test_thick_slices_keep_their_axis_and_windows_are_as_long_as_wide_in_mm():
    cases = [facts((60, 400, 400), (5.0, 0.5, 0.5), **POINTS) for _ in range(30)]
    plan, found = planned(cases)
    assert found["data.preprocess.spacing"] == [5.0, 0.5, 0.5]
    assert found["model.strides"] == [[1, 2, 2], [1, 2, 2]]
    size = np.array(found["data.patches"]["size"])
    extents = size * (5.0, 0.5, 0.5)
    assert (size % (1, 4, 4) == 0).all()
    assert extents.max() / extents.min() < 1.3
    assert prod(size.tolist()) <= 2**20 // found["data.batch_size"]
    tile = found["task.tile_size"]
    assert all(part >= own for part, own in zip(tile, size, strict=True))
    assert plan.training_memory < size_rules.SHARE * LAPTOP.memory
    assert plan.notes == ()


@pytest.mark.parametrize(
    ("model", "setting", "value"), [("folded_unet", "fold", [1, 2, 2]), ("haar_unet", "axes", [1, 2])]
)
def test_blocks_and_bands_leave_thick_slices_too(model, setting, value):
    thick = situation([facts((60, 400, 400), (5.0, 0.5, 0.5), **POINTS)] * 3)
    config = compose_training(["experiment=landmarks_3d", "data.root=DIR", f"model={model}"])
    found = {one.setting: one.value for one in size_rules.levels(replace(thick, config=config))}
    assert found[f"model.{setting}"] == value
    assert found["model.strides"] == [[1, 2, 2], [1, 2, 2]]
    even = situation([facts((64, 64, 64), **POINTS)] * 3)
    assert [one.value for one in size_rules.levels(replace(even, config=config))] == [2]


@pytest.mark.parametrize(("stray", "normalise"), [(0, "window"), (1, "window"), (3, "percentile")])
def test_images_that_are_no_ct_among_those_that_are_are_named(stray, normalise):
    hounsfield = {"modality": "ct", "quantiles": (-1024.0, -1000.0, -900.0, 0.0, 40.0, 900.0, 1800.0)}
    other = {"modality": "unknown", "quantiles": (0.0, 1.0, 60.0, 300.0, 340.0, 500.0, 720.0)}
    cases = [facts((40, 50, 60), **POINTS, **(other if place < stray else hounsfield)) for place in range(12)]
    found, notes = by_data(cases)
    assert found["data.preprocess.normalise"] == normalise
    told = [note for note in notes if "don't look like CT" in note]
    assert len(told) == (stray > 0)
    if stray:
        assert told[0].startswith("data: case 0")
        assert "values from 0 to 720" in told[0]


@pytest.fixture
def typed_by_hand(phantoms, tmp_path):
    """Settings of a small training."""
    return [
        "experiment=landmarks_3d",
        f"data.root={phantoms}",
        f"output_dir={tmp_path / 'run'}",
        *QUICK,
        "data.batch_size=1",
        "data.patches=null",
    ]


def test_a_training_is_planned_unless_it_is_said_otherwise(typed_by_hand):
    for more in ([], ["plan=auto"], ["--cfg", "job"]):
        config = compose_training(parted(planned_now([*typed_by_hand, *more]))[1])
        assert len(config.data.preprocess.spacing) == 3
        assert config.data.preprocess.normalise == "percentile"
        assert config.data.batch_size == 1
        reasons = {one.setting: one.why for one in decisions_of(config.plan)}
        assert reasons["data.preprocess.spacing"].startswith("median of the images'")
        assert reasons["data.batch_size"] == GIVEN
    for more in (["plan=null"], ["plan=FILE"], ["--help"]):
        assert planned_now([*typed_by_hand, *more]) == [*typed_by_hand, *more]


def test_what_the_task_needs_is_told_with_an_image_that_lacks_it(phantoms):
    with pytest.raises(ConfigError, match=r"volumes/case_000\.nii\.gz: no landmarks, .* expected volumes/NAME"):
        planned_now(["experiment=landmarks_3d", f"data.root={phantoms / 'volumes'}", *QUICK])


def test_the_runs_of_a_sweep_have_one_plan(typed_by_hand):
    settings = [*typed_by_hand, "--multirun", "data.split.fold=0,1", "data.preprocess.normalise=zscore,minmax"]
    found = planned_now(settings)
    assert [one for one in found if one.startswith("data.preprocess.normalise")] == settings[-1:]
    assert any(one.startswith("data.preprocess.spacing=[") for one in found)
    plan = decisions_of(compose_training(found[-1:]).plan)
    assert not {"data.split.fold", "data.preprocess.normalise"} & {one.setting for one in plan}


def test_images_are_seen_as_by_the_pretrained_network(typed_by_hand, tmp_path):
    bundle = tmp_path / "earlier" / "bundle"
    bundle.mkdir(parents=True)
    seen = {"spacing": [3.0, 2.0, 2.0], "normalise": "zscore", "clip": 4.0, "percentiles": [0.5, 99.5]}
    (bundle / "config.yaml").write_text(yaml.safe_dump({"preprocess": seen}))
    config = compose_training([*typed_by_hand, f"pretrained={bundle.parent}"])
    found = {one.setting.rpartition(".")[2]: one.value for one in as_pretrained(config, {"data.preprocess.clip"})}
    assert found == {"spacing": [3.0, 2.0, 2.0], "normalise": "zscore"}
    with pytest.raises(CheckpointError, match=r"not a bundle, config\.yaml is missing"):
        planned_now([*typed_by_hand, f"pretrained={tmp_path}"])


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["-m", "task=landmarks,pretrain"], "the runs differ in task"),
        (["data=crops", "data.index=DIR"], "data=crops or data._target_"),
        (["--config-dir", "DIR"], "files of one's own"),
    ],
)
def test_what_can_not_be_planned_is_told(typed_by_hand, caplog, more, why):
    caplog.set_level("INFO", "voxelry")
    assert planned_now([*typed_by_hand, *more]) == [*typed_by_hand, *more, "plan=null"]
    assert why in caplog.text
    with pytest.raises(ConfigError, match=f"plan: expected without auto, .*{why}"):
        planned_now([*typed_by_hand, *more, "plan=auto"])
    assert planned_now(["task=landmarks"]) == ["task=landmarks", "plan=null"]
    assert "there is no data.root" in caplog.text


@pytest.mark.parametrize("experiment", ["landmarks_2d", "pretrain_2d", "translate_2d"])
def test_a_wide_image_without_a_scale(experiment):
    wide = [facts((1, 2048), placed=False, **POINTS)] * 25
    found, _ = by_data(wide, experiment=experiment)
    assert found.get("data.preprocess.spacing") is None
    assert found["model.strides"] == [[1, 2], [1, 2]]


def test_a_second_network_is_trained_beside_it_where_there_is_time():
    cases = [facts((32, 32, 32))] * 10
    assert by_data(cases, experiment="translate_3d")[0]["task.baseline"] is False
    assert "task.baseline" not in by_data(cases, experiment="pretrain_3d")[0]
    now = situation(cases, experiment="translate_3d")
    assert not list(training_rules.beside(replace(now, machine=replace(LAPTOP, gpu="a GPU"))))
    assert not list(training_rules.beside(replace(now, given=now.given | {"task.baseline"})))


def test_a_wide_image_is_learned_from_whole():
    plan, found = planned([facts((1, 2048), placed=False)] * 25, experiment="translate_2d")
    assert found["data.patches"] is None
    assert plan.training_memory > 0


def test_four_channels_and_a_single_case_of_16_voxels():
    plan, found = planned([facts((16, 16, 16), channels=4, **POINTS)])
    assert found["data.split.fractions"] == [1.0, 0.0, 0.0]
    assert found["data.patches"] is None
    assert found["model.strides"] == 2
    assert found["augment.rotation"] == 20.0
    assert "data.split.folds" not in found
    assert plan.prediction_memory > 0


def test_microscopy_is_measured_in_its_own_voxels():
    found, _ = by_data([facts((20, 64, 64), 0.009, modality="fluorescence", **POINTS)] * 4)
    assert found["data.preprocess.spacing"] == [0.009] * 3
    assert found["task.sigma"] == pytest.approx(4 * 0.009, rel=0.01)
    assert found["augment.elastic"] == pytest.approx(3 * 0.009, rel=0.01)
    assert found["data.split.folds"] == 4
    assert found["data.preprocess.normalise"] == "percentile"


def test_objects_that_windows_would_cut_are_seen_coarser():
    def found(extents, **settings):
        cases = [facts((512, 512), objects=extents, **settings)] * 5
        return {one.setting: one for one in decide(situation(cases, "segment_2d")).decisions}

    coarse = found(((130, 140), (80, 90), (40, 44)))
    assert coarse["data.preprocess.spacing"].value == [2.11, 2.11]  # two of 135 voxels in 128
    assert "windows of 128 x 128 hold objects of" in coarse["data.preprocess.spacing"].why
    assert coarse["data.patches.size"].value == [128, 128], "of the coarser image"
    kept = found(((130, 140), (14, 15), (14, 15), (15, 15)))
    assert kept["data.preprocess.spacing"].value == [1.81, 1.81], "small ones keep 8 voxels"
    assert found(((30, 33), (20, 22)))["data.preprocess.spacing"].value is None


def test_mixed_sizes_and_spacings_meet_at_the_median():
    cases = [
        facts((40 + 4 * place, 50, 60), (1.0 + place / 4, 0.8, 0.8), modality="ct", **POINTS) for place in range(5)
    ]
    found, _ = by_data(cases)
    assert found["data.preprocess.spacing"] == [1.5, 0.8, 0.8]
    assert found["data.preprocess.normalise"] == "window"
    assert found["data.preprocess.window"] == [-1000.0, 2000.0]


def test_where_some_images_lack_their_spacing_none_is_planned_and_it_is_told():
    cases = [facts((20, 20, 20), placed=place > 1, **POINTS) for place in range(5)]
    found, notes = by_data(cases)
    assert found["data.preprocess.spacing"] is None
    assert any("case 0, case 1: 2 of 5 images don't say" in note for note in notes)


def test_what_is_larger_than_memory_is_told():
    _, notes = by_data([facts((4096, 4096, 4096), placed=False), facts((64, 64, 64), placed=False)])
    assert notes[0] == "data: case 0: larger than the memory"


def test_copies_and_empties_are_told_by_name():
    cases = [facts((20, 20, 20), digest="same", quantiles=(0.0,) * 7, **POINTS)] * 2 + [facts((20, 20, 20), **POINTS)]
    _, notes = by_data(cases)
    assert notes[0] == "data: case 0, case 1: the same pixels"
    assert "case 0, case 1: all sampled values are one" in notes[1]


@pytest.mark.parametrize(
    "experiment", ["segment_3d", "reconstruct_3d", "pretrain_mae_3d", "translate_3d", "pretrain_3d"]
)
def test_every_task_has_a_plan_that_a_training_takes(experiment):
    cases = [facts((30, 90, 100), (2.0, 0.9, 0.9), objects=((5, 9, 9),), classes={0: 0.9, 1: 0.1})] * 30
    plan, found = planned(cases, experiment=experiment)
    assert found["trainer.max_steps"] > 0
    # interpolation would blur what is restored, organs have frames of their own, segment brings others to its voxels
    expected = [2.0, 0.9, 0.9] if experiment.startswith("pretrain") else None
    assert found.get("data.preprocess.spacing") == expected
    told = plan.training_memory is not None
    assert told == experiment.startswith(("segment", "translate", "pretrain_3d"))


def test_little_memory_recomputes_takes_smaller_batches_and_says_what_does_not_fit():
    cases, width = [facts((128, 128, 128), **POINTS)] * 30, ("model.width=16",)
    roomy, found = planned(cases, machine=Machine(64 << 30, 4), settings=width)
    assert (found["model.checkpointing"], found["data.batch_size"]) == ("norms", 2)
    ladder = [
        planned(cases, machine=Machine(int(roomy.training_memory * share), 4), settings=width)
        for share in (1.2, 0.8, 0.5)
    ]
    chosen = [(less["model.checkpointing"], less["data.batch_size"]) for _, less in ladder]
    assert chosen == [("norms", 1), ("blocks", 1), ("blocks", 1)]
    assert [less["trainer.grad_accumulation"] for _, less in ladder] == [2, 2, 2], "a step learns from as many cases"
    assert ladder[2][1]["data.patches"]["size"] < ladder[1][1]["data.patches"]["size"]
    needed = [plan.training_memory for plan in (roomy, *(plan for plan, _ in ladder))]
    assert needed == sorted(needed, reverse=True)
    assert len(set(needed)) == len(needed)
    helping = r"(data\.patches|model\.width|data\.batch_size)=\S.* \(\d\.\d GB\)"
    with pytest.raises(ConfigError, match=rf"takes about .* 0\.0 GB; what helps most: {helping}, {helping}"):
        planned(cases, machine=Machine(1 << 20, 4), settings=width)


def test_a_processor_recomputes_what_costs_it_nothing():
    cases = [facts((30, 90, 100), (2.0, 0.9, 0.9))] * 30
    again = {
        name: planned(cases, experiment="translate_3d", machine=machine)[1]["model.checkpointing"]
        for name, machine in {"cpu": Machine(64 << 30, 4), "gpu": Machine(64 << 30, 4, "GPU", 64 << 30)}.items()
    }
    assert again == {"cpu": "norms", "gpu": "none"}


def test_what_is_set_is_not_touched():
    given = ("data.batch_size=3", "trainer.max_minutes=5", "data.preprocess.image_size=33", "model=unet_tiny")
    cases = [facts((64, 64, 64), **POINTS)] * 30
    plan, found = planned(cases, settings=given)
    assert not {"data.batch_size", "data.preprocess.spacing", "model.strides", "model.width"} & found.keys()
    assert found["trainer.max_steps"] is None
    assert plan.config.data.batch_size == 3
    odd, _ = planned(cases, settings=("data.patches={size: 31}",))
    assert any(note.startswith("data.patches.size: 31 x 31 x 31 are no multiples of 4 x 4 x 4") for note in odd.notes)


@pytest.mark.parametrize(
    ("setting", "given", "settled"),
    [
        ("data.patches", {"data.patches.size"}, True),
        ("data.patches.size", {"data.patches"}, True),
        ("model.width", {"model"}, True),
        ("data.batch_size", {"data", "experiment", "task"}, False),
        ("data", {"data.root"}, False),
        ("data.preprocess.spacing", {"data.preprocess.image_size"}, True),
        ("trainer.max_steps", {"trainer.max_epochs"}, True),
        ("trainer.max_steps", {"trainer.max_step"}, False),
    ],
)
def test_which_settings_decide_about_others(setting, given, settled):
    assert is_settled(setting, given) is settled


@pytest.mark.parametrize(("most", "expected"), [(10**9, (20, 104, 104)), (20 * 48 * 48, (20, 48, 48)), (1, (4, 8, 8))])
def test_a_window_is_the_largest_in_multiples(most, expected):
    found = size_rules.window((20, 100, 100), (2.5, 1.0, 1.0), most, (4, 8, 8))
    assert found == expected


def test_a_plan_comes_back_from_its_file(tmp_path):
    decisions = [
        Decision("experiment", "landmarks_3d", "images of rank 3"),
        Decision("data.patches", {"size": [8, 16, 16], "fill": "edge"}, "fits: so far"),
        Decision("data.preprocess.window", [-1000.0, 2000.0], "air to bone"),
        Decision("trainer.max_steps", None),
        Decision("trainer.precision", "32-true", "a reason # with a mark"),
    ]
    path = write_plan(tmp_path / "plan.yaml", decisions, "two\nlines")
    assert read_plan(path)[:4] == decisions[:4]
    assert yaml.safe_load(path.read_text())["trainer.precision"] == "32-true"


@pytest.mark.parametrize("text", ["- a list", "3", "plan: other.yaml", "a: [", "!!python/object/apply:os.getcwd []"])
def test_other_files_are_refused_in_a_line(tmp_path, text):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises((ConfigError, FileError), match=r"^[^\n]+$"):
        compose_training(["data.root=DIR", {"plan": path}])
    with pytest.raises(FileError, match="can't be read"):
        compose_training(["data.root=DIR", f"plan={tmp_path / 'none.yaml'}"])


def test_what_is_typed_counts_before_the_plan(tmp_path):
    path = tmp_path / "my plan.yaml"
    path.write_text("experiment: landmarks_2d\ndata.batch_size: 7\ndata.preprocess.spacing: 2.0\nmodel.width: 48\n")
    config = compose_training([f"plan={path}", "data.root=DIR", "data.preprocess.image_size=20", "model=unet_tiny"])
    assert (config.ndim, config.data.batch_size, config.model.width) == (2, 7, 16)
    assert (config.data.preprocess.spacing, config.data.preprocess.image_size) == (None, 20)
    path.write_text("data.batch_sise: 7\n")
    with pytest.raises(ConfigError, match=r"data\.batch_sise: no such setting; the nearest is data\.batch_size"):
        check_settings(compose_training([f"plan={path}", "data.root=DIR"]))


@pytest.mark.parametrize(
    ("typed", "steps"),
    [
        ((), None),
        (("trainer.max_steps=7",), 7),
        (("trainer=gpu",), None),
        (("trainer=smoke",), 4),
        (("trainer.max_minutes=null",), 2000),
    ],
)
def test_minutes_alone_are_the_length(typed, steps):
    config = compose_training(["data.root=DIR", "trainer.max_minutes=5", *typed])
    assert config.trainer.max_steps == steps


def test_a_folder_is_planned_and_a_training_follows(phantoms, tmp_path, quick_training):
    plan = plan_folder(phantoms, "landmarks", ["trainer.max_minutes=5", "data.batch_size=1"])
    found = {one.setting: one.value for one in plan.decisions}
    assert found["experiment"] == "landmarks_3d"
    assert found["data.batch_size"] == 1
    assert found["trainer.max_steps"] is None
    assert render(plan).renderables
    path = write_plan(tmp_path / "plan.yaml", plan.decisions)
    run = train(
        compose_training(
            [
                {"plan": path, "output_dir": tmp_path / "run"},
                *quick_training,
                "data.preprocess.image_size=16",
                "trainer.max_steps=2",
            ]
        )
    )
    record = yaml.safe_load((run.bundle / "config.yaml").read_text())
    assert {"setting": "data.batch_size", "value": 1, "why": "as you set it"} in record["plan"]
    kept = {one.setting: one for one in read_plan(tmp_path / "run" / "plan.yaml")}
    assert kept["trainer.max_steps"].value == 2
    assert kept["trainer.max_steps"].why == "set instead of null"
    page = (tmp_path / "run" / "report.html").read_text()
    sections = re.findall(r"<h2[^>]*>([^<]+)</h2>", page)
    assert sections[0] == "Plan and data"
    assert "Time" in sections
    assert "training cases after preprocessing" in page
    assert "Spacings and sizes of" in page


def test_bad_data_are_told_by_name(tmp_path, rng):
    """Copies, an inverted image, images without a spacing, and labels on another grid."""
    space = Space.from_spacing((12, 14, 16), 1.5)
    organ = np.zeros((1, 12, 14, 16), np.uint8)
    organ[:, 3:8, 4:9, 5:11] = 1
    images = [200 * organ + rng.gamma(2.0, 10.0, organ.shape).astype(np.int16) for _ in range(6)]
    images[1], images[2] = images[0], 400 - images[2]
    for number, image in enumerate(images):
        suffix = ".npy" if number > 3 else ".nii.gz"
        write_image(tmp_path / "volumes" / f"c{number}{suffix}", image, space)
        grid = Space.from_spacing(space.shape, 1.7) if number == 3 else space
        write_image(tmp_path / "labels" / f"c{number}{suffix}", organ, grid)
    notes = plan_folder(tmp_path, "reconstruct").notes
    assert "data: c0, c1: the same pixels" in notes
    assert "data: c2: bright where the others are dark, perhaps inverted" in notes
    assert any(note.startswith("data: c4, c5: 2 of 6 images don't say how large") for note in notes)
    assert any(re.search(r"^doctor: error: .*labels.c3\.nii\.gz: ", note) for note in notes)


def test_pairs_and_ranks_are_seen(tmp_path):
    for folder in ("A", "B"):
        for name in range(3):
            pixels = np.random.default_rng(name).integers(0, 255, (1, 40, 48), dtype=np.uint8)
            write_image(tmp_path / folder / f"{name}.png", pixels, Space.from_spacing((40, 48)))
    plan = plan_folder(tmp_path, "translate")
    found = {one.setting: one.value for one in plan.decisions}
    assert (found["experiment"], found["data"]) == ("translate_2d", "pairs")
    assert plan.data.pairs
    assert OmegaConf.select(plan.config, "data.source") == "pairs"
    now = compose_training(planned_now(["task=translate", f"data.root={tmp_path}", f"output_dir={tmp_path / 'run'}"]))
    assert (now.ndim, now.data.source) == (2, "pairs")
    with pytest.raises(ConfigError, match="no experiment for images of rank 2"):
        plan_folder(tmp_path / "A", "reconstruct")
    with pytest.raises(ConfigError, match="task: expected one of"):
        plan_folder(Path(tmp_path), "landmark")


def test_what_is_larger_than_memory_is_learned_from_in_crops():
    cases = [facts((400, 4000, 4000), 0.001, modality="fluorescence")] * 3
    for experiment in ("pretrain_3d", "segment_3d"):
        now = situation(cases, experiment)
        assert now.is_for_crops
        plan = decide(now)
        found = {one.setting: one.value for one in in_crops(plan.decisions, replace(now, config=plan.config))}
        assert found["data"] == "crops"
        assert found["data.normalise"] == "percentile"
        assert prod(found["data.crop_size"]) <= 2**20
        assert not [name for name in found if name.startswith(("data.preprocess", "data.patches"))]
        small = QUICK if experiment == "pretrain_3d" else ()
        check_settings(compose_training([f"experiment={experiment}", "data.root=DIR", *small, found]))
    assert not situation(cases, settings=("data=crops",)).is_for_crops
    assert not situation([replace(case, landmarks=("left hip",)) for case in cases]).is_for_crops
