"""What is tried out, and with what: each target draws an input, hands it over, and says what was wrong with the answer.

Inputs come from grammars, so that they get past the first check; many are then damaged.
"""

import io
import json
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cache
from math import isfinite
from pathlib import Path, PurePosixPath
from random import Random
from typing import Any

from omegaconf import OmegaConf

from cpu_grpo.config.compose import typed
from cpu_grpo.config.schema import Pipeline, Task, Train, Variant
from cpu_grpo.errors import UserError
from cpu_grpo.files import rows_of
from cpu_grpo.models.gguf_header import Malformed, read_header
from cpu_grpo.tasks.answers.grader import KINDS, SLOW, Grader
from cpu_grpo.tasks.answers.marks import MARKS, MAX_TEXT, written
from cpu_grpo.tasks.answers.number import is_number, number
from cpu_grpo.tasks.problems import LONGEST, problem_from_row
from cpu_grpo.tasks.rewards import COMPONENTS, correct
from cpu_grpo.text import one_line

WORDS = [
    "The answer is", "so", "12 + 7 = 19", "####", "= ", "\n", "x=-3", "3/4", "1,2,3", "(5)", "apples", "<b>", "|",
    "```", "</pre><script>alert(1)</script>", "\x1b[31m", "\x00", "\u202e", "\u2028", "\ud800", "\u0663", "\u00b2",
    "\u00bd", "\U0001f600", "9" * 50, "-" * 30, "1e5", "é", "0x1F", "%", "$", ",", "NaN", "inf", "#" * 9,
    "5\ufe0f\u20e3",
]  # fmt: skip
ALPHABET = "0123456789,./-+\u2212$%# \n\tex()\u0663\u00b2\u200b\u2044\u00a0"
BETWEEN = [" is ", "= ", ": ", "\n", "\n#### ", " (", " so ", " > "]
AFTER = ["", ".", "!", " apples", " apples.", "%", ")", "\n", " </b>", "*", " \u20ac", "\u3002", " m\u00b2", '"', ";"]
HIDDEN = ["\u200b", "\u200d", "\u2060", "\ufeff", "\u00ad", "\u202e", "\u0301", "\ufe0f\u20e3"]
SIMPLE = [None, True, 0, -1, 7, 10**30, 10**900, 1.5, float("nan"), float("inf"), "", "5", " ", "test", "train"]
FOREIGN = ["\u0665", "\u00b2", "\u00bd", "\uff15", "\u2167", "\u0be7", "\u2075", "\u3007", "\u207b\u00b2", "\u066b5"]


ANSWERS = {
    "number": ["5", "-3/4", "1,234", "3 1/2", "1.5 million", "2e3", "$0.5"],
    "text": ["Paris", "yes", "New York", "no", "the Moon", "12:30", "\u00c9mile Zola"],
    "choice": list("ABCDEFGHIJ"),
    "regex": ["x", "y1", "No", "ab c"],
}
NUMBERS = Grader()


@dataclass(frozen=True)
class Target:
    """`run` draws an input and returns what is wrong with what came of it; empty where nothing is."""

    name: str
    run: Callable[[Random], str]
    every: int = 1  # of so many numbers one is an input of this target: those that take long have fewer


def noise(random: Random, most: int = 12) -> str:
    """Text that looks like a completion in places."""
    if random.random() < 0.0005:  # so long that anything slower than linear shows
        return random.choice([*WORDS, "9", "9,", "9/", "1\u200b", " "]) * random.randrange(30_000)
    if random.random() < 0.5:
        return " ".join(random.choices(WORDS, k=random.randrange(most)))
    return "".join(random.choices(ALPHABET, k=random.randrange(3 * most)))


def value(random: Random) -> Fraction:
    whole = random.randrange(10 ** random.randrange(1, 12)) * random.choice([1, 1, -1])
    return Fraction(whole, random.choice([1, 1, 1, 2, 4, 10, 100]))


def spelled(random: Random, wanted: Fraction) -> str:
    """A number in one of the ways that people write it."""
    size = abs(wanted)
    ways = [f"{size.numerator}/{size.denominator}", f"{3 * size.numerator} / {3 * size.denominator}"]
    if 100 % size.denominator == 0:
        whole, cents = divmod(int(size * 100), 100)
        ways += [f"{whole}.{cents:02}", f"{whole:,}.{cents:02}", f"{whole}.{cents:02}000", f"00{whole}.{cents:02}"]
        ways += [f"{whole}", f"{whole:,}", f"{whole}.0"] if not cents else []
    sign = random.choice(["-", "\u2212"]) if wanted < 0 else random.choice(["", "", "+"])
    return sign + random.choice(["", "", "", "$"]) + random.choice(ways)


def disguised(random: Random, digits: str) -> str:
    """A number that ends or begins in `digits` and is another."""
    other, hidden = str(random.randrange(101, 1000)), "".join(random.choices(HIDDEN, k=random.randrange(1, 4)))
    return random.choice([
        f"{digits} {other}/{other}9",
        f"{digits}:{other}",
        f"{digits}.5 million",
        other + hidden + digits,
        digits + hidden + other,
        digits + random.choice(FOREIGN),
        random.choice(FOREIGN) + digits,
        random.choice(FOREIGN) + hidden + digits,
        f"{digits}e{other}",
        f"{digits}E+{other}",
        f"{digits}/{random.randrange(2, 99)}",
        f"{digits}\u2044{random.randrange(2, 99)}",
        f"{digits}.25 / {random.randrange(2, 99)}",
        f"{other},{int(digits) % 1000:03}" if int(digits) % 1000 else f"{digits}.5",
        f"-{digits}",
        f"{digits}.5",
        f"0.{digits}7",
        digits + "7" * 60,
        "8" * 60 + digits,
    ])  # fmt: skip


def extraction(random: Random) -> str:
    """Right where a completion ends in the answer, however it is written; wrong where it ends in another number."""
    wanted = value(random)
    before, after = noise(random) + random.choice(BETWEEN), random.choice(AFTER)
    reference, kind = spelled(random, wanted), random.randrange(3) if random.random() < 0.997 else 3
    if kind == 0:
        return told(before + spelled(random, wanted) + after, reference, 1)
    if kind == 1:
        others = [wanted + 1, -wanted - 1, 10 * wanted + 7, wanted + Fraction(1, 1000), wanted / 7 + 1]
        other = next(own for own in random.sample(others, 5) if own != wanted)
        return told(before + spelled(random, other) + after, reference, 0)
    if kind == 2:
        digits = str(random.randrange(2, 10 ** random.randrange(1, 6)) + 1)
        text = disguised(random, digits)
        wrong = told(before + text + after, digits, 0)
        if not wrong and "," in text:
            wrong = told(before + text + after, text.partition(",")[2], 0)
        return wrong
    digits, cut = str(random.randrange(1, 10**6)), random.choice(["7", "-", "1,", "3/", "3 / ", "1."])
    return told(cut + digits + " x" * ((MAX_TEXT - len(digits)) // 2), digits, 0)


def told(completion: str, reference: str, wanted: int) -> str:
    found = correct(completion, [reference], NUMBERS)
    return "" if found == wanted else f"correct is {found} for {completion[-80:]!r} and {reference!r}"


def rewards(random: Random) -> str:
    """Every component of any text is a number between 0 and 1, and all of them agree on what is right."""
    completion = noise(random) + random.choice(BETWEEN) + noise(random) + random.choice(AFTER)
    answer = random.choice([noise(random, 3), spelled(random, value(random))])
    found = {name: component(completion, [answer], NUMBERS) for name, component in COMPONENTS.items()}
    for name, text in (("strict", NUMBERS.strict(completion)), ("flexible", NUMBERS.flexible(completion))):
        if text is not None and number(text) is None and len(text) < 40:
            return f"{name} took {text!r} for a number"
    if not all(isfinite(reward) and 0 <= reward <= 1 for reward in found.values()):
        return f"{found} for {completion[-80:]!r}"
    if is_number(answer) and (found["correct"] == 1) != (found["closeness"] == 1):
        return f"{found} disagree for {completion[-80:]!r} and {answer[:80]!r}"
    both = {NUMBERS.same(answer, [completion]), NUMBERS.same(completion, [answer])}
    return "" if len(both) == 1 else f"{answer[:80]!r} is not symmetric"


def kinds(random: Random) -> str:
    """Whatever kind of answer is asked for, a completion that ends in one behind a mark is right, and another wrong."""
    kind = random.choice([kind for kind in KINDS if kind not in SLOW])
    grader = Grader(kind, tuple(random.sample(MARKS, random.randrange(1, 4))))
    completion = noise(random) + random.choice(BETWEEN) + noise(random)
    for found in (grader.strict(completion), grader.flexible(completion)):
        grader.same(found, [noise(random, 3)[-LONGEST:], completion[-LONGEST:]])
    grader.well_formed(completion)
    grader.flaw(completion[-LONGEST:])
    right, wrong = random.sample(ANSWERS[kind], 2)
    mark = random.choice(grader.marks)
    text = completion + "\n" + written(right, mark)
    for name, found in (("strict", grader.strict(text)), ("flexible", grader.flexible(text))):
        if grader.same(found, [wrong]) or not grader.same(found, [wrong, right]):
            return f"{kind}, {name}: took {found!r} from {text[-80:]!r}, where {right!r} is right"
    return ""


def some_json(random: Random, depth: int = 3) -> Any:
    kind = random.randrange(6 if depth else 4)
    if kind < 3:
        return random.choice(SIMPLE)
    if kind == 3:
        return noise(random, 4)
    if kind == 4:
        return [some_json(random, depth - 1) for _ in range(random.randrange(3))]
    return {noise(random, 2): some_json(random, depth - 1) for _ in range(random.randrange(3))}


def row(random: Random) -> bytes:
    fields: dict[str, Any] = {"question": noise(random, 6), "answer": spelled(random, value(random))}
    for name in random.sample(["question", "answer", "difficulty", "split", "id", "more"], random.randrange(3)):
        fields[name] = some_json(random)
    text = json.dumps(fields, ensure_ascii=random.random() < 0.5)
    if random.random() < 0.05:
        place, deep = random.randrange(len(text)), random.choice(["[", '{"a":']) * random.choice([5, 900, 100_000])
        text = text[:place] + deep + text[place:]
    return text.encode("utf-8", "surrogatepass")


def damaged(random: Random, data: bytes) -> bytes:
    """A few bytes changed, cut out, put in or repeated."""
    found = bytearray(data)
    for _ in range(random.randrange(4)):
        place = random.randrange(len(found) + 1)
        match random.randrange(5):
            case 0 if place < len(found):
                found[place] = random.randrange(256)
            case 1:
                del found[place : place + random.randrange(1, 20)]
            case 2:
                found[place:place] = random.randbytes(random.randrange(1, 9))
            case 3:
                found[place:place] = found[place : place + random.randrange(1, 30)]
            case 4:
                del found[place:]
    return bytes(found)


def jsonl(random: Random) -> str:
    """Lines are problems, or are refused in one sentence that names the file."""
    data = random.choice([b"\n", b"\n", b"\r\n", b"\r", b"\n\n"]).join(
        row(random) for _ in range(random.randrange(1, 4))
    )
    data = random.choice([b"", b"", b"", b"\xef\xbb\xbf", b"\xff\xfe", b"["]) + damaged(random, data)
    try:
        for line, fields in rows_of(io.BytesIO(data), "f.jsonl"):
            problem = problem_from_row(fields, f"f.jsonl, line {line}", f"f:{line}", NUMBERS.flaw)
            json.dumps(asdict(problem), ensure_ascii=False).encode()
            if not is_number(problem.answer):
                return f"{problem.answer!r} is no number"
    except UserError as error:
        return complaint(error, "f.jsonl")
    return ""


def complaint(error: UserError, culprit: str) -> str:
    """What is wrong with a sentence, as it is printed."""
    text = one_line(str(error))
    if culprit not in text or "\n" in text or "\x1b" in text or len(str(error)) > 2000:
        return f"says {text[:200]!r}"
    return ""


@cache
def plain_config(kind: type[Pipeline] | type[Train]) -> dict[str, Any]:
    config = kind(task=Task(kind="chain_sum"))
    if isinstance(config, Pipeline):
        config.variants = {"a": Variant(), "b": Variant(init_from="a")}
    else:
        config.name = "a"
    return asdict(config)


NAMES = [
    "a", "b", "base", "../../x", "/etc/passwd", "", ".", "..", "a/b", "a\nb", "a\x00b", "x" * 300, "CON", "nul.txt",
    "-m", "a/..", "./", "\ud800", "a b", "é", "a.", "~", "${seed}", "${a}", "???", "a:b", "\u202e", "1", "null",
    "$(id)",
]  # fmt: skip


def config(random: Random) -> str:
    """Settings are taken or refused in one sentence, and no name leads out of the folder of models."""
    kind = random.choice([Pipeline, Train])
    settings = json.loads(json.dumps(plain_config(kind)))
    for _ in range(random.randrange(1, 3)):
        node = settings
        while True:
            key = random.choice([*node, "zzz"]) if random.random() < 0.95 else random.choice(NAMES)
            if not isinstance(node.get(key), dict) or not node[key] or random.random() < 0.05:
                break
            node = node[key]
        node[key] = random.choice([random.choice(NAMES), some_json(random, 2), [random.choice(NAMES)]])
    try:
        found = typed(OmegaConf.create(settings), kind)
    except UserError as error:
        return complaint(error, "")
    names = [*found.variants] if isinstance(found, Pipeline) else [found.name]
    names += [PurePosixPath(name).name for name in getattr(found.evaluation, "models", [])]
    for name in names:
        if (Path("models") / name).parts != ("models", name) or "\n" in name or "\x00" in name or name in ("..", "."):
            return f"took the name {name!r}"
    return ""


@cache
def plain_gguf() -> tuple[bytes, list[int]]:
    """A small model's header with its data, and where in it counts and lengths stand."""
    places: list[int] = []
    data = bytearray(b"GGUF")

    def put(kind: str, content: float) -> None:
        places.append(len(data))
        data.extend(struct.pack("<" + kind, content))

    def text(words: str) -> None:
        put("Q", len(words.encode()))
        data.extend(words.encode())

    tensors = {"token_embd.weight": (32, 8), "output_norm.weight": (32,), "blk.0.attn_q.weight": (32, 32)}
    values = {"llama.block_count": 1, "llama.embedding_length": 32, "general.alignment": 32, "llama.vocab_size": 8}
    put("I", 3), put("Q", len(tensors)), put("Q", len(values) + 3)
    text("general.architecture"), put("I", 8), text("llama")
    for name, size in values.items():
        text(name), put("I", 4), put("I", size)
    text("tokenizer.ggml.tokens"), put("I", 9), put("I", 8), put("Q", 4)
    for token in ("a", "b", "é", "</s>"):
        text(token)
    text("tokenizer.ggml.scores"), put("I", 9), put("I", 6), put("Q", 4)
    for score in range(4):
        put("f", score)
    offset = 0
    for name, shape in tensors.items():
        text(name), put("I", len(shape))
        for size in shape:
            put("Q", size)
        put("I", 0), put("Q", offset)
        offset += 4 * 32 * 32
    data.extend(bytes(-len(data) % 32 + offset))
    return bytes(data), places


EXTREMES = [0, 1, 2, 7, 8, 9, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**62, 2**63, 2**64 - 1]


def gguf(random: Random) -> str:
    """A header is read within the file, or refused."""
    plain, places = plain_gguf()
    data = bytearray(plain)
    for place in random.sample(places, random.randrange(3)):
        size = random.choice([4, 8])
        data[place : place + size] = (random.choice(EXTREMES) % 2 ** (8 * size)).to_bytes(size, "little")
    found = (
        damaged(random, bytes(data[: len(plain) - random.randrange(3) * 4000]))
        if random.random() < 0.5
        else bytes(data)
    )
    try:
        header = read_header(found)
    except Malformed as problem:
        return complaint(UserError(str(problem)), "")
    return "" if header.numbers <= len(found) * 32 else f"{header.numbers} numbers in {len(found)} bytes"


TARGETS = {
    target.name: target
    for target in (
        Target("extraction", extraction),
        Target("rewards", rewards),
        Target("kinds", kinds),
        Target("jsonl", jsonl),
        Target("gguf", gguf),
        Target("config", config, every=100),
    )
}
