"""The generated benchmark: product reviews with star ratings from a small grammar. No files, no network.

A review holds two or three opinions about aspects of a product, and perhaps what does not count: a story, or
an opinion about an earlier product. Its rating is the weighted balance of the opinions that count:

- a word is praise in one domain and a fault in another (an unpredictable plot, an unpredictable kettle);
- a negation turns an opinion over, as does `less ... than`;
- an intensifier doubles an opinion's weight;
- in a contrast the main clause weighs double: `A, but B`, `although A, B`, `B, even though A`.

Neither a bag of words nor what was learned on other domains is enough, and a careful reader is never wrong.
The later domains (from kettles on) praise what most of the first six blame, and use few words that mean the
same everywhere. All is decided by `random.Random(text).random()`: a review is the same on every machine and
in every version of Python.

The plain grammar leaves the words alone: two short sentences, each with a plain opinion, both praise or both
faults. A few texts of a domain teach its words, and what they teach is wrong in others.
"""

from __future__ import annotations

import dataclasses
import difflib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from cl_runner.data.example import Example

LABELS = ("1 star", "2 stars", "3 stars")
Grammar = Literal["full", "plain"]
#: The labels of each grammar's reviews.
RATINGS: dict[Grammar, tuple[str, ...]] = {"full": LABELS, "plain": (LABELS[0], LABELS[2])}

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Domain:
    """A kind of product: what it is called, and what is praise and what a fault of each aspect."""

    product: str
    aspects: dict[str, tuple[str, str]]  # aspect -> (words of praise, words of fault)
    general: float = 0.5  # share of opinions about aspects in words that mean the same everywhere


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
    "plays": Domain(
        "play",
        {
            "dialogue": ("sharp fierce raw tense bitter", "polite smooth flat gentle tidy"),
            "staging": ("wild strange dark explosive bold", "safe plain neat familiar bright"),
            "music": ("loud haunting restless heavy sudden", "quiet mild sweet soft light"),
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
    "kettles": Domain(
        "kettle",
        {
            "lid": ("tight smooth light cool simple", "loose hot sharp stiff difficult"),
            "boiling": ("quiet quick steady predictable gentle", "explosive wild slow loud unpredictable"),
            "handle": ("cool plain soft sturdy dry", "hot sticky rough wet fragile"),
            "spout": ("neat straight clean tidy safe", "open twisted leaky heavy strange"),
        },
        general=0.0,
    ),
    "running_shoes": Domain(
        "shoe",
        {
            "sole": ("light flat springy thin flexible", "heavy hard stiff dense deep"),
            "fit": ("snug tight steady perfect familiar", "loose wild sharp raw difficult"),
            "lining": ("dry cool smooth plain soft", "wet hot rough sticky warm"),
        },
        general=0.0,
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
        general=0.0,
    ),
    "mattresses": Domain(
        "mattress",
        {
            "core": ("dense hard heavy cool flat", "thin loose hot shallow light"),
            "suspension": ("quiet stiff strong deep steady", "loud restless wild sharp flexible"),
            "cover": ("dry smooth thick warm plain", "wet rough bitter sticky gritty"),
        },
        general=0.0,
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
        general=0.0,
    ),
    "knives": Domain(
        "knife",
        {
            "blade": ("sharp cold hard thin fierce", "soft dull thick gentle flexible"),
            "grip": ("heavy dense rough dry steady", "light smooth slick loose sticky"),
            "balance": ("perfect predictable quick neat solid", "strange wild slow difficult restless"),
        },
        general=0.0,
    ),
    "sunscreens": Domain(
        "sunscreen",
        {
            "texture": ("light thin dry smooth clear", "thick heavy sticky dense wet"),
            "scent": ("mild clean faint fresh plain", "sharp bitter sweet fierce loud"),
            "pump": ("steady straight quick reliable tight", "explosive leaky stiff unpredictable open"),
        },
        general=0.0,
    ),
}
DOMAINS: tuple[str, ...] = tuple(_DOMAINS)

_GENERAL = (
    "excellent wonderful lovely superb great brilliant fantastic splendid",
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
_SHARES = (0.15, 0.5, 0.85)  # of positive opinions in drafts of reviews with 1, 2, 3 stars
_WHOLE_PRODUCT = 0.3  # probability of one more opinion, about the whole product
_ASIDE = 0.5  # probability that a review of three opinions or more also holds what does not count
_STORY = 0.6  # probability that this is a story
_JOINED = 0.6  # probability of two neighbours, two opinions or an aside and one, to become one sentence
#: How an opinion about an aspect is put: probability, templates, whether its word says the opposite, weight.
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
    domain: str, split: str, count: int, balance: bool, label_noise: float, seed: int, grammar: Grammar = "full"
) -> list[Example]:
    """`count` reviews of a domain, the first of them whatever the count.

    Args:
        domain: one of `DOMAINS`.
        split: part of the random seed, so that the splits of a domain differ.
        count: number of reviews.
        balance: equally many reviews of every rating (which get one more depends on the domain).
        label_noise: probability of a label to be replaced by another one; the texts stay the same.
        seed: of everything random.
        grammar: full, or plain: two plain opinions that agree.

    Raises:
        ValueError: the domain is unknown.
    """
    if domain not in _DOMAINS:
        close = difflib.get_close_matches(domain, DOMAINS, n=1)
        near = f" Nearest: {close[0]!r}." if close else ""
        raise ValueError(f"there are no generated reviews of {domain!r}; there are: {', '.join(DOMAINS)}.{near}")
    words = random.Random(f"{seed}/{domain}/{split}")
    noise = random.Random(f"{seed}/{domain}/{split}/noise")
    first, labels = DOMAINS.index(domain), RATINGS[grammar]
    examples = []
    for number in range(count):
        wanted = (first + number) % len(labels) if balance else None
        text, label = (_review if grammar == "full" else _plain_review)(_DOMAINS[domain], wanted, words)
        if noise.random() < label_noise:
            label = (label + 1 + _below(noise, len(labels) - 1)) % len(labels)
        examples.append(Example(text, labels[label], domain))
    return examples


def vocabulary() -> tuple[str, ...]:
    """The distinct lower-case words and punctuation marks of all reviews, sorted."""
    texts = [*_GENERAL, *_CONTRASTS, _BOTH, *_EARLIER, *_STORIES, "."]
    texts += [*_PLAIN, *_NEGATED, *_STRONG, *_MORE, *_LESS, *_WHOLE]
    for domain in _DOMAINS.values():
        texts.append(domain.product)
        for aspect, words_of_aspect in domain.aspects.items():
            texts += [aspect, *words_of_aspect]
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
    for probability, templates, opposite, weight in _FORMS[:-1]:
        draw -= probability
        if draw < 0:
            return Opinion(positive, weight, templates, opposite)
    _, templates, opposite, weight = _FORMS[-1]
    return Opinion(positive, weight, templates, opposite)


def _plan(share: float, generator: random.Random) -> list[list[Opinion]]:
    """Sentences of one or two opinions, each positive with probability `share`."""
    sentences: list[list[Opinion]] = []
    for _ in range(2 + _below(generator, 2)):
        opinion = _opinion(generator.random() < share, generator)
        last = sentences[-1] if sentences else []
        if len(last) == 1 and opinion.weight == last[0].weight == 1 and generator.random() < _JOINED:
            contrast = last[0].positive != opinion.positive
            last.append(dataclasses.replace(opinion, weight=2 if contrast else 1))
        else:
            sentences.append([opinion])
    if generator.random() < _WHOLE_PRODUCT:
        sentences.append([Opinion(generator.random() < share, 1, _WHOLE)])
    return sentences


def _plain_review(domain: Domain, wanted: int | None, generator: random.Random) -> tuple[str, int]:
    """A text of two plain opinions and its label, which is `wanted` unless that is None: 0 faults, 1 praise."""
    label = _below(generator, 2) if wanted is None else wanted
    opinion = Opinion(label == 1, 1)
    return _text([_clause(domain, s, opinion, generator) for s in _sample(generator, list(domain.aspects), 2)]), label


def _review(domain: Domain, wanted: int | None, generator: random.Random) -> tuple[str, int]:
    """A text and its label, one less than its stars, which is `wanted` unless that is None."""
    while True:
        share = generator.random() if wanted is None else _SHARES[wanted]
        plan = _plan(share, generator)
        label = stars([opinion for opinions in plan for opinion in opinions]) - 1
        if wanted in (None, label):
            break
    aspects = _sample(generator, list(domain.aspects), 3)
    sentences = []
    for opinions in plan:
        clauses = []
        for opinion in opinions:
            aspect = "" if opinion.templates is _WHOLE else aspects.pop()
            clauses.append(_clause(domain, aspect, opinion, generator))
        if len(clauses) == 1:
            sentences += clauses
        else:
            contrast = opinions[0].positive != opinions[1].positive
            template = _pick(generator, _CONTRASTS) if contrast else _BOTH
            sentences.append(template.format(a=clauses[0], b=clauses[1]))
    if sum(len(opinions) for opinions in plan) < 3 or generator.random() < _ASIDE:
        aside = _aside(domain, generator)
        place = _below(generator, len(sentences))
        if len(plan[place]) == 1 and generator.random() < _JOINED:
            # So that `but` and `although` alone do not tell of mixed opinions.
            sentences[place] = _pick(generator, _CONTRASTS[:2]).format(a=aside, b=sentences[place])
        else:
            sentences.insert(place, aside)
    return _text(sentences), label


def _text(sentences: Sequence[str]) -> str:
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)


def _aside(domain: Domain, generator: random.Random) -> str:
    """A clause that does not count: a story, or an opinion about an earlier product."""
    if generator.random() < _STORY:
        return _pick(generator, _STORIES).format(p=domain.product)
    aspect = _pick(generator, list(domain.aspects))
    word = _pick(generator, _pick(generator, domain.aspects[aspect]).split())
    return _pick(generator, _EARLIER).format(p=domain.product, s=aspect, w=word)


def _clause(domain: Domain, aspect: str, opinion: Opinion, generator: random.Random) -> str:
    """An opinion in words, about the whole product if `aspect` is empty."""
    # Nobody says `more superb than`: comparisons take the aspect's own words.
    own = opinion.templates in (_MORE, _LESS) or generator.random() >= domain.general
    praise, fault = domain.aspects[aspect] if aspect and own else _GENERAL
    word = _pick(generator, (praise if opinion.positive != opinion.opposite else fault).split())
    return _pick(generator, opinion.templates).format(s=aspect, w=word, p=domain.product)
