"""What lies on faces, joined and numbered: nothing but faces is looked at."""

import numpy as np
import pytest

from spoco_zoo.blocks import NOTHING, OPEN, Meeting
from spoco_zoo.joining import Joining, Numbering
from spoco_zoo.recipe import Consistency, Recipe


def pairs(*given):
    return np.array(given, np.int64).reshape(-1, 2)


def block(groups, sizes, firsts, touching=(), count=None, **more):
    """What a block says of its bound pieces: their groups, sizes and first pixels."""
    found = {
        "groups": np.array(max(groups, default=-1) + 1 if count is None else count),
        "bound_group": np.array(groups, np.int64),
        "bound_size": np.array(sizes, np.int64),
        "bound_first": np.array(firsts, np.int64),
        "touching": pairs(*touching),
    }
    return found | more


def join(recipe, blocks, meetings):
    joining = Joining(recipe)
    for found in blocks:
        joining.add_block(found)
    for number, other, links, contacts in meetings:
        joining.add_meeting(number, other, Meeting(pairs(*links), pairs(*contacts)))
    return [keys.tolist() for keys in joining.finish()]


def test_pieces_of_linked_groups_that_touch_are_one():
    blocks = [block([0, 1], [5, 9], [10, 12]), block([0], [7], [40])]
    keys = join(Recipe(min_size=0), blocks, [(0, 1, [(1, 0)], [(1, 0)])])
    assert keys == [[10, 12], [12]]


def test_pieces_that_touch_without_a_link_are_two():
    blocks = [block([0], [5], [10]), block([0], [7], [40])]
    assert join(Recipe(min_size=0), blocks, [(0, 1, [], [(0, 0)])]) == [[10], [40]]


def test_pieces_with_a_link_that_do_not_touch_are_two():
    blocks = [block([0], [5], [10]), block([0], [7], [40])]
    assert join(Recipe(min_size=0), blocks, [(0, 1, [(0, 0)], [])]) == [[10], [40]]


def test_a_link_elsewhere_joins_pieces_that_touch_within_a_block():
    blocks = [block([0, 1], [5, 6], [10, 3], touching=[(0, 1)]), block([0], [7], [40])]
    meetings = [(0, 1, [(0, 0), (1, 0)], [])]
    assert join(Recipe(min_size=0), blocks, meetings) == [[3, 3], [40]]


def test_size_counts_over_all_blocks():
    blocks = [block([0, 1], [5, 4], [10, 12]), block([0, 1], [5, 9], [40, 41])]
    meetings = [(0, 1, [(0, 0)], [(0, 0)])]
    assert join(Recipe(min_size=10), blocks, meetings) == [[10, OPEN], [10, OPEN]]


def test_what_f_and_g_disagree_on_is_nobodys_whichever_block_says_so():
    recipe = Recipe(clustering=Consistency(iou_threshold=0.5), min_size=0)

    def told(*agreement):
        values = np.array(agreement, np.float32)[:, None]
        return {
            "agreement": values,
            "agreement_group": np.arange(len(values)),
            "agreement_size": np.full(len(values), 10),
        }

    blocks = [
        block([0, 1], [10, 10], [1, 2], **told(0.9, 0.4)),
        block([0, 1], [10, 10], [30, 31], **told(0.8, 0.1)),
    ]
    meetings = [(0, 1, [(0, 0), (1, 1)], [(0, 0), (1, 1)])]
    assert join(recipe, blocks, meetings) == [[1, NOTHING], [1, NOTHING]]


def test_nothing_on_faces_is_nothing():
    assert join(Recipe(), [block([], [], []), block([], [], [])], [(0, 1, [], [])]) == [[], []]


@pytest.mark.parametrize("seed", range(3))
def test_meetings_in_any_order_give_the_same_keys(seed):
    random = np.random.default_rng(seed)
    count, per_block = 12, 6
    blocks = [
        block(
            list(range(per_block)),
            random.integers(1, 20, per_block),
            1000 * n + random.permutation(per_block),
            touching=[(0, 1), (3, 4)],
        )
        for n in range(count)
    ]
    meetings = []
    for n in range(count - 1):
        links = random.integers(0, per_block, (3, 2))
        meetings.append((n, n + 1, links, links[:2]))
    first = join(Recipe(min_size=15), blocks, meetings)
    again = [meetings[n] for n in random.permutation(len(meetings))]
    assert join(Recipe(min_size=15), blocks, again) == first
    assert any(key == OPEN for keys in first for key in keys)


def filled(keys, firsts, shared):
    return {
        "keys": np.array(keys, np.int64),
        "firsts": np.array(firsts, np.int64),
        "is_shared": np.array(shared, bool),
    }


def test_numbers_follow_first_pixels_whatever_block_comes_first(tmp_path):
    blocks = [
        filled([4, 9], [9, 4], [True, False]),
        filled([4, 50], [3, 60], [True, True]),
        filled([50, 70], [51, 70], [True, False]),
    ]
    for order in ([0, 1, 2], [2, 0, 1]):
        numbering = Numbering(tmp_path)
        for number in order:
            numbering.add_block(blocks[number])
        numbers = numbering.finish()
        assert numbers.total == 4
        told = [numbers.of_block(found).tolist() for found in blocks]
        # 4 begins at 3 of the second block, 9 at 4, 50 at 51 of the third, 70 at 70
        assert told == [[0, 1, 2], [0, 1, 3], [0, 3, 4]]


def test_without_instances_there_are_no_numbers(tmp_path):
    numbering = Numbering(tmp_path)
    numbering.add_block(filled([], [], []))
    numbers = numbering.finish()
    assert numbers.total == 0
    assert numbers.of_block(filled([], [], [])).tolist() == [0]


def test_memory_grows_with_what_is_on_faces_alone(tmp_path):
    numbering = Numbering(tmp_path)
    for n in range(20):
        inside = filled([n], [n * 1000], [True])
        many = filled(range(1000), n * 1000 + 1 + np.arange(1000) % 999, [False] * 1000)
        numbering.add_block({k: np.concatenate([inside[k], many[k]]) for k in inside})
    numbers = numbering.finish()
    assert numbers.total == 20 * 1001
    assert len(numbers.keys) == len(numbers.firsts) == 20
    assert numbers.path.stat().st_size == 8 * numbers.total
