"""Small problems with completions, and whether they pass where HumanEval's reference executes them."""

from __future__ import annotations

from cl_runner.probes.humaneval import Problem

TWICE = 'def f(x):\n    """Twice x."""\n'
CHECK = (
    "\n\nMETADATA = {'author': 'us'}\n\n\ndef check(candidate):\n    assert candidate(2) == 4\n"
    "    assert candidate(-1) == -2\n"
)

#: What it tries, the completion of TWICE, whether it passes CHECK.
COMPLETIONS = [
    ("right", "    return 2 * x", True),
    ("right for one of two", "    return x * x", False),
    ("raises", "    raise ValueError(x)", False),
    ("no syntax", "    return (2 * x", False),
    ("no indentation", "return 2 * x", False),
    ("empty", "", False),
    ("name nobody defined", "    return math.floor(2 * x)", False),
    ("imports", "    import math\n    return math.floor(2 * x)", True),
    ("a local variable's annotation is not evaluated", "    y: Unknown = 2 * x\n    return y", True),
    ("an inner function's is", "    def g(y: Unknown):\n        return 2 * y\n    return g(x)", False),
    ("a global variable's is", "    return 2 * x\n\n\ny: Unknown = 1", False),
    ("a class's is", "    class A:\n        y: Unknown\n    return 2 * x", False),
    (
        "dataclass",
        "    from dataclasses import dataclass, field\n    @dataclass\n    class A:\n        y: int\n"
        "        z: list = field(default_factory=list)\n    return 2 * A(x).y",
        True,
    ),
    (
        "dataclass with texts as annotations",
        "    from dataclasses import dataclass\n    @dataclass(frozen=True)\n    class A:\n"
        "        y: 'int'\n    return 2 * A(x).y",
        True,
    ),
    (
        "named tuple and enum",
        "    from enum import Enum\n    from typing import NamedTuple\n    class A(NamedTuple):\n"
        "        y: int\n    class B(Enum):\n        two = 2\n    return A(x).y * B.two.value",
        True,
    ),
    ("future import in the middle", "    return 2 * x\n\n\nfrom __future__ import annotations", False),
    ("is not the main program", "    return 2 * x\n\n\nif __name__ == '__main__':\n    raise ValueError", True),
    ("knows no file", "    __file__\n    return 2 * x", False),
    ("leaves by exception", "    import sys\n    sys.exit(0)", False),
    ("leaves at once", "    import os\n    os._exit(0)", False),
    ("asks to leave", "    return 2 * x\n\n\nexit()", False),
    ("is interrupted", "    raise KeyboardInterrupt", False),
    ("never ends", "    while True: pass", False),
    ("sleeps too long", "    import time\n    time.sleep(60)\n    return 2 * x", False),
    ("calls itself without end", "    return f(x)", False),
    (
        "calls itself often",
        "    def g(n):\n        return 0 if n == 0 else 2 + g(n - 1)\n    return g(800) - 1600 + 2 * x",
        True,
    ),
    ("prints", "    print('x' * 100000)\n    return 2 * x", True),
    ("asks", "    input()\n    return 2 * x", False),
    ("reads its input", "    import sys\n    sys.stdin.read()\n    return 2 * x", False),
    ("helper behind", "    return g(x)\n\n\ndef g(x):\n    return 2 * x", True),
    ("defines it again, wrong", "    return 2 * x\n\n\ndef f(x):\n    return x", False),
    ("no function any more", "    return 2 * x\n\n\nf = None", False),
    ("cached", "    return 2 * x\n\n\nimport functools\nf = functools.lru_cache(f)", True),
    ("generator", "    def g():\n        yield from (x, x)\n    return sum(g())", True),
    ("match and walrus", "    match (y := 2 * x):\n        case int():\n            return y", True),
    ("warns of an escape", "    '\\d'\n    return 2 * x", True),
    ("other letters", "    größe = x\n    return 2 * größe", True),
    (
        "own file",
        "    with open('own', 'w') as file:\n        file.write(str(x))\n    return 2 * int(open('own').read())",
        True,
    ),
    (
        "threads",
        "    import threading\n    found = []\n"
        "    thread = threading.Thread(target=found.append, args=(2 * x,))\n    thread.start()\n"
        "    thread.join()\n    return found[0]",
        True,
    ),
    (
        "copies its own class",
        "    import copy\n    class A: pass\n    a = A()\n    a.y = 2 * x\n    return copy.deepcopy(a).y",
        True,
    ),
]
#: What it tries, prompt, completion, test, whether it passes.
WHOLE = [
    (
        "annotation without import",
        'def f(x: List[int]) -> int:\n    """Length."""\n',
        "    return len(x)",
        "([1]) == 1",
        False,
    ),
    (
        "annotation with import",
        'from typing import List\n\ndef f(x: List[int]) -> int:\n    """Length."""\n',
        "    return len(x)",
        "([1]) == 1",
        True,
    ),
    (
        "annotations are objects",
        "def f(x: int) -> str:\n",
        "    return ''",
        ".__annotations__ == {'x': int, 'return': str}",
        True,
    ),
    (
        "annotations are texts where it says so",
        "from __future__ import annotations\ndef f(x: Unknown):\n",
        "    return x",
        ".__annotations__ == {'x': 'Unknown'}",
        True,
    ),
    (
        "hints",
        "import typing\ndef f(x: 'int') -> str:\n",
        "    return ''",
        " and typing.get_type_hints(candidate) == {'x': int, 'return': str}",
        True,
    ),
]
#: Programs of a module of its own, which the reference, where a module's name is "builtins", cannot run.
OWN_MODULE = [
    ("pickles its own class", "import pickle\nclass A:\n    pass\nassert type(pickle.loads(pickle.dumps(A()))) is A"),
    (
        "hints of its own classes",
        "import typing\nclass A:\n    other: 'B'\nclass B: pass\nassert typing.get_type_hints(A) == {'other': B}",
    ),
    ("finds itself", "import sys\nx = 1\nassert sys.modules[__name__].x == 1 and sys.modules[f.__module__].f is f"),
]


def problems() -> list[tuple[str, Problem, str, bool]]:
    """Of each program: what it tries, the problem, the completion, whether it passes."""
    found = [(what, Problem(what, TWICE, CHECK, "f"), text, passes) for what, text, passes in COMPLETIONS]
    for what, prompt, text, expected, passes in WHOLE:
        test = f"def check(candidate):\n    assert candidate{expected}\n"
        found.append((what, Problem(what, prompt, test, "f"), text, passes))
    for what, text in OWN_MODULE:
        found.append((what, Problem(what, TWICE, f"{CHECK}\n{text}\n", "f"), "    return 2 * x", True))
    return found
