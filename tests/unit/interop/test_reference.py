"""Which project weights come from, by the names of their tensors."""

import pytest

from voxelry.core.errors import SettingError
from voxelry.interop import from_reference, infer_case
from voxelry.interop.weights.reference import SOURCES, source_of


@pytest.mark.parametrize(
    ("names", "source"),
    [
        (["module.init_conv.weight", "final_conv.weight"], "diffusion-xray"),
        (["conv_in.weight", "temb.dense.0.weight"], "fast-ddpm"),
        (["conv1.weight", "layer1.0.conv1.weight", "fc.weight"], "torchvision-resnet-fpn"),
        (["body.layer1.0.conv1.weight", "fpn.inner_blocks.0.0.weight"], "torchvision-resnet-fpn"),
        (["backbone.body.layer1.0.conv1.weight", "rpn.head.cls_logits.weight"], "torchvision-maskrcnn"),
        (["blocks.0.attn.qkv.weight", "blocks.2.proj.weight"], "hiera"),
        (["net.blocks.0.attn.qkv.weight", "simfp_2.0.weight"], "detectron2-vitdet"),
        (["encoder.weight"], None),
        ([], None),
    ],
)
def test_weights_tell_where_they_come_from(names, source):
    assert source_of(names) == source


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_can_be_rebuilt(name):
    module = SOURCES[name].load()
    assert callable(module.rebuild)
    assert callable(module.infer)


def test_unknown_source():
    for ask in (lambda: from_reference("monai", {}, {}), lambda: infer_case("monai", {})):
        with pytest.raises(SettingError, match="source: expected one of diffusion-xray, fast-ddpm"):
            ask()
