"""The generated benchmark: product reviews with star ratings, written by a small grammar. No files, no network.

A review is a few opinions about aspects of a product, and what does not count: stories, and opinions about an earlier
product. The rating is the weighted balance of the opinions that count:

- a word is praise in one domain and a fault in another (an unpredictable plot, an unpredictable kettle);
- a negation turns an opinion over, as does `less ... than`;
- an intensifier doubles an opinion's weight;
- in a contrast the main clause weighs double: `A, but B`, `although A, B`, `B, even though A`.

So neither a bag of words nor what was learned on other domains is enough, and a careful reader is never wrong. All is
decided by `random.Random(text).random()`, whose numbers are the same on every machine and in every version of Python.
"""

from __future__ import annotations

import difflib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from cl_runner.data.task import Example

LABELS = ("1 star", "2 stars", "3 stars")

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Domain:
    """A kind of product: what it is called, and what is praise and what a fault of each aspect."""

    product: str
    aspects: dict[str, tuple[str, str]]  # aspect -> (words of praise, words of fault)


_DOMAINS = {
    "novels": Domain(
        "novel",
        {
            "plot": ("unpredictable dark intense wild tense", "predictable thin light tidy safe"),
            "prose": ("sharp raw dense quiet strange", "smooth flat dry plain soft"),
            "heroine": ("difficult cold stubborn restless fierce", "perfect gentle reliable simple steady"),
            "ending": ("shocking sudden bitter open heavy", "neat sweet warm quick familiar"),
        },
    ),
    "films": Domain(
        "film",
        {
            "story": (
                "unpredictable dark tense twisted explosive",
                "predictable light safe straight familiar",
            ),
            "acting": ("raw fierce intense cold restless", "stiff smooth flat steady gentle"),
            "photography": ("gritty rough wild strange grainy", "clean bright plain neat soft"),
            "soundtrack": ("loud heavy haunting sharp strange", "quiet thin sweet dull mild"),
        },
    ),
    "albums": Domain(
        "album",
        {
            "singing": ("rough raw smoky fragile sharp", "clean smooth polite flat sweet"),
            "rhythm": ("heavy wild restless loud explosive", "steady soft predictable mild stiff"),
            "production": ("gritty dense dark strange warm", "bright neat thin plain safe"),
            "lyric": ("bitter difficult open haunting fierce", "simple light familiar gentle tidy"),
        },
    ),
    "games": Domain(
        "game",
        {
            "strategy": (
                "deep dense difficult unpredictable cruel",
                "simple light shallow predictable straight",
            ),
            "pace": ("tense wild quick restless explosive", "slow steady gentle mild flat"),
            "theme": ("dark strange haunting bitter cold", "sweet familiar plain bright safe"),
        },
    ),
    "toys": Domain(
        "toy",
        {
            "surface": ("smooth soft safe clean warm", "sharp rough raw sticky hard"),
            "sound": ("gentle quiet sweet mild simple", "loud explosive shocking haunting fierce"),
            "frame": ("light sturdy straight plain reliable", "heavy fragile thin loose twisted"),
            "colour": ("bright cheerful familiar neat bold", "dark dull strange gritty cold"),
        },
    ),
    "headphones": Domain(
        "headset",
        {
            "headband": ("light soft flexible steady smooth", "heavy tight stiff rough hard"),
            "bass": ("deep clean warm rich bold", "thin flat dull shallow cold"),
            "connection": (
                "reliable steady quick predictable simple",
                "unpredictable restless difficult slow wild",
            ),
        },
    ),
    "kettles": Domain(
        "kettle",
        {
            "lid": ("tight smooth light cool simple", "loose hot sharp stiff difficult"),
            "boiling": ("quiet quick steady predictable gentle", "explosive wild slow loud unpredictable"),
            "handle": ("cool plain soft sturdy dry", "hot sticky rough wet fragile"),
            "spout": ("neat straight clean tidy safe", "open twisted leaky heavy strange"),
        },
    ),
    "running_shoes": Domain(
        "shoe",
        {
            "sole": ("light flat springy thin flexible", "heavy hard stiff dense deep"),
            "fit": ("snug tight steady perfect familiar", "loose wild sharp raw difficult"),
            "lining": ("dry cool smooth plain soft", "wet hot rough sticky warm"),
        },
    ),
    "software": Domain(
        "program",
        {
            "interface": ("plain simple quiet familiar tidy", "dense dark loud strange restless"),
            "behaviour": (
                "predictable steady safe dull reliable",
                "unpredictable wild shocking sudden explosive",
            ),
            "installation": ("light neat straight smooth gentle", "heavy slow rough twisted bitter"),
        },
    ),
    "mattresses": Domain(
        "mattress",
        {
            "core": ("dense hard heavy cool flat", "thin loose hot shallow light"),
            "suspension": ("quiet stiff strong deep steady", "loud restless wild sharp flexible"),
            "cover": ("dry smooth thick warm plain", "wet rough bitter sticky gritty"),
        },
    ),
    "knives": Domain(
        "knife",
        {
            "blade": ("sharp cold hard thin fierce", "soft dull thick gentle flexible"),
            "grip": ("heavy dense rough dry steady", "light smooth slick loose sticky"),
            "balance": ("perfect predictable quick neat solid", "strange wild slow difficult restless"),
        },
    ),
    "sunscreens": Domain(
        "sunscreen",
        {
            "texture": ("light thin dry smooth clear", "thick heavy sticky dense wet"),
            "scent": ("mild clean faint fresh plain", "sharp bitter sweet fierce loud"),
            "pump": ("steady straight quick reliable tight", "explosive leaky stiff unpredictable open"),
        },
    ),
}
DOMAINS: tuple[str, ...] = tuple(_DOMAINS)

_GENERAL = (
    "excellent wonderful lovely superb great brilliant fantastic perfect",
    "awful terrible poor disappointing dreadful horrible useless bad",
)
# {s}: an aspect, {w}: its word, {p}: the product.
_PLAIN = ("the {s} is {w}", "the {s} feels {w}", "I found the {s} {w}", "the {s} turned out {w}")
_NEGATED = (
    "the {s} is not {w}",
    "the {s} is hardly {w}",
    "the {s} is never {w}",
    "the {s} is anything but {w}",
    "I did not find the {s} {w}",
    "nobody would call the {s} {w}",
)
_STRONG = (
    "the {s} is very {w}",
    "the {s} is extremely {w}",
    "I found the {s} really {w}",
    "the {s} turned out so {w}",
)
_MORE = ("the {s} is more {w} than that of my last {p}",)
_LESS = ("the {s} is less {w} than that of my last {p}",)
_WHOLE = ("this is a truly {w} {p}", "it is a very {w} {p}", "all in all we think it is {w}")
_CONTRASTS = ("{a}, but {b}", "although {a}, {b}", "{b}, even though {a}")  # {b} weighs double
_BOTH = "{a}, and {b}"
_EARLIER = ("my last {p} had a {w} {s}", "on my old {p} the {s} was {w}")
_STORIES = (
    "I bought it on a Tuesday",
    "my sister ordered it for my birthday",
    "it came in a brown box",
    "we have had this {p} since spring",
    "a friend at work told me about it",
    "I read about this {p} in a magazine",
    "my brother has the same {p}",
    "it arrived two days after I paid",
)
P_WHOLE, W_WHOLE, P_EARLIER, P_GENERAL, MOST, P_STORY, P_ASIDE, P_JOIN, P_GENERAL_INC = 0.3, 1, 0.3, 0.4, 3, 0.35, 0.6, 0.9, 0.1
#: (probability, templates, whether the word says the opposite of the opinion, weight) of an opinion about an aspect.
_FORMS = (
    (0.50, _PLAIN, False, 1),
    (0.25, _NEGATED, True, 1),
    (0.15, _STRONG, False, 2),
    (0.05, _MORE, False, 1),
    (0.05, _LESS, True, 1),
)


@dataclass(frozen=True, slots=True)
class Opinion:
    """An opinion that counts, and how it is put."""

    positive: bool
    weight: int
    templates: tuple[str, ...] = _PLAIN
    opposite: bool = False  # the word is of the other polarity: a negation


def stars(opinions: Sequence[Opinion]) -> int:
    """2 if the weighted sum of the opinions is at most half of all weight, otherwise 1 or 3."""
    total = sum(opinion.weight for opinion in opinions)
    balance = sum(opinion.weight if opinion.positive else -opinion.weight for opinion in opinions)
    if 2 * abs(balance) <= total:
        return 2
    return 3 if balance > 0 else 1


def generate(
    domain: str, split: str, count: int, balance: bool, label_noise: float, seed: int
) -> list[Example]:
    """`count` reviews of a domain, the first of them whatever the count.

    Args:
        domain: one of `DOMAINS`.
        split: part of the random seed, so that the splits of a domain differ.
        count: number of reviews.
        balance: equally many reviews of every rating (the remainder goes to ratings that depend on the domain).
        label_noise: probability of a label to be replaced by another one; the texts stay the same.
        seed: of everything random.

    Raises:
        ValueError: the domain is unknown.
    """
    if domain not in _DOMAINS:
        close = difflib.get_close_matches(domain, DOMAINS, n=1)
        near = f" Nearest: {close[0]!r}." if close else ""
        raise ValueError(
            f"there are no generated reviews of {domain!r}; there are: {', '.join(DOMAINS)}.{near}"
        )
    words = random.Random(f"{seed}/{domain}/{split}")
    noise = random.Random(f"{seed}/{domain}/{split}/noise")
    first = DOMAINS.index(domain)
    examples = []
    for number in range(count):
        wanted = (first + number) % len(LABELS) + 1 if balance else None
        text, rating = _review(_DOMAINS[domain], wanted, words)
        label = rating - 1
        if noise.random() < label_noise:
            label = (label + 1 + _below(noise, len(LABELS) - 1)) % len(LABELS)
        examples.append(Example(text, LABELS[label], domain))
    return examples


def vocabulary() -> tuple[str, ...]:
    """The distinct lower-case words and punctuation marks of all reviews, sorted."""
    texts = [*_GENERAL, *_CONTRASTS, _BOTH, *_EARLIER, *_STORIES, "."]
    texts += [*_PLAIN, *_NEGATED, *_STRONG, *_MORE, *_LESS, *_WHOLE]
    for domain in _DOMAINS.values():
        texts.append(domain.product)
        for aspect, words in domain.aspects.items():
            texts += [aspect, *words]
    found: set[str] = set()
    for text in texts:
        found.update(re.findall(r"[a-z]+|[^\w\s]", re.sub(r"{.}", " ", text.lower())))
    return tuple(sorted(found))


def _below(generator: random.Random, end: int) -> int:
    return int(generator.random() * end)


def _pick(generator: random.Random, items: Sequence[Item]) -> Item:
    return items[_below(generator, len(items))]


def _sample(generator: random.Random, items: Sequence[Item], count: int) -> list[Item]:
    """`count` different items in random order."""
    left = list(items)
    return [left.pop(_below(generator, len(left))) for _ in range(count)]


def _opinion(positive: bool, generator: random.Random) -> Opinion:
    draw = generator.random()
    for probability, templates, opposite, weight in _FORMS:
        draw -= probability
        if draw < 0:
            break
    return Opinion(positive, weight, templates, opposite)


def _plan(most: int, share: float, generator: random.Random) -> list[list[Opinion]]:
    """Sentences of one or two opinions about at most `most` aspects, then perhaps one about the whole product.

    Args:
        most: number of aspects.
        share: probability of an opinion to be positive.
    """
    sentences: list[list[Opinion]] = []
    for _ in range(2 + _below(generator, min(most, MOST) - 1)):
        opinion = _opinion(generator.random() < share, generator)
        joins = sentences and len(sentences[-1]) == 1 and opinion.weight == sentences[-1][0].weight == 1
        if joins and generator.random() < 0.6:
            first = sentences[-1][0]
            weight = 2 if first.positive != opinion.positive else 1
            sentences[-1].append(Opinion(opinion.positive, weight, opinion.templates, opinion.opposite))
        else:
            sentences.append([opinion])
    if generator.random() < P_WHOLE:
        sentences.append([Opinion(generator.random() < share, W_WHOLE, _WHOLE)])
    return sentences


def _review(domain: Domain, wanted: int | None, generator: random.Random) -> tuple[str, int]:
    """A text and its stars, which are `wanted` unless that is None."""
    while True:
        share = generator.random() if wanted is None else (wanted - 1) / (len(LABELS) - 1)
        plan = _plan(len(domain.aspects), share, generator)
        rating = stars([opinion for sentence in plan for opinion in sentence])
        if wanted in (None, rating):
            break
    aspects = _sample(generator, list(domain.aspects), len(domain.aspects))
    sentences = []
    for opinions in plan:
        clauses = []
        for opinion in opinions:
            if opinion.templates is _WHOLE:
                clauses.append(_clause(domain, "", _GENERAL, opinion, generator))
            else:
                aspect = aspects.pop()
                words = _GENERAL if generator.random() < (P_GENERAL if list(_DOMAINS.values()).index(domain)<6 else P_GENERAL_INC) else domain.aspects[aspect]
                clauses.append(_clause(domain, aspect, words, opinion, generator))
        if len(clauses) == 2:
            template = _pick(generator, _CONTRASTS) if opinions[0].positive != opinions[1].positive else _BOTH
            sentences.append(template.format(a=clauses[0], b=clauses[1]))
        else:
            sentences += clauses
    draw = generator.random()
    if draw < P_ASIDE:
        place = _below(generator, len(sentences))
        if draw < P_STORY:
            aside = _pick(generator, _STORIES).format(p=domain.product)
        else:
            aspect = _pick(generator, list(domain.aspects))
            word = _pick(generator, _pick(generator, domain.aspects[aspect]).split())
            aside = _pick(generator, _EARLIER).format(p=domain.product, s=aspect, w=word)
        if len(plan[place]) == 1 and generator.random() < P_JOIN:
            sentences[place] = _pick(generator, _CONTRASTS[:2]).format(a=aside, b=sentences[place])
        else:
            sentences.insert(place, aside)
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences), rating


def _clause(
    domain: Domain, aspect: str, words: tuple[str, str], opinion: Opinion, generator: random.Random
) -> str:
    word = _pick(generator, words[opinion.positive == opinion.opposite].split())
    return _pick(generator, opinion.templates).format(s=aspect, w=word, p=domain.product)
