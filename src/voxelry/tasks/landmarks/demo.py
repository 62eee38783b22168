"""The demo: pretraining without labels, fine-tuning on few, phantoms that are new."""

from voxelry.tasks.demo import UNSEEN, Demo, DemoTraining, Rank

__all__ = ["DEMO"]

SHARED = ("model=folded_unet", "trainer.log_every=5", "trainer.max_steps=1500")

DEMO = Demo(
    title="voxelry demo",
    subtitle="Phantoms, pretraining, fine-tuning on few labels, unseen phantoms",
    kind="torso",
    size=48,
    phantoms={"unlabelled": 24, "labelled": 12, UNSEEN: 6},
    trainings=(
        DemoTraining(
            folder="pretrain",
            heading="Pretraining",
            experiment="pretrain",
            data="unlabelled",
            minutes=0.9,
            overrides=(
                *SHARED,
                "trainer.validate_every=250",
                "task.schedule=cosine",  # ends in pure noise however few its steps
                "task.n_timestep=200",
                "task.objective=v",  # samples of a network that has hardly begun to learn are smooth, not saturated
                "task.sample_steps=20",
            ),
        ),
        DemoTraining(
            folder="landmarks",
            heading="Fine-tuning",
            experiment="landmarks",
            data="labelled",
            pretrained="pretrain",
            minutes=1.4,
            overrides=(*SHARED, "data.split.fractions=[0.67,0.33,0.0]", "trainer.validate_every=150"),
        ),
    ),
    ranks={
        2: Rank(format=".png", overrides=("data.preprocess.image_size=48",)),
        3: Rank(format=".nii.gz", overrides=("data.preprocess.image_size=32",)),
    },
)
