"""Flow matching, shortcuts and guidance of the original, on the toy network of its reference file."""

import pytest
import torch

from voxelry.core.errors import SettingError
from voxelry.diffusion.flow import FLOW_SOLVERS, draw_times, interpolate, velocity
from voxelry.diffusion.guidance import Guidance, guided, guided_twice
from voxelry.diffusion.latents import pack, squared_errors, unpack
from voxelry.diffusion.shortcut import draw_steps, shortcut_loss, shortcut_target
from voxelry.models.sam3d.generate import Generation, ask, generate, guided_teacher

SOLVERS = {"euler": "euler", "midpoint": "midpoint", "rk4": "runge_kutta"}


def invented():
    """A reference file's tensors, invented."""
    widths, tokens = {"shape": 4, "pose": 6}, {"shape": 8, "pose": 1}
    draw = torch.Generator().manual_seed(0)
    found = {"input.cond": torch.randn(4, 6, generator=draw)}
    for name, width in widths.items():
        found[f"weight.W.{name}"] = torch.randn(width, width, generator=draw)
        found[f"weight.U.{name}"] = torch.randn(6, width, generator=draw)
        for key in ("bt", "bd"):
            found[f"weight.{key}.{name}"] = torch.randn(width, generator=draw)
        for key in ("x0", "x1"):
            found[f"input.{key}.{name}"] = torch.randn(4, tokens[name], width, generator=draw)
    return found


class Toy:
    """The network of the file's `case`, in the original's time."""

    def __init__(self, tensors):
        self.tensors = tensors
        self.calls = 0

    def __call__(self, x, ticks, condition, step=None):
        self.calls += 1
        found = {}
        for name, each in x.items():
            w, u, bt, bd = (self.tensors[f"weight.{key}.{name}"] for key in ("W", "U", "bt", "bd"))
            told = (condition @ u)[:, None] + ticks.view(-1, 1, 1) / 1000 * bt
            if step is not None:
                told = told + step.view(-1, 1, 1) / 1000 * bd
            found[name] = torch.tanh(each @ w + told)
        return found


def latents(tensors, end):
    return {name: tensors[f"input.{end}.{name}"] for name in ("shape", "pose")}


def steps(tensors, how, inverse=False):
    """States after each step, and the times."""
    noise, seen = latents(tensors, "x0"), []
    found = generate(Toy(tensors), noise, tensors["input.cond"], how, inverse=inverse, callback=seen.append)
    states = [unpack(step.x, noise) for step in seen]
    assert torch.equal(states[-1]["shape"], found["shape"])
    return {name: torch.stack([state[name] for state in states]) for name in noise}, [
        seen[0].t,
        *[s.t_next for s in seen],
    ]


def guidance_of(given):
    """Our settings of the original's, whose intervals are in its ticks."""

    def turned(pair):
        return None if pair is None else [1 - pair[1] / 1000, 1 - pair[0] / 1000]

    interval = given["interval"]
    kinds = isinstance(interval, dict)
    interval = {name: turned(pair) for name, pair in interval.items()} if kinds else turned(interval)
    return Guidance(given["strength"], interval)


def settings_of(given, **more):
    return Generation(
        steps=given["inference_steps"],
        shift=given.get("rescale_t", 1.0),
        sampler=SOLVERS[given.get("solver_method", "euler")],
        ticks=given.get("time_scale", 1000.0),
        **more,
    )


def test_samplers(reference, assert_close):
    case, _, tensors = reference("sam3d_flow_matching")
    for name, given in case["samplers"].items():
        how = settings_of(given)
        inverse = given.get("reversed_timestamp", False)
        states, walked = steps(tensors, how, inverse)
        for kind, found in states.items():
            assert_close(found, tensors[f"output.sample.{name}.{kind}"])
        walked = torch.tensor(walked)
        assert_close(walked if inverse else 1 - walked, tensors[f"output.sample.{name}.t_seq"])


def test_shortcuts(reference, assert_close):
    case, _, tensors = reference("sam3d_flow_matching")
    for name, given in case["shortcuts"].items():
        states, _ = steps(tensors, settings_of(given, shortcut="zero" if given.get("no_shortcut") else "step"))
        for kind, found in states.items():
            assert_close(found, tensors[f"output.sample.{name}.{kind}"])


def test_guided_samples(reference, assert_close):
    case, _, tensors = reference("sam3d_flow_matching")
    for name, given in case["guidance"].items():
        flow = Generation(steps=5, shift=3.0, guidance=guidance_of(given))
        shortcut = Generation(steps=4, shortcut="zero", guidance=guidance_of(given))
        for key, how in (("guided_sample", flow), ("guided_shortcut", shortcut)):
            states, _ = steps(tensors, how)
            for kind, found in states.items():
                assert_close(found, tensors[f"output.{key}.{name}.{kind}"])
    for handling in ("zeros", "add_flag"):
        how = Generation(
            steps=4, shortcut="step", keeps_step=handling == "add_flag", guidance=Guidance(2.0, (0.0, 1.0))
        )
        states, _ = steps(tensors, how)
        for kind, found in states.items():
            assert_close(found, tensors[f"output.guided_shortcut_with_d.{handling}.{kind}"])


def test_guided_velocities(reference, assert_close):
    case, _, tensors = reference("sam3d_flow_matching")
    x, condition, toy = latents(tensors, "x1"), tensors["input.cond"], Toy(tensors)
    for name, given in case["guidance"].items():
        for ticks in case["guidance_times"]:
            t = 1 - ticks / 1000
            answers = (ask(toy, x, t, condition * keep, None) for keep in (1, 0))
            strengths = guidance_of(given).strengths(t, x)
            for kind, found in guided(*answers, strengths).items():
                assert_close(-found, tensors[f"output.guidance.{name}.t{ticks}.{kind}"])
    without_pointmap = condition * torch.tensor([0.0, 1, 0, 1, 0, 1])
    answers = [ask(toy, x, 0.6, each, None) for each in (condition, without_pointmap, condition * 0)]
    for kind, found in guided_twice(*answers, strength=3.0, partial_strength=2.0).items():
        assert_close(-found, tensors[f"output.guidance.pointmap.t400.{kind}"])


def test_losses(reference, assert_close):
    case, _, tensors = reference("sam3d_flow_matching")
    noise, data, t = latents(tensors, "x0"), latents(tensors, "x1"), 1 - tensors["input.t"]
    toy, condition = Toy(tensors), tensors["input.cond"]
    x_t = {name: interpolate(data[name], noise[name], t) for name in data}
    target = {name: velocity(data[name], noise[name]) for name in data}
    for kind in data:
        assert_close(x_t[kind], tensors[f"output.loss.x_t.{kind}"])
        assert_close(-target[kind], tensors[f"output.loss.target.{kind}"])
    errors = squared_errors(ask(toy, x_t, t, condition, None), target, case["loss"]["loss_weights"])
    for kind, error in errors.items():
        assert_close(error, tensors[f"output.loss.weighted.{kind}"])
    assert_close(sum(errors.values()), tensors["output.loss.total"])


@pytest.mark.parametrize(("name", "count"), [("cond_only", 0), ("half_guided", 1), ("all_guided", 2)])
@pytest.mark.parametrize("suffix", ["", "_flag"])
def test_shortcut_loss(reference, assert_close, name, count, suffix):
    case, _, tensors = reference("sam3d_flow_matching")
    if count == 0:  # nothing is led
        suffix = ""
    given, toy, condition = case["shortcut_loss"], Toy(tensors), tensors["input.cond"]
    lengths = tensors["input.d"]
    teacher = guided_teacher(
        toy,
        condition,
        strength=given["self_consistency_cfg_strength"],
        count=count,
        names=["shape"] if count == int((lengths > 0).sum()) else None,  # the original's rule
        keeps_step=bool(suffix),
    )
    loss = shortcut_loss(
        lambda x, t, step: ask(toy, x, t, condition, step),
        teacher,
        (latents(tensors, "x1"), latents(tensors, "x0")),
        (1 - tensors["input.t"], lengths),
        weights=given["loss_weights"],
        consistency_weight=given["shortcut_loss_weight"],
    )
    stem = f"output.shortcut_loss.{name}{suffix}"
    assert_close(loss.flow, tensors[f"{stem}.flow_matching_loss"])
    assert_close(loss.consistency, tensors[f"{stem}.self_consistency_loss"])
    assert_close(loss.total, tensors[f"{stem}.total"])


def test_more_exact_solvers_come_nearer_the_path():
    tensors = invented()
    fine, _ = steps(tensors, Generation(steps=400))
    gaps = {}
    for sampler in FLOW_SOLVERS:
        states, _ = steps(tensors, Generation(steps=8, sampler=sampler))
        gaps[sampler] = (states["shape"][-1] - fine["shape"][-1]).abs().max().item()
    assert gaps["runge_kutta"] < gaps["midpoint"] < gaps["euler"]
    assert gaps["heun"] < gaps["euler"]


def test_from_noise_to_data_and_back():
    tensors = invented()
    how = Generation(steps=60, sampler="runge_kutta")
    data = generate(Toy(tensors), latents(tensors, "x0"), tensors["input.cond"], how)
    back = generate(Toy(tensors), data, tensors["input.cond"], how, inverse=True)
    for kind, expected in latents(tensors, "x0").items():
        torch.testing.assert_close(back[kind], expected, atol=1e-3, rtol=0)


def test_guidance_asks_twice_only_while_it_is_on():
    tensors, toy = invented(), Toy(invented())
    noise, condition = latents(tensors, "x0"), tensors["input.cond"]
    generate(toy, noise, condition, Generation(steps=4, guidance=Guidance(2.0, (0.5, 1.0))))
    assert toy.calls == 4 + 3  # at 1, 0.75 and 0.5
    toy.calls = 0
    plain = generate(toy, noise, condition, Generation(steps=4, guidance=Guidance(2.0, None)))
    assert toy.calls == 4
    led = generate(toy, noise, condition, Generation(steps=4, guidance=Guidance({"shape": 2.0})))
    assert torch.equal(led["pose"], plain["pose"])
    assert not torch.allclose(led["shape"], plain["shape"])


def test_two_steps_of_a_straight_path_are_one():
    x = {"shape": torch.randn(3, 5, 2)}
    t, step = torch.tensor([1.0, 0.5, 0.25]), torch.tensor([0.25, 0.25, 0.125])
    target = shortcut_target(lambda x, t, step: {"shape": torch.ones_like(x["shape"])}, x, t, step)
    assert torch.equal(target["shape"], torch.ones(3, 5, 2))
    loss = shortcut_loss(
        lambda x, t, step: {"shape": torch.ones_like(x["shape"])},
        lambda x, t, step: {"shape": t.view(-1, 1, 1).expand_as(x["shape"])},
        ({"shape": torch.zeros(3, 5, 2)}, {"shape": torch.zeros(3, 5, 2)}),
        (t, torch.tensor([0.5, 0.0, 0.0])),
    )
    assert loss.flow == 1.0
    assert loss.consistency == (1 - 0.75) ** 2
    none = shortcut_loss(
        lambda x, t, step: {"shape": torch.ones_like(x["shape"])},
        lambda x, t, step: x,
        ({"shape": torch.zeros(3, 5, 2)}, {"shape": torch.zeros(3, 5, 2)}),
        (t, torch.zeros(3)),
    )
    assert none.consistency == 0.0


def test_steps_fit_their_times():
    generator = torch.Generator().manual_seed(1)
    t = draw_times(400, generator=generator)
    times, lengths = draw_steps(t, share=0.25, generator=generator)
    assert torch.equal(times[100:], t[100:])
    assert (lengths[100:] == 0).all()
    own, length = times[:100], lengths[:100]
    assert (own >= 2 * length).all()
    assert (own <= 1).all()
    assert torch.equal(own / length, (own / length).round())
    assert length.unique().tolist() == [0.5**power for power in range(7, 0, -1)]


def test_packing_and_faults():
    found = latents(invented(), "x0")
    again = unpack(pack(found), found)
    assert all(torch.equal(again[name], found[name]) for name in found)
    for make in (
        lambda: Guidance(1.0, (0.5, 0.2)),
        lambda: Generation(sampler="sde"),
        lambda: Generation(shortcut="d"),
    ):
        with pytest.raises(SettingError, match="expected"):
            make()
    with pytest.raises(SettingError, match="share"):
        draw_steps(torch.ones(2), share=2.0)


def test_the_first_items_with_a_step_are_guided():
    tensors = invented()
    condition, step = tensors["input.cond"], torch.tensor([0.0, 0.25, 0.0, 0.5])
    x, t = latents(tensors, "x0"), torch.ones(4)
    plain, led = (
        guided_teacher(Toy(tensors), condition, strength=2.0, count=count)(x, t, step)["shape"] for count in (0, 1)
    )
    assert (plain != led).flatten(1).any(dim=1).tolist() == [False, True, False, False]
