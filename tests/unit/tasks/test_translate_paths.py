"""Paths: what is trained and what is sampled are the same, calls are counted, perfect networks are found out."""

import pytest
import torch

from voxelry.core.errors import SettingError
from voxelry.diffusion.flow import GOLDEN_RATIO
from voxelry.tasks.translate.paths import MODES, DiffusionPath, FlowPath, make_path

X0 = torch.tensor([[[[0.7, -0.3], [0.1, -0.9]]]])
START = X0 + 0.4
WAYS = [
    *[("diffusion", objective, sampler) for objective in ("x0", "v") for sampler in ("ddim", "dpm_solver", "heun")],
    *[(mode, objective, sampler) for mode in ("bridge", "flow") for objective in ("x0", "v")
      for sampler in ("euler", "heun")],
    ("regression", "x0", "euler"),
]  # fmt: skip


class Oracle:
    """Knows the one image there is, and answers what the path names."""

    def __init__(self, path, noise):
        self.path, self.noise, self.calls = path, noise, 0

    def __call__(self, x_t, clock):
        self.calls += 1
        t = clock if isinstance(self.path, DiffusionPath) else clock / 1000
        assert clock.shape == (len(x_t),)
        if self.path.objective == "x0":
            return X0
        if isinstance(self.path, DiffusionPath):
            schedule = self.path.plan.schedule
            return (schedule.signal(t, x_t) * x_t - X0) / schedule.noise(t, x_t)
        return (x_t - X0) / t.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize(("mode", "objective", "sampler"), WAYS)
def test_a_perfect_network_gives_the_target_in_exactly_as_many_calls_as_are_said(mode, objective, sampler):
    path = make_path(mode, {"objective": objective, "sampler": sampler, "steps": 3})
    noise = torch.randn_like(X0)
    oracle = Oracle(path, noise)
    found = path.walk(oracle, path.begin(START, noise))
    assert (found - X0).abs().max() < 1e-4
    assert oracle.calls == path.calls


@pytest.mark.parametrize("mode", MODES)
def test_training_visits_what_sampling_does(mode):
    path = make_path(mode, {"steps": 4})
    seen = set()

    def answer(x_t, clock):
        seen.add(float(clock[0]))
        return X0 if path.objective == "x0" else torch.zeros_like(X0)

    path.walk(answer, path.begin(START, torch.zeros_like(X0)))
    drawn = path.clock(path.draw(500, 0.3))
    assert {float(t) for t in drawn} == seen


def test_a_bridge_leads_from_the_condition_to_the_target():
    path = make_path("bridge", {"noise_scale": 0.0})
    ends = path.between(X0.expand(2, -1, -1, -1), START.expand(2, -1, -1, -1), torch.randn(2, 1, 2, 2),
                        torch.tensor([1.0, 0.25]))  # fmt: skip
    assert torch.equal(ends[0], START[0])
    torch.testing.assert_close(ends[1], X0[0] + 0.1)
    assert not path.varies
    assert make_path("bridge", {}).varies
    assert torch.equal(make_path("flow", {}).begin(START, X0), X0)


@pytest.mark.parametrize("objective", ["x0", "v", "epsilon"])
def test_the_goal_of_a_diffusion_leads_back_to_the_target(objective):
    path = make_path("diffusion", {"objective": objective, "train_steps": "all"})
    noise, t = torch.randn_like(X0), torch.tensor([300])
    x_t, goal = path.between(X0, START, noise, t), path.goal(X0, START, noise, t)
    signal, spread = path.plan.schedule.signal(t, X0), path.plan.schedule.noise(t, X0)
    expected = {"x0": X0, "epsilon": noise, "v": signal * noise - spread * X0}[objective]
    torch.testing.assert_close(goal, expected, atol=1e-5, rtol=1e-5)
    assert x_t.shape == X0.shape


def test_the_share_of_the_beginning_is_kept_and_the_rest_is_even():
    path = FlowPath(steps=4, start_share=0.5, trained=(1.0, 0.75, 0.5, 0.25))
    counts = torch.bincount((path.draw(8000, 0.0) * 4).long(), minlength=5)[1:] / 8000
    torch.testing.assert_close(counts, torch.tensor([0.125, 0.125, 0.125, 0.625]), atol=2e-3, rtol=0)
    everywhere = FlowPath(steps=4, start_share=0.2).draw(5000, 0.1)
    assert everywhere.min() > 0
    assert everywhere.max() == 1
    assert (everywhere == 1).double().mean() == pytest.approx(0.2, abs=2e-3)
    assert everywhere.mean() == pytest.approx(0.2 + 0.8 * 0.5, abs=2e-3)


def test_batches_of_one_cover_the_times_evenly():
    path = FlowPath(steps=4, start_share=0.0, trained=(1.0, 0.75, 0.5, 0.25))
    drawn = [float(path.draw(1, number * GOLDEN_RATIO % 1)) for number in range(40)]
    assert all(abs(drawn.count(t) - 10) <= 2 for t in (1.0, 0.75, 0.5, 0.25))


@pytest.mark.parametrize("mode", ["bridge", "flow", "diffusion"])
def test_steps_that_were_not_trained_are_refused(mode):
    path = make_path(mode, {"steps": 4, "spacing": "trailing"})
    assert path.request(2).calls == 2
    assert path.request(1).calls == 1
    assert path.request(sampler="heun").calls == 7
    with pytest.raises(SettingError, match=r"sample_steps: 3 steps .* trained at .*it can do 1, 2, 4"):
        path.request(3)
    assert make_path(mode, {"steps": 4, "train_steps": "all"}).request(3).calls == 3


@pytest.mark.parametrize("mode", MODES)
def test_settings_make_the_path_again(mode):
    path = make_path(mode, {"steps": 4, "noise_scale": 0.1, "start_share": 0.25, "clip": (-1.0, 1.0)})
    again = make_path(mode, path.settings())
    assert again.settings() == path.settings()
    assert again.calls == path.calls


@pytest.mark.parametrize(
    ("mode", "settings", "message"),
    [
        ("bridges", {}, "mode: expected one of bridge"),
        ("bridge", {"sampler": "ddim"}, "sampler: a flow or bridge has one of euler"),
        ("bridge", {"objective": "epsilon"}, "objective"),
        ("bridge", {"noise_scale": -1}, "noise_scale"),
        ("bridge", {"start_share": 1.5}, "start_share"),
        ("flow", {"train_steps": "some"}, "train_steps"),
        ("flow", {"train_steps": [1.5]}, "train_steps"),
        ("flow", {"train_steps": [0.5]}, "sample_steps"),
        ("diffusion", {"sampler": "euler"}, "sampler"),
    ],
)
def test_what_can_not_be_is_refused(mode, settings, message):
    with pytest.raises(SettingError, match=message):
        make_path(mode, settings)


def test_a_flow_has_no_noise_on_its_way():
    with pytest.raises(SettingError, match="eta"):
        make_path("flow", {}).request(eta=0.5)
