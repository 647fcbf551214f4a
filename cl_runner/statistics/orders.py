"""Balanced orders of tasks: every task stands as often at every place, and follows every other one as often.

Williams (1949): an even number n of tasks needs n orders, an odd one 2 n. The first order is the one that is given.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable, Sequence


def of_balanced(number: int | None) -> str:
    """What a balanced order is called behind the name of the order that it is made of; nothing for that one itself."""
    return "" if number is None else f"+order{number}"


def balanced_count(tasks: int) -> int:
    """How many orders a balanced design of so many tasks has."""
    return tasks if tasks % 2 == 0 or tasks == 1 else 2 * tasks


def balanced_order(tasks: int, number: int) -> list[int]:
    """The places, in the given order, of the tasks of a balanced design's order `number` (from 0), in sequence."""
    assert 0 <= number < balanced_count(tasks), f"order {number} of {balanced_count(tasks)}"
    # 0, 1, n - 1, 2, n - 2, ...: neighbours differ by every amount once, so that in its n shifts every pair follows
    # on each other; of an odd n by half of the amounts twice, which the reversed order makes good.
    zigzag = [(step + 1) // 2 if step % 2 else (tasks - step // 2) % tasks for step in range(tasks)]
    place = {label: position for position, label in enumerate(zigzag)}
    shift, reverse = number % tasks, number >= tasks
    order = [place[(label + shift) % tasks] for label in zigzag]
    return order[::-1] if reverse else order


def arrangement(tasks: int, number: int | None, fixed: int = 0) -> list[int]:
    """The places in the given order of all tasks, of which the first `fixed` stay and the others are balanced.

    Args:
        number: of the balanced order; None = as they are given.
    """
    if number is None:
        return list(range(tasks))
    return [*range(fixed), *(fixed + place for place in balanced_order(tasks - fixed, number))]


def unevenness(orders: Sequence[Sequence[Hashable]]) -> tuple[int, int]:
    """How uneven orders of the same tasks are: 0, 0 for a balanced design.

    Returns:
        Of how often each task stands at each place, and of how often each one follows directly on each other one, the
        largest number minus the smallest.
    """
    tasks = orders[0]
    places = Counter((task, place) for order in orders for place, task in enumerate(order))
    pairs = Counter(pair for order in orders for pair in itertools.pairwise(order))
    at = [places[task, place] for task in tasks for place in range(len(tasks))]
    follow = [pairs[one, other] for one in tasks for other in tasks if one != other] or [0]
    return max(at) - min(at), max(follow) - min(follow)
