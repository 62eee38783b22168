"""The original's mesh decoder, its extraction of meshes, and FlexiCubes."""

import pytest
import torch

from voxelry.core.errors import CheckpointError, SettingError
from voxelry.interop import from_reference
from voxelry.interop.weights.reference import source_of
from voxelry.interop.weights.sam3d.mesh_decoder import DECODER
from voxelry.models.sam3d.mesh_decoder import MeshDecoder
from voxelry.models.sam3d.surface import decode_surface
from voxelry.nn.sparse import SparseTensor
from voxelry.ops.flexicubes import CORNERS, CubeWeights, flexicubes

TINY = {"latent_channels": 3, "channels": 16, "depth": 2, "heads": 2, "window": 4, "widths": (8, 4), "groups": 2}

# two items that touch across an edge, in mixed order
SPREAD = torch.tensor(
    [
        [0, 1, 2, 3],
        [1, 1, 2, 3],
        [0, 1, 2, 4],
        [1, 0, 0, 0],
        [0, 2, 3, 4],
        [1, 4, 4, 4],
        [1, 4, 4, 3],
        [0, 0, 0, 0],
        [0, 4, 2, 3],
    ]
)


def cells(items=2, channels=3):
    chosen = (torch.rand(items, 5, 5, 5) < 0.2).nonzero()
    return SparseTensor.of(torch.randn(len(chosen), channels), chosen[torch.randperm(len(chosen))])


def same_mesh(found, expected):
    """Whether vertices and triangles are the same, in any order; gives the place of each of ours in theirs."""
    (vertices, faces), (known, known_faces) = found, expected
    assert vertices.shape == known.shape
    assert faces.shape == known_faces.shape
    away, place = torch.cdist(vertices.double(), known.double(), compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
    assert away.max() < 1e-4 * known.abs().max()
    assert len(place.unique()) == len(known)

    def turned(triangles):
        first = triangles.argmin(dim=1, keepdim=True)
        return {tuple(each) for each in triangles.gather(1, (first + torch.arange(3)) % 3).tolist()}

    assert turned(place[faces]) == turned(known_faces)
    return place


def test_decoder(reference, assert_close):
    case, weights, tensors = reference("sam3d_mesh_decoder")
    network = from_reference("sam3d-mesh-decoder", case, weights)
    x = SparseTensor.of(tensors["input.feats"], tensors["input.coords"])
    with torch.no_grad():
        assert_close(network.transform(x).features, tensors["output.transformer.feats"])
        assert_close(network.up[0](network.transform(x)).features, tensors["output.upsample0.feats"])
        found = network(x)
    assert torch.equal(found.cells.coords, tensors["output.coords"].long())
    assert_close(found.features, tensors["output.feats"])
    assert_close(network(x).features, tensors["output.feats"])  # with gradients, nothing in place
    assert network.surface_grid == 32


@pytest.mark.parametrize("channels", [53, 101])
@pytest.mark.parametrize("training", [False, True])
def test_extraction(reference, assert_close, channels, training):
    _, _, tensors = reference("sam3d_mesh_extract")
    found = decode_surface(tensors["input.coords"][:, 1:], tensors["input.feats"][:, :channels], 8, training=training)
    stem = f"output.{'plain' if channels == 53 else 'color'}.{'train.' if training else ''}"
    known = tensors[f"{stem}vertices"], tensors[f"{stem}faces"]
    place = same_mesh((found.vertices, found.faces), known)
    if channels > 53:
        assert_close(found.colours, tensors[f"{stem}vertex_attrs"][place])
    if training:
        assert_close(found.regulariser, tensors[f"{stem}reg_loss"])
        assert_close(found.points, tensors[f"{stem}tsdf_v"])
        assert_close(found.sdf, tensors[f"{stem}tsdf_s"])


@pytest.mark.parametrize("kind", ["smooth", "rough"])
def test_flexicubes(reference, assert_close, kind):
    case, _, tensors = reference("sam3d_flexicubes")
    side = case["resolution"]
    row = torch.arange(side**3)
    places = torch.stack((row // side**2, row // side % side, row % side), dim=1)
    names = ("verts", f"sdf_{kind}", "beta", "alpha", "gamma")
    points, sdf, *weights = (tensors[f"input.{name}"].requires_grad_() for name in names)
    cubes, colours = tensors["input.cube_idx"], tensors["input.colors"]
    found = flexicubes(points, sdf, cubes, places, CubeWeights(*weights), colours=colours)
    stem = f"output.{kind}."
    place = same_mesh((found.vertices, found.faces), (tensors[f"{stem}vertices"], tensors[f"{stem}faces"]))
    assert_close(found.colours, tensors[f"{stem}vertex_colors"][place])
    assert_close(found.deviation.sort().values, tensors[f"{stem}l_dev"].sort().values)
    found.vertices.square().sum().backward()
    for name, each in zip(("verts", "sdf", "beta", "alpha"), (points, sdf, *weights), strict=False):
        assert_close(each.grad, tensors[f"{stem}grad.{name}"])
    each = flexicubes(points, sdf, cubes, places, CubeWeights(*weights), colours=colours, centred=True)
    place = same_mesh((each.vertices, each.faces), (tensors[f"{stem}train.vertices"], tensors[f"{stem}train.faces"]))
    assert_close(each.colours, tensors[f"{stem}train.vertex_colors"][place])
    plain = flexicubes(points, sdf, cubes, places)
    known = tensors[f"{stem}no_weights.vertices"], tensors[f"{stem}no_weights.faces"]
    same_mesh((plain.vertices, plain.faces), known)


@pytest.mark.parametrize("change", [{}, {"window": None, "normed": True}, {"colours": True}])
def test_weights_go_out_and_come_back(scrambled, change):
    network = scrambled(MeshDecoder(**{**TINY, **change}))
    exported = DECODER.export(network)
    assert exported["upsample.1.skip_connection.conv.weight"].shape == (4, 1, 1, 1, 8)
    assert source_of(exported) == "sam3d-mesh-decoder"
    case = {"num_heads": 2, "window_size": 4, "attn_mode": "swin" if network.settings()["window"] else "full"}
    again = from_reference("sam3d-mesh-decoder", {**case, "num_groups": 2}, exported)
    x = cells()
    assert torch.equal(again(x).features, network(x).features)
    assert network(x).features.shape == (64 * len(x.cells), 101 if "colours" in change else 53)


def test_items_do_not_mix_and_gradients_are_those_of_the_lean_way(scrambled):
    network, x = scrambled(MeshDecoder(**TINY)), SparseTensor.of(torch.randn(9, 3), SPREAD)
    with torch.no_grad():
        lean = network(x)
    whole = network(x)
    assert torch.equal(lean.features, whole.features)
    second = x.cells.coords[:, 0] == 1
    coords = x.cells.coords[second].clone()
    coords[:, 0] = 0
    alone = network(SparseTensor.of(x.features[second], coords))
    expected = whole.features.unflatten(0, (-1, 64))[second].flatten(0, 1)
    torch.testing.assert_close(alone.features, expected, atol=1e-5, rtol=1e-4)
    grads = []
    for again in (False, True):
        torch.manual_seed(1)
        network = scrambled(MeshDecoder(**TINY, checkpointing=again))
        network(x).features.square().sum().backward()
        grads.append(network.enter.weight.grad)
    torch.testing.assert_close(*grads)


def test_a_ball_of_sparse_cells_is_the_ball_of_the_whole_grid():
    grid, radius = 16, 0.3
    places = torch.stack(torch.meshgrid(*[torch.arange(grid)] * 3, indexing="ij"), dim=-1).reshape(-1, 3)
    corners = (places[:, None] + CORNERS) / grid - 0.5
    sdf = corners.norm(dim=-1) - radius
    features = torch.zeros(len(places), 53)
    features[:, :8] = sdf + 1 / grid
    near = (sdf < 1.5 / grid).any(dim=1)
    whole, some = decode_surface(places, features, grid), decode_surface(places[near], features[near], grid)
    same_mesh((some.vertices, some.faces), (whole.vertices, whole.faces))
    assert (some.vertices.norm(dim=1) - radius).abs().max() < 0.01


def test_a_surface_is_closed_where_cells_end():
    features = torch.zeros(1, 53)
    features[:, :8] = -1.0
    found = decode_surface(torch.tensor([[3, 3, 3]]), features, 8)
    assert len(found.faces) == 2 * 24  # a quadrilateral for each edge that leaves the cell's eight corners
    outside = decode_surface(torch.tensor([[3, 3, 3]]), torch.ones(1, 53), 8)
    assert len(outside.vertices) == 0
    assert outside.regulariser > 0


def test_faults(scrambled):
    with pytest.raises(SettingError, match="53 or 101"):
        decode_surface(torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 54), 8)
    with pytest.raises(SettingError, match="from 0 to 7"):
        decode_surface(torch.full((1, 3), 8), torch.zeros(1, 53), 8)
    with pytest.raises(SettingError, match="window"):
        MeshDecoder(**{**TINY, "window": 0})
    exported = DECODER.export(scrambled(MeshDecoder(**TINY)))
    with pytest.raises(CheckpointError, match="attn_mode"):
        from_reference("sam3d-mesh-decoder", {"attn_mode": "shift_window"}, exported)
