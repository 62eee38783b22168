"""The demo: phantoms with coarse planes and noise, a short training, new ones restored."""

from voxelry.tasks.demo import UNSEEN, Demo, DemoTraining, Rank

__all__ = ["DEMO"]

DEMO = Demo(
    title="voxelry demo: restoration",
    subtitle="Phantoms with coarse planes and noise, a short training",
    kind="torso",
    size=40,
    phantoms={"good": 20, UNSEEN: 4},
    trainings=(
        DemoTraining(
            folder="translate",
            heading="Training",
            experiment="translate",
            data="good",
            minutes=1.8,
            overrides=(
                "data.split.fractions=[0.8,0.2,0.0]",
                "model.width=16",
                "trainer.max_steps=1500",
                "trainer.validate_every=250",
                "trainer.log_every=5",
                "optimizer.lr=1e-3",
            ),
        ),
    ),
    ranks={2: Rank(format=".nii.gz"), 3: Rank(format=".nii.gz")},
)
