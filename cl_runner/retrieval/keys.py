"""Dynamic task-related knowledge retrieval (DTKR): keys that learn where a task's texts lie. SLM (ICLR 2024), 3.2.

A key slot is one vector of c numbers in each of g groups; queries of g * c numbers are cut in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from cl_runner.layers.values import Retrieved

Aggregate = Literal["mean_sim", "per_group"]
Weighting = Literal["normalised_cos", "uniform", "softmax"]
#: Added to the sum that weights are divided by.
TINY = 1e-9


def grouped(queries: Tensor, groups: int) -> Tensor:
    """[M, g * c] as unit vectors [g, M, c]; a cosine is then a product."""
    return functional.normalize(queries.view(len(queries), groups, -1), dim=-1).transpose(0, 1).contiguous()


def new_keys(groups: int, slots: int, width: int, generator: torch.Generator) -> Tensor:
    """[g, slots, width], in each group orthonormal rows; more than `width` rows are so in parts of `width`."""
    parts = []
    for _ in range(groups):
        rows = []
        for start in range(0, slots, width):
            part = torch.empty(min(width, slots - start), width)
            rows.append(nn.init.orthogonal_(part, generator=generator))
        parts.append(torch.cat(rows))
    return torch.stack(parts)


def key_schedule(texts: int, batch_size: int, epochs: int, decay_every: int, steps: int) -> tuple[int, int]:
    """Epochs of a task's keys, and those after which their rate falls: more of both where its texts are few.

    An orthonormal key is turned towards its texts by some thousand steps of 1e-3, whatever the number of texts; the
    release's three epochs are 90,000 steps of its largest task, and 200 of 280 texts.

    Args:
        texts: of the task.
        steps: the least that are made, in whole epochs; 0 = as many as `epochs` are. No epochs stay none.
    """
    most = max(epochs, -(-steps // max(1, -(-texts // batch_size)))) if epochs else 0
    return most, max(1, round(decay_every * most / epochs)) if epochs else decay_every


def unmoved(before: Tensor, after: Tensor) -> int:
    """How many of the keys [g, n, c] are what they were: no text retrieved them."""
    return int((before == after).all(-1).sum())


def train_keys(
    keys: Tensor,
    queries: Tensor,
    *,
    top_k: int,
    mask: float,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    decay_every: int,
    clip: float,
    generator: torch.Generator,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Pull, for every text and group, the `top_k` nearest keys towards the text's query (eq. 5).

    Which keys are nearest is decided without those that a Bernoulli draw per text, group and slot masks (eq. 7), so
    that all slots learn. Adam; a key that no text of a batch retrieved does not move in its step.

    Args:
        keys: [g, n, c] to begin with.
        queries: [M, g * c] of the task's texts, which need no labels.
        mask: probability that a key is masked.
        decay_every: epochs after which the learning rate falls to a tenth.
        clip: greatest norm of a step's gradient.

    Returns:
        The trained keys [g, n, c].
    """
    groups, slots, _ = keys.shape
    units = grouped(queries, groups)  # [g, M, c]
    learned = nn.Parameter(keys.clone())
    optimizer = torch.optim.Adam([learned], lr=learning_rate)
    steps_of_epoch = -(-len(queries) // batch_size)
    count = min(top_k, slots)
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * 0.1 ** (epoch // decay_every)
        order = torch.randperm(len(queries), generator=generator)
        for number, chosen in enumerate(order.split(batch_size)):
            cosines = units[:, chosen] @ unit_keys(learned).transpose(1, 2)  # [g, B, n]
            hidden = torch.rand(cosines.shape, generator=generator) < mask
            # Below every cosine; if all are masked, the order of the slots decides.
            nearest = cosines.detach().masked_fill(hidden, -100.0).topk(count, dim=-1).indices
            optimizer.zero_grad()
            (-cosines.gather(-1, nearest).mean()).backward()
            nn.utils.clip_grad_norm_([learned], clip)
            before = learned.detach().clone()
            optimizer.step()
            moved = torch.zeros(groups, slots, dtype=torch.bool).scatter_(1, nearest.flatten(1), True)
            with torch.no_grad():
                learned.copy_(torch.where(moved[..., None], learned, before))
            on_step(epoch * steps_of_epoch + number + 1, epochs * steps_of_epoch)
    return learned.detach()


def unit_keys(keys: Tensor) -> Tensor:
    """Keys [g, N, c] as `similarities` takes them: each of length 1."""
    return functional.normalize(keys, dim=-1)


def similarities(queries: Tensor, units: Tensor) -> Tensor:
    """Cosines [g, B, N] of queries [B, g * c] and `unit_keys` [g, N, c], in each group by itself."""
    with torch.autocast(queries.device.type, enabled=False):  # which slots are nearest is no matter of precision
        return grouped(queries.to(units.dtype), units.shape[0]) @ units.transpose(1, 2)


def retrieve(
    cosines: Tensor,
    top_k: int,
    *,
    aggregate: Aggregate = "mean_sim",
    weighting: Weighting = "normalised_cos",
    temperature: float = 0.1,
    whole_batch: bool = False,
    visible: Tensor | None = None,
) -> Retrieved:
    """Which slots' values a text is given, and their weights (eq. 4).

    Args:
        cosines: [g, B, N], see `similarities`.
        aggregate: `mean_sim`: the slots of the greatest mean cosine over the groups; `per_group`: the nearest slots of
            each group, a slot counts by the sum of its positive cosines in the groups that chose it.
        weighting: `normalised_cos`: cosines, negative ones taken as 0, divided by their sum; `uniform`: the same for
            all; `softmax`: the first, of probabilities in the place of cosines. They are, in each group, the softmax
            over all N slots of the cosines divided by `temperature`, be those `visible` or not (release).
        whole_batch: one retrieval by the mean over the batch, as the release does; its texts must be of one task.
        visible: [B, N], false where a text must not see a slot.
    """
    if weighting == "softmax":
        cosines = (cosines / temperature).softmax(-1)
    if whole_batch:
        cosines = cosines.mean(1, keepdim=True).expand_as(cosines)
    if visible is not None:
        cosines = cosines.masked_fill(~visible, -100.0)
    seen = cosines.shape[-1] if visible is None else int(visible.sum(-1).min())
    if aggregate == "mean_sim":
        scores, slots = cosines.mean(0).topk(min(top_k, seen), dim=-1)
    else:
        near = cosines.topk(min(top_k, seen), dim=-1)
        votes = torch.zeros_like(cosines).scatter_(-1, near.indices, near.values.clamp(min=TINY)).sum(0)
        scores, slots = votes.topk(min(cosines.shape[0] * top_k, seen), dim=-1)
    if weighting == "uniform":
        weights = (scores > 0).float() if aggregate == "per_group" else torch.ones_like(scores)
    else:
        weights = scores.clamp(min=0)
    return Retrieved(slots, weights / (weights.sum(-1, keepdim=True) + TINY))


def own_weight(found: Retrieved, first: Tensor, end: Tensor) -> Tensor:
    """How much of what each text was given is of slots in [first, end), both [B]: from 0 to 1, [B]."""
    own = (found.slots >= first[:, None]) & (found.slots < end[:, None])
    return (found.weights * own).sum(-1)


def hits(cosines: Tensor, top_k: int, first: int, end: int) -> Tensor:
    """Whether more than half of the slots that the groups retrieve lie in [first, end): eq. 13, by text [B].

    Args:
        cosines: [g, B, N], see `similarities`.
    """
    nearest = cosines.topk(min(top_k, cosines.shape[-1]), dim=-1).indices
    return ((nearest >= first) & (nearest < end)).float().mean((0, 2)) > 0.5
