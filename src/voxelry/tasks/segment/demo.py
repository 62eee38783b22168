"""The demo: packed nuclei, a short training, nuclei that are new."""

from voxelry.tasks.demo import UNSEEN, Demo, DemoTraining, Rank

__all__ = ["DEMO"]

DEMO = Demo(
    title="voxelry demo: instances",
    subtitle="Nuclei phantoms, a short training, unseen phantoms",
    kind="nuclei",
    size=64,
    phantoms={"labelled": 20, UNSEEN: 4},
    trainings=(
        DemoTraining(
            folder="segment",
            heading="Training",
            experiment="segment",
            data="labelled",
            minutes=2.0,
            overrides=(
                "data.split.fractions=[0.9,0.1,0.0]",
                "task.tile_size=64",
                "augment.flip=0.5",
                "augment.elastic=0",
                "trainer.max_steps=2000",
                "trainer.validate_every=250",
                "trainer.log_every=5",
                "optimizer.lr=2e-3",
            ),
        ),
    ),
    ranks={
        2: Rank(format=".ome.tif", overrides=("data.patches.size=48",)),
        # voxels half as long again: four times the steps in the same time
        3: Rank(
            format=".ome.tif",
            overrides=("data.patches.size=32", "data.preprocess.spacing=[4.2e-4,1.9e-4,1.9e-4]"),
        ),
    },
)
