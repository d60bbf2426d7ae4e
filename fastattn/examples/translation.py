"""Which word translates which: cross attention learns it from pairs of sentences alone.

The words of one language are queries, those of the other keys, and the score of a pair is the
logarithm of the probability that one translates the other. The softmax over a sentence is then the
posterior of IBM's Model 1 (Brown et al., 1993), its alignment; with the keys' one-hot vectors as
values, the output counts how often each word was attended to; counts give better probabilities.
Attention is the expectation of the EM algorithm. ALiBi adds that words stand near their
translations (as in fast_align: Dyer et al., 2013), which tells the threes of "three hundred three"
apart.

The data are generated: numbers below a million, with one to six digits equally often, written out
in English and in German, which says the units before the tens ("ein und zwanzig"). The alignment is
known from the writing out, and only used to judge; "und" has no English word and is left out there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

import fastattn

_SMALL = """
one ein, two zwei, three drei, four vier, five fünf, six sechs, seven sieben, eight acht,
nine neun, ten zehn, eleven elf, twelve zwölf, thirteen dreizehn, fourteen vierzehn,
fifteen fünfzehn, sixteen sechzehn, seventeen siebzehn, eighteen achtzehn, nineteen neunzehn"""
_TENS = """
twenty zwanzig, thirty dreißig, forty vierzig, fifty fünfzig, sixty sechzig, seventy siebzig,
eighty achtzig, ninety neunzig"""
SMALL, TENS = ([pair.split() for pair in pairs.split(",")] for pairs in (_SMALL, _TENS))
_WORDS = [*SMALL, *TENS, ["hundred", "hundert"], ["thousand", "tausend"]]
ENGLISH = {english: place for place, (english, _) in enumerate(_WORDS)}
GERMAN = {
    word: place for place, word in enumerate([*(german for _, german in _WORDS), "eins", "und"])
}
_ROUNDS = 10
_UNSEEN = 0.01  # added to every count: no pair of words is impossible


class Sentence(NamedTuple):
    """A number in English and German; `source[i]` is the place of German word i's English one."""

    english: list[str]
    german: list[str]
    source: list[int]  # -1 for "und"


def sentences(count: int, seed: int) -> list[Sentence]:
    """Generate numbers, written out in both languages."""
    rng = np.random.default_rng(seed)
    digits = rng.integers(1, 7, count)
    return [write_out(int(n)) for n in rng.integers(10 ** (digits - 1), 10**digits)]


def write_out(number: int) -> Sentence:
    """Write a number from 1 to 999999 out in English and German."""
    thousands, rest = divmod(number, 1000)
    written = Sentence([], [], [])
    if thousands:
        _hundreds(thousands, written)
        _say(written, ["thousand", "tausend"])
    _hundreds(rest, written)
    if written.german[-1] == "ein":
        written.german[-1] = "eins"  # at the end of a number alone
    return written


def learn(pairs: list[Sentence], *, slope: float = 0.0, **machine: Any) -> np.ndarray:
    """Learn the probability that German words translate English ones: (German, English) words.

    Expectation and maximisation, from equal probabilities on.
    """
    words = np.eye(len(ENGLISH))  # keys and values: one-hot
    target = np.array([GERMAN[word] for pair in pairs for word in pair.german])
    source = np.array([ENGLISH[word] for pair in pairs for word in pair.english])
    probability: np.ndarray = np.full((len(GERMAN), len(ENGLISH)), 1 / len(GERMAN))
    for _ in range(_ROUNDS):
        attended = fastattn.attention_varlen(
            np.log(probability)[target],
            words,
            words,
            query_splits=np.cumsum([0, *(len(pair.german) for pair in pairs)]),
            key_splits=np.cumsum([0, *(len(pair.english) for pair in pairs)]),
            key_indices=source,
            similarity="dot",
            alibi_slopes=[slope],
            **machine,
        )
        counts = np.full_like(probability, _UNSEEN)
        np.add.at(counts, target, attended)
        probability = counts / counts.sum(axis=0)
    return probability


def align(
    pair: Sentence, probability: np.ndarray, *, slope: float = 0.0, **machine: Any
) -> np.ndarray:
    """Return the attention of each German word to each English one."""
    target = [GERMAN[word] for word in pair.german]
    words = np.eye(len(ENGLISH))[[ENGLISH[word] for word in pair.english]]
    _, weights = fastattn.attention(
        np.log(probability)[None, target],  # None: one head, for ALiBi has a slope for each
        words[None],
        words[None],
        similarity="dot",
        alibi_slopes=[slope],
        return_weights=True,
        **machine,
    )
    attended: np.ndarray = weights[0]
    return attended


def accuracy(pairs: list[Sentence], weights: list[np.ndarray]) -> float:
    """Return the share of German words that attend most to the English word they translate."""
    found = np.concatenate([weight.argmax(axis=1) for weight in weights])
    source = np.concatenate([pair.source for pair in pairs])
    return float(np.mean(found[source >= 0] == source[source >= 0]))


def diagonal(pair: Sentence) -> np.ndarray:
    """Return weights that know nothing but the position."""
    places = np.linspace(0, len(pair.english) - 1, len(pair.german)).round().astype(int)
    at_places: np.ndarray = np.eye(len(pair.english))[places]
    return at_places


def _hundreds(number: int, written: Sentence) -> None:
    hundreds, rest = divmod(number, 100)
    if hundreds:
        _say(written, SMALL[hundreds - 1])
        _say(written, ["hundred", "hundert"])
    tens, units = divmod(rest, 10)
    if tens < 2:
        if rest:
            _say(written, SMALL[rest - 1])
    elif not units:
        _say(written, TENS[tens - 2])
    else:
        english = len(written.english)
        written.english.extend((TENS[tens - 2][0], SMALL[units - 1][0]))
        written.german.extend((SMALL[units - 1][1], "und", TENS[tens - 2][1]))
        written.source.extend((english + 1, -1, english))


def _say(written: Sentence, word: list[str]) -> None:
    written.source.append(len(written.english))
    written.english.append(word[0])
    written.german.append(word[1])
