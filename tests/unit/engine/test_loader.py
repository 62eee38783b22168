from itertools import islice

import pytest

from voxelry.data.loader import ClosedPasses, EndlessOrder, Loading, evaluation_loader, pass_loader


def take(order, count):
    return list(islice(iter(order), count))


def test_every_pass_is_a_permutation_and_no_two_are_alike():
    places = take(EndlessOrder(50, seed=3), 150)
    passes = [[place - 50 * number for place in places[50 * number : 50 * number + 50]] for number in range(3)]
    assert all(sorted(order) == list(range(50)) for order in passes)
    assert passes[0] != passes[1] != passes[2]


def test_a_place_tells_its_pass():
    assert [place // 5 for place in take(EndlessOrder(5, seed=0), 12)] == [0] * 5 + [1] * 5 + [2] * 2


@pytest.mark.parametrize("start", [0, 3, 7, 20])
def test_starting_late_is_the_tail_of_starting_early(start):
    assert take(EndlessOrder(7, seed=1, start=start), 9) == take(EndlessOrder(7, seed=1), start + 9)[start:]


def test_processes_share_the_order_out():
    whole = take(EndlessOrder(7, seed=1), 12)
    parts = [take(EndlessOrder(7, seed=1, rank=rank, world_size=3), 4) for rank in range(3)]
    assert [place for group in zip(*parts, strict=True) for place in group] == whole


def test_the_seed_decides():
    assert take(EndlessOrder(30, seed=0), 30) != take(EndlessOrder(30, seed=1), 30)


@pytest.mark.parametrize(("count", "parts"), [(5, [[0, 2, 4], [1, 3]]), (2, [[0], [1], [0]]), (0, [[], []])])
def test_processes_share_an_evaluation_out_and_none_is_left_without(count, parts):
    world_size = len(parts)
    loaders = [evaluation_loader(range(count), Loading(rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert [list(loader.sampler) for loader in loaders] == parts


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_closed_pass_holds_every_sample_and_none_of_the_next(world_size):
    taken = [0]
    ranks = [
        ClosedPasses(7, batch_size=2, seed=1, batches_taken=lambda: taken[0], rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    batches = [list(passes) for passes in ranks]
    assert all(len(own) == len(passes) for own, passes in zip(batches, ranks, strict=True))
    assert {place for own in batches for batch in own for place in batch} == set(range(7))
    taken[0] = len(ranks[0]) + 1
    rest = list(ranks[0])
    taken[0] -= 1
    second = list(ranks[0])
    assert rest == second[1:]
    assert all(7 <= place < 14 for batch in second for place in batch)


def test_a_loader_of_single_passes_goes_through_the_same_passes():
    class Numbers:
        def __len__(self):
            return 7

        def sample(self, index, epoch):
            return 7 * epoch + index

        collate = staticmethod(list)

    loader = pass_loader(Numbers(), Loading(batch_size=3, num_workers=0), seed=1)
    passes = [list(loader) for _ in range(3)]
    assert [[len(batch) for batch in batches] for batches in passes] == [[3, 3, 1]] * 3
    assert [place for batches in passes for batch in batches for place in batch] == take(EndlessOrder(7, seed=1), 21)
